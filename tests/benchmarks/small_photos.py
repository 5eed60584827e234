"""Writes a small folder in the layout of CCP, for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

TRAIN, FURTHER = 16, 4
SIZE = 48, 40  # height, width
BAG, OUTERWEAR = 11, 4


def write_photos(folder: Path) -> Path:
    """Writes images of four stripes: background, skin, and in turn two of hair, outerwear and bag."""
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", 3), ("test", 4)):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
        for i in range(count):
            classes = [0, 1, (2, OUTERWEAR, BAG)[i % 3], (OUTERWEAR, BAG, 2)[i % 3]]
            label = np.repeat(classes, SIZE[1] // 4)[None].repeat(SIZE[0], 0).astype(np.uint8)
            label[:2] = 255
            Image.fromarray(label).save(folder / split / "labels" / f"{i:02}.png")
            pixels = np.minimum(label, 14)[..., None] * 14
            write_image(folder / split / "images" / f"{i:02}.jpg", pixels, rng)
    (folder / "unlabelled").mkdir()
    for i in range(FURTHER):
        pixels = np.full((*SIZE, 1), 30 * i)
        write_image(folder / "unlabelled" / f"u{i}.jpg", pixels, rng)
    return folder


def write_image(path: Path, pixels: np.ndarray, rng: np.random.Generator) -> None:
    noisy = pixels + rng.integers(50, size=(*SIZE, 3))
    Image.fromarray(noisy.astype(np.uint8)).save(path)
