"""A folder of images and label PNGs as data to train on: checked before the first step, read as it goes."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from semi_supervised.augment import random_crop

IMAGE_TYPES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LABELS = 2**16  # values that a label PNG can hold
HELD_OUT = 5  # where there is no split, every fifth image is for the test


class Sample(NamedTuple):
    image: Path
    label: Path | None


class FolderData:
    """Few labelled and many unlabelled training images, and labelled images to evaluate on.

    Args:
        root: holds images/ and labels/, or train/, val/, test/ with both in each (val or test may be missing). A
            label is a PNG of its image's name, one channel, a class or `ignore_index` in each pixel.
        labelled: how many training images are used with their label, or which share, as text: "46", "0.125", "1/8".
        crop: height and width of the windows to train on.
        seed: of the choice of the labelled images.
        num_classes: by default one more than the largest label found.
        ignore_index: label of the pixels without one.
        unlabelled: a further folder of images without labels.
        mirror: whether images may be mirrored.
        shown_in: the labelled images are drawn again until so many of them show each class, with 40 pixels or more.

    Attributes:
        pixels: how many labelled pixels train each class: [C].
        val, test: samples to evaluate on; the same where there is only one such split.

    Raises:
        FileNotFoundError: a folder or a label is missing.
        ValueError: a label does not fit its image or holds a value that is no class, or there are too few images.
    """

    def __init__(
        self,
        root: Path,
        *,
        labelled: str,
        crop: tuple[int, int],
        seed: int,
        num_classes: int | None = None,
        ignore_index: int = 255,
        unlabelled: Path | None = None,
        mirror: bool = True,
        shown_in: int = 0,
    ):
        self.crop, self.ignore_index, self.mirror = crop, ignore_index, mirror
        splits = find_splits(Path(root))
        train = splits["train"]
        count = labelled_count(labelled, len(train))
        order = draw_order(train, count, seed, shown_in, ignore_index)
        self.labelled_samples = [train[i] for i in sorted(order[:count])]
        self.unlabelled_images = [train[i].image for i in sorted(order[count:])]
        if unlabelled is not None:
            self.unlabelled_images += list_images(Path(unlabelled))
        if not self.unlabelled_images:
            raise ValueError(
                f"--labelled must leave images to use without a label, got {labelled} of {len(train)}; "
                "or name a folder of further images with --unlabelled"
            )
        if not 0 <= ignore_index < LABELS:
            raise ValueError(f"--ignore-index must lie in [0, {LABELS}), got {ignore_index}")
        self.test = splits.get("test") or splits["val"]
        self.val = splits.get("val") or self.test
        self.pixels = self._check_labels(num_classes)
        self.num_classes = len(self.pixels)

    def _check_labels(self, num_classes):
        """Reads every label that will be used; returns how many labelled pixels train each class."""
        pixels = np.zeros(LABELS, dtype=np.int64)
        highest, where = -1, None
        labelled = set(self.labelled_samples)
        for sample in dict.fromkeys([*self.labelled_samples, *self.val, *self.test]):
            counts = np.bincount(read_label(sample).ravel(), minlength=self.ignore_index + 1)
            if sample in labelled:
                pixels[: len(counts)] += counts
            counts[self.ignore_index] = 0
            if counts.any() and counts.nonzero()[0][-1] > highest:
                highest, where = int(counts.nonzero()[0][-1]), sample.label
        if highest < 0:
            raise ValueError(f"labels must hold a class, got nothing but {self.ignore_index}")
        if num_classes is None:
            num_classes = highest + 1
        elif highest >= num_classes:
            raise ValueError(
                f"labels must lie in [0, {num_classes}) or equal --ignore-index {self.ignore_index}, "
                f"got {highest} in {where}"
            )
        if num_classes < 2:
            raise ValueError(f"there must be at least 2 classes, got {num_classes}")
        if self.ignore_index < num_classes:
            raise ValueError(
                f"--ignore-index must lie outside the classes [0, {num_classes}), got {self.ignore_index}; "
                f"the largest label is {highest}, in {where}"
            )
        return pixels[:num_classes]

    def description(self) -> dict:
        """What a resumed run must find again."""
        return {
            "labelled": [sample.image.name for sample in self.labelled_samples],
            "unlabelled": len(self.unlabelled_images),
            "crop": list(self.crop),
            "num_classes": self.num_classes,
            "ignore_index": self.ignore_index,
            "mirror": self.mirror,
        }

    def labelled(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A random batch: images [count, 3, h, w] in [0, 1], labels [count, h, w]."""
        chosen = rng.integers(len(self.labelled_samples), size=count)
        crops = [self._crop(*read_sample(self.labelled_samples[i]), rng) for i in chosen]
        images, labels = zip(*crops, strict=True)
        return torch.stack(images), torch.stack(labels)

    def unlabelled(self, count: int, rng: np.random.Generator) -> Tensor:
        """A random batch: images [count, 3, h, w] in [0, 1]."""
        chosen = rng.integers(len(self.unlabelled_images), size=count)
        images = (read_image(self.unlabelled_images[i]) for i in chosen)
        return torch.stack([self._crop(image, None, rng)[0] for image in images])

    def _crop(self, image, label, rng):
        return random_crop(image, label, self.crop, rng, scale=(0.8, 1.4), mirror=self.mirror)


