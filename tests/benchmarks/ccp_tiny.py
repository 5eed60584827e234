"""A small setting and small images, so that tests of the study of CCP take seconds."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]

from evidence import ccp  # noqa: E402, F401  first, since it finds the other modules
from evidence.ccp_settings import REHEARSAL  # noqa: E402

FEW, ALL = 4, 6  # labelled images
SMALL = {"bank_capacity": 64, "rows_per_push": 16, "max_candidates": 64, "num_anchors": 8}
TINY = replace(
    REHEARSAL,
    base=replace(REHEARSAL.base, batch=2, contrast=REHEARSAL.base.contrast | SMALL),
    crop=(32, 32),
    network={"feature_dim": 32},
    saved_every=3,
)


def draw_folder(folder):
    """Draws stripes of three classes: 6 + 2 + 2 labelled images, and 3 without labels."""
    rng = np.random.default_rng(0)
    for split, count in (("train", ALL), ("val", 2), ("test", 2), ("unlabelled", 3)):
        images, labels = folder / split / "images", folder / split / "labels"
        if split == "unlabelled":
            images, labels = folder / split, None
        images.mkdir(parents=True)
        if labels:
            labels.mkdir()
        for i in range(count):
            label = np.repeat([0, 1, 2], 12)[None].repeat(40, 0).astype(np.uint8)
            image = label[..., None] * 60 + rng.integers(60, size=(*label.shape, 3))
            Image.fromarray(image.astype(np.uint8)).save(images / f"{split}{i}.jpg")
            if labels:
                Image.fromarray(label).save(labels / f"{split}{i}.png")
