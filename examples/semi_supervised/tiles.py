"""Small pictures: class masks and density overlays, [H, W, 3] arrays in [0, 1]."""

import colorsys

import matplotlib
import numpy as np

GROUND, IGNORED = "#1c2430", "#c4cad3"
DIGITS = "#4e9cf5 #f58f3c #4fbf67 #e5484d #a672e8 #b07d5b #f07fc0 #b9c13d #35c3c9 #f2cf4a"
COLOURS = (GROUND, *DIGITS.split(" "))  # of the first eleven classes
DENSITY_MAP = matplotlib.colormaps["viridis"]


def palette(num_classes: int) -> np.ndarray:
    """A colour for each class and, last, for ignored pixels: [C + 1, 3]."""
    more = num_classes - len(COLOURS)
    hues = [colorsys.hls_to_rgb(i / more, 0.6, 0.5) for i in range(more)]
    named = [matplotlib.colors.to_rgb(colour) for colour in (*COLOURS[:num_classes], IGNORED)]
    return np.array([*named[:-1], *hues, named[-1]])


def class_tile(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """[H, W] classes -> [H, W, 3]; what is no class is grey."""
    known = (labels >= 0) & (labels < num_classes)
    return palette(num_classes)[np.where(known, labels, num_classes)]


def density_tile(image: np.ndarray, density: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """[3, H, W] image and [H, W] density -> the density in colour on the image in grey.

    Pixels with density 0, whose class has no bank, stay grey.
    """
    grey = np.repeat(0.55 * image.mean(0)[:, :, None], 3, axis=2)
    low, high = limits
    colour = DENSITY_MAP(np.clip((density - low) / (high - low), 0, 1))[:, :, :3]
    return np.where(density[:, :, None] == 0, grey, 0.15 * grey + 0.85 * colour)


def density_limits(maps: list[np.ndarray]) -> tuple[float, float]:
    """One scale for several maps: from the 3rd to the 97th percentile of the densities there are."""
    values = np.concatenate([each[each != 0] for each in maps])
    low, high = np.quantile(values, [0.03, 0.97]) if len(values) else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))
