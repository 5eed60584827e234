"""Scenes of real handwritten digits with a label for each pixel: a segmentation task without a download.

scikit-learn ships 1,797 handwritten digits of 8x8 pixels (UCI optical recognition of handwritten digits). They are
split before any scene is drawn, so no digit of a test scene occurs in a training scene.

The ground of a scene has a tint, grain and noise. Its digits are rotated, sheared, scaled and coloured. They may
overlap. Torn-off pieces of digits belong to the background. Class 0 is background, class 1 + d is digit d.
"""

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from semi_supervised.augment import random_crop

CLASS_NAMES = ("background", *map(str, range(10)))
SPLITS = {"train": (0.0, 0.6), "val": (0.6, 0.75), "test": (0.75, 1.0)}  # fractions of the digits
SIZE, CROP = 64, 56  # pixels of a scene, and of a training crop
GRID = 3  # digits are near the nodes of a 3 x 3 grid, so they overlap but do not hide each other
DIGITS, PIECES = 7, 1  # whole digits and torn pieces per scene
NOISE = 0.05


class DigitScenes:
    """Labelled and unlabelled scenes for training.

    Args:
        labelled: number of scenes with a label.
        unlabelled: number of scenes without a label.
        seed: seed of the training scenes.
        evaluated: number of validation scenes, and of test scenes. They do not depend on the seed.
    """

    num_classes = len(CLASS_NAMES)
    class_names = CLASS_NAMES
    ignore_index = 255
    border_colour = "grey"  # around a scene smaller than an `evaluate_window`

    def __init__(self, labelled: int, unlabelled: int, seed: int, evaluated: int = 100):
        images, labels = draw_scenes(labelled + unlabelled, "train", seed)
        self.labelled_samples = list(zip(images[:labelled], labels[:labelled], strict=True))
        self.unlabelled_images = images[labelled:]
        counts = [np.bincount(x.flatten(), minlength=self.num_classes) for x in labels[:labelled]]
        self.pixels, self.images = np.sum(counts, axis=0), np.count_nonzero(counts, axis=0)
        self.evaluated = evaluated

    def description(self) -> dict:
        """Returns what must not change between save and resume."""
        return {"labelled": len(self.labelled_samples), "unlabelled": len(self.unlabelled_images)}

    def files(self) -> list:
        """Returns the image files to check: none."""
        return []

    def notes(self) -> list[str]:
        """Returns what the user should know: nothing."""
        return []

    def labelled(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draws a batch: images [count, 3, CROP, CROP], labels [count, CROP, CROP]."""
        chosen = rng.integers(len(self.labelled_samples), size=count)
        images, labels = zip(*(_crop(*self.labelled_samples[i], rng) for i in chosen), strict=True)
        return torch.stack(images), torch.stack(labels)

    def unlabelled(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draws a batch: images [count, 3, CROP, CROP] and a mask [count, CROP, CROP], True as there are no borders."""
        chosen = rng.integers(len(self.unlabelled_images), size=count)
        blank = torch.zeros(SIZE, SIZE, dtype=torch.int64)
        images = torch.stack([_crop(self.unlabelled_images[i], blank, rng)[0] for i in chosen])
        return images, torch.ones(images[:, 0].shape, dtype=torch.bool)

    @cached_property
    def val(self) -> list["Scene"]:
        """Scenes for validation."""
        return self._held_out("val")

    @cached_property
    def test(self) -> list["Scene"]:
        """Scenes for the test."""
        return self._held_out("test")

    def _held_out(self, split: str) -> list["Scene"]:
        scenes = zip(*draw_scenes(self.evaluated, split, seed=0), strict=True)
        return [Scene(f"{i:03d}", *scene) for i, scene in enumerate(scenes)]


class Scene(NamedTuple):
    """A scene for evaluation, with the interface of `images.Sample`."""

    name: str
    image: Tensor
    label: Tensor

    def read(self) -> tuple[Tensor, Tensor]:
        """Returns image and label."""
        return self.image, self.label


def _crop(image: Tensor, label: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    return random_crop(image, label, (CROP, CROP), rng, scale=(0.9, 1.1))


def draw_scenes(count: int, split: str, seed: int) -> tuple[Tensor, Tensor]:
    """Draws scenes from one split's digits.

    Args:
        count: number of scenes.
        split: "train", "val" or "test".
        seed: seed of the scenes.

    Returns:
        Images [count, 3, SIZE, SIZE] in [0, 1] and labels [count, SIZE, SIZE] int64.
    """
    rng = np.random.default_rng((seed, list(SPLITS).index(split)))
    strokes, values = split_digits(split)
    images = _ground(rng, count)
    labels = torch.zeros(count, SIZE, SIZE, dtype=torch.int64)
    nodes = rng.permuted(np.tile(np.arange(GRID**2), (count, 1)), axis=1)  # [count, 9]
    for layer in range(PIECES + DIGITS):
        torn = layer < PIECES  # pieces are drawn first, so they hide no digit
        chosen = rng.integers(len(values), size=count)
        drawn = _tear(rng, strokes[chosen]) if torn else strokes[chosen]
        opacity = _place(rng, drawn, nodes[:, layer])  # [count, SIZE, SIZE]
        colour = _brighter(rng, images)[:, :, None, None]
        images = torch.lerp(images, colour.expand_as(images), opacity[:, None])
        label = torch.zeros(count) if torn else values[chosen] + 1
        labels = torch.where(opacity > 0.5, label.long()[:, None, None], labels)
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32))
    return (images + NOISE * noise).clamp(0, 1), labels