def batches(samples: list[Sample]) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole images with their labels, one at a time, since their sizes may differ."""
    for sample in samples:
        image, label = read_sample(sample)
        yield image[None], label[None]


# ---- what is in the folder ----------------------------------------------------------------------


def find_splits(root: Path) -> dict[str, list[Sample]]:
    """The samples of train and of val or test; where the folder is not divided, every fifth image is for the test."""
    if not root.is_dir():
        raise FileNotFoundError(f"--data: there is no folder {root}")
    if (root / "train").is_dir():
        splits = {
            split: list_samples(root / split)
            for split in ("train", "val", "test")
            if (root / split).is_dir()
        }
        if len(splits) < 2:
            raise FileNotFoundError(f"--data: {root} has train/, it needs val/ or test/ as well")
        return splits
    if not (root / "images").is_dir():
        raise FileNotFoundError(
            f"--data: {root} must hold images/ and labels/, or train/ and test/ with both in each"
        )
    samples = list_samples(root)
    if len(samples) < HELD_OUT:
        raise ValueError(
            f"--data: {root / 'images'} must hold at least {HELD_OUT} images, got {len(samples)}"
        )
    shuffled = [samples[i] for i in np.random.default_rng(0).permutation(len(samples))]
    return {
        "train": shuffled[len(samples) // HELD_OUT :],
        "test": shuffled[: len(samples) // HELD_OUT],
    }


def list_samples(folder: Path) -> list[Sample]:
    """The images of folder/images with their labels of folder/labels."""
    samples = []
    for image in list_images(folder / "images"):
        label = folder / "labels" / f"{image.stem}.png"
        if not label.is_file():
            raise FileNotFoundError(
                f"image {image} has no label {label}; images without labels go into a folder of their own, "
                "named with --unlabelled"
            )
        samples.append(Sample(image, label))
    return samples


def draw_order(
    train: list[Sample], count: int, seed: int, shown_in: int, ignore_index: int
) -> np.ndarray:
    """A random order of the images, of which the first `count` show each class in `shown_in` images or more."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(train))
    if not shown_in:
        return order
    shown = np.zeros((len(train), LABELS), dtype=bool)
    for i, sample in enumerate(train):
        found = np.bincount(read_label(sample).ravel()) >= 40
        shown[i, : len(found)] = found
    shown[:, ignore_index] = False
    shown = shown[:, shown.any(0)]
    for _ in range(10_000):
        if (shown[order[:count]].sum(0) >= shown_in).all():
            return order
        order = rng.permutation(len(train))
    raise ValueError(
        f"--labelled must allow {shown_in} images of each class, got {count}, of which no draw of 10,000 has them"
    )


def list_images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_TYPES)
    if not images:
        raise ValueError(f"folder {folder} must hold images ({' '.join(IMAGE_TYPES)}), got none")
    return images


def labelled_count(text: str, available: int) -> int:
    """ "46" -> 46; "0.125" and "1/8" -> an eighth of those available."""
    try:
        amount = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f"--labelled must be a number or a share of the images, got {text}"
        ) from None
    count = int(amount) if amount >= 1 else round(amount * available)
    if count < 1:
        raise ValueError(
            f"--labelled must leave at least one labelled image, got {text} of {available}"
        )
    if count > available:
        raise ValueError(f"--labelled must be at most the {available} training images, got {text}")
    return count


# ---- reading ------------------------------------------------------------------------------------


def read_image(path: Path) -> Tensor:
    """[3, H, W] float32 in [0, 1]."""
    with _open(path) as image:
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def read_label(sample: Sample) -> np.ndarray:
    """[H, W] integers, of the image's size."""
    with _open(sample.image) as image:
        size = image.size
    with _open(sample.label) as label:
        pixels = np.array(label)
    if pixels.ndim != 2 or pixels.dtype.kind not in "ui":
        raise ValueError(
            f"a label must have one channel of integers, got {pixels.dtype} {list(pixels.shape)} in {sample.label}"
        )
    if pixels.shape != size[::-1]:
        raise ValueError(
            f"a label must have its image's size {size[0]} x {size[1]}, "
            f"got {pixels.shape[1]} x {pixels.shape[0]} in {sample.label}"
        )
    for value in (pixels.min(), pixels.max()):
        if not 0 <= value < LABELS:
            raise ValueError(f"labels must lie in [0, {LABELS}), got {value} in {sample.label}")
    return pixels


def read_sample(sample: Sample) -> tuple[Tensor, Tensor]:
    """[3, H, W] and [H, W] int64."""
    return read_image(sample.image), torch.from_numpy(read_label(sample).astype(np.int64))


def _open(path):
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        raise ValueError(f"cannot read {path} as an image") from None
