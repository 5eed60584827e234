"""Reads images and labels in the formats of the data sets."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, for images in [0, 1]
IMAGE_TYPES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LABELS = 2**16  # number of values that a label PNG can hold
CITYSCAPES_IMAGE = "_leftImg8bit"  # suffix of Cityscapes' image names
# The ids in Cityscapes' files of its 19 classes, in the order of the train ids. All other ids are ignored.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
TRAIN_IDS = np.full(34, 255, dtype=np.uint8)
TRAIN_IDS[list(CITYSCAPES_IDS)] = range(len(CITYSCAPES_IDS))


class Sample(NamedTuple):
    """Paths of an image and its label: a PNG with a class per pixel, SBD's .mat, or Cityscapes' *_labelIds.png."""

    image: Path
    label: Path

    @property
    def name(self) -> str:
        """The image's name in lists."""
        return name_of(self.image)

    def read(self) -> tuple[Tensor, Tensor]:
        """Returns the image [3, H, W] in [0, 1] and the label [H, W] int64."""
        return read_image(self.image), torch.from_numpy(read_label(self).astype(np.int64))


def name_of(image: Path) -> str:
    """Returns an image's name in lists: "2007_000032", "aachen_000000_000019"."""
    return Path(image).stem.removesuffix(CITYSCAPES_IMAGE)


def batches(samples: Iterable) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields whole images with their labels, one at a time since their sizes may differ."""
    for sample in samples:
        image, label = sample.read()
        yield image[None], label[None]


def list_images(folder: Path) -> list[Path]:
    """Returns the images of a folder, sorted. A folder without images is an error."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_TYPES)
    if not images:
        raise ValueError(f"folder {folder} must hold images ({' '.join(IMAGE_TYPES)}), got none")
    return images


def read_image(path: Path) -> Tensor:
    """Reads an image as [3, H, W] float32 in [0, 1]. Raises ValueError if it cannot be read."""
    with _open(path) as image:
        if image.mode in ("I", "F"):
            raise ValueError(
                f"an image must have 8 or 16 bits per channel, got mode {image.mode} in {path}"
            )
        if image.mode.startswith("I;16"):  # `convert` would clip values above 255
            grey = _pixels(image, path).astype(np.float32) / 65535
            return torch.from_numpy(grey).expand(3, -1, -1).contiguous()
        pixels = _pixels(image, path, "RGB")
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def read_label(sample: Sample) -> np.ndarray:
    """Reads a label as [H, W] integers. A PNG with a palette, as in VOC, gives indices, not colours.

    Raises:
        ValueError: If the label cannot be read, or does not fit its image.
    """
    with _open(sample.image) as image:
        size = image.size
    if sample.label.suffix == ".mat":
        pixels = _read_sbd(sample.label)
    else:
        with _open(sample.label) as label:
            pixels = _pixels(label, sample.label)
    if pixels.ndim != 2 or pixels.dtype.kind not in "ui":
        raise ValueError(
            f"a label must have one channel of integers, got {pixels.dtype} {list(pixels.shape)} in {sample.label}"
        )
    if pixels.shape != size[::-1]:
        raise ValueError(
            f"a label must have its image's size {size[0]} x {size[1]}, "
            f"got {pixels.shape[1]} x {pixels.shape[0]} in {sample.label}"
        )
    limit = len(TRAIN_IDS) if sample.label.name.endswith("_labelIds.png") else LABELS
    for value in (pixels.min(), pixels.max()):
        if not 0 <= value < limit:
            raise ValueError(f"labels must lie in [0, {limit}), got {value} in {sample.label}")
    return TRAIN_IDS[pixels] if limit < LABELS else pixels


def _read_sbd(path: Path) -> np.ndarray:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except (MatReadError, ValueError, KeyError, TypeError):
        raise ValueError(f"cannot read {path} as a label of SBD (GTcls.Segmentation)") from None


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        raise ValueError(f"cannot read {path} as an image") from None


def _pixels(image: Image.Image, path: Path, mode: str | None = None) -> np.ndarray:
    try:
        return np.array(image.convert(mode) if mode else image)
    except (OSError, SyntaxError) as error:  # the file is truncated or damaged
        raise ValueError(f"cannot read {path} as an image: {error}") from None