def split_digits(split: str) -> tuple[Tensor, Tensor]:
    """Returns the strokes [N, 8, 8] in [0, 1] and values [N] of one split. The split never changes."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    first, last = (round(fraction * len(order)) for fraction in SPLITS[split])
    chosen = order[first:last]
    return torch.from_numpy(digits.images[chosen] / 16).float(), torch.from_numpy(
        digits.target[chosen]
    )


def _ground(rng: np.random.Generator, count: int) -> Tensor:
    """Draws a dark tint, smooth grain in three octaves (mostly grey), and stripes of random direction."""
    images = _uniform(rng, 0.2, 0.5, (count, 3, 1, 1)).expand(-1, -1, SIZE, SIZE).clone()
    for cells, grey, tint in ((3, 0.10, 0.06), (9, 0.08, 0.03), (24, 0.06, 0.0)):
        coarse = torch.from_numpy(rng.standard_normal((count, 4, cells, cells), dtype=np.float32))
        grain = F.interpolate(coarse, (SIZE, SIZE), mode="bicubic", align_corners=False)
        images += grey * grain[:, :1] + tint * grain[:, 1:]
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    limits = ((0, torch.pi), (6, 16), (0, 2 * torch.pi))
    angle, period, phase = (_uniform(rng, low, high, (count, 1, 1)) for low, high in limits)
    stripes = torch.sin((x * angle.cos() + y * angle.sin()) * 2 * torch.pi / period + phase)
    images += 0.1 * stripes[:, None] * _uniform(rng, -1, 1, (count, 1, 1, 1))
    return images.clamp(0, 1)


def _place(rng: np.random.Generator, strokes: Tensor, nodes: np.ndarray) -> Tensor:
    """Puts each 8x8 stroke near its grid node by a random affine map. Returns opacities [count, SIZE, SIZE]."""
    count = len(strokes)
    angle, shear = _uniform(rng, -0.1, 0.1, count), _uniform(rng, -0.05, 0.05, count)
    stretch, width = _uniform(rng, 0.85, 1.18, count), _uniform(rng, 0.36, 0.42, count)
    node = torch.from_numpy(np.stack((nodes % GRID, nodes // GRID), axis=1)) - (GRID - 1) / 2
    centre = node.float() * (1.96 / GRID) + _uniform(rng, -0.08, 0.08, (count, 2))  # in [-1, 1]
    # affine_grid needs the map from scene coordinates to stroke coordinates.
    cos, sin = angle.cos(), angle.sin()
    rows = torch.stack((cos, sin + shear, -sin * stretch, cos * stretch), dim=1)
    linear = rows.view(count, 2, 2) / width[:, None, None]
    shift = -linear @ centre[:, :, None]
    theta = torch.cat((linear, shift), dim=2)
    grid = F.affine_grid(theta, (count, 1, SIZE, SIZE), align_corners=False)
    framed = F.pad(strokes[:, None], (1, 1, 1, 1))  # 10x10, since a stroke may touch its edge
    values = F.grid_sample(framed, grid * 0.8, mode="bicubic", align_corners=False)
    return ((values[:, 0] - 0.35) * 5 + 0.5).clamp(0, 1)


def _tear(rng: np.random.Generator, strokes: Tensor) -> Tensor:
    """Keeps about half of each stroke: it looks like handwriting, but is not a digit."""
    kept = torch.zeros(4, 8, 8)
    kept[0, 5:] = kept[1, :3] = kept[2, :, 5:] = kept[3, :, :3] = 1
    return strokes * kept[rng.integers(4, size=len(strokes))]


def _brighter(rng: np.random.Generator, images: Tensor) -> Tensor:
    """Draws a colour [count, 3] per scene, brighter than the scene's mean in a random direction."""
    direction = F.normalize(_uniform(rng, -1, 1, (len(images), 3)).abs())
    return (images.mean((2, 3)) + direction * _uniform(rng, 0.5, 0.8, (len(images), 1))).clamp(0, 1)


def _uniform(
    rng: np.random.Generator, low: float, high: float, shape: int | tuple[int, ...]
) -> Tensor:
    return torch.from_numpy(rng.uniform(low, high, shape)).float()
