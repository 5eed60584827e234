"""Reads images and labels in the formats of the data sets."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from semi_supervised.label_values import LABELS, LabelValues
from semi_supervised.listing import VOLUMES

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, for images in [0, 1]
CITYSCAPES_IMAGE = "_leftImg8bit"  # suffix of Cityscapes' image names
# The ids in Cityscapes' files of its 19 classes, in the order of the train ids. All other ids are ignored.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
TRAIN_IDS = np.full(34, 255, dtype=np.uint8)
TRAIN_IDS[list(CITYSCAPES_IDS)] = range(len(CITYSCAPES_IDS))
TURN = {  # by EXIF orientation: how viewers turn the picture
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
COLOUR_LISTS = ("labelmap.txt", "label_colors.txt", "class_dict.csv")  # of CVAT and CamVid
PNG_EXIF = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}


class Sample(NamedTuple):
    """An image and its label.

    Attributes:
        image: path.
        label: path: an image file with one value per pixel, SBD's .mat, or Cityscapes' *_labelIds.png.
        values: maps the values of the label to classes. None: they are the classes.
    """

    image: Path
    label: Path
    values: LabelValues | None = None

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


def read_image(path: Path) -> Tensor:
    """Reads an image as shown, [3, H, W] float32 in [0, 1]. Raises ValueError if it cannot be read."""
    with _open(path) as image:
        if image.mode.startswith("I;16"):  # `convert` would clip values above 255
            grey = _pixels(image, path).astype(np.float32) / 65535
            return torch.from_numpy(grey).expand(3, -1, -1).contiguous()
        _check_mode(image, path)
        pixels = _pixels(image, path, "RGB")
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def check_image(path: Path) -> None:
    """Reads an image to its end. Raises ValueError if that fails. A JPEG is decoded at an eighth of its size."""
    with _open(path) as image:
        _check_mode(image, path)
        image.draft(None, (1, 1))
        try:
            image.load()
        except Exception as error:
            raise ValueError(f"cannot read {path} as an image: {error}") from None


def read_label(sample: Sample) -> np.ndarray:
    """Reads a label as shown, [H, W] integers. Without colours, a palette as in VOC gives indices.

    Raises:
        ValueError: If the label cannot be read, or does not fit its image.
    """
    with _open(sample.image) as image:
        width, height = image.size
        orientation = _orientation(image)
    if orientation > 4:
        width, height = height, width
    values = sample.values
    if sample.label.suffix == ".mat":
        pixels = _read_sbd(sample.label)
    else:
        with _open(sample.label) as label:
            pixels = _pixels(label, sample.label, "RGB" if values and values.colours else None)
            if values and values.colours:
                pixels = values.classes(pixels, sample.label)
    if pixels.dtype.kind == "b":  # a PNG of 1 bit
        pixels = pixels.astype(np.uint8)
    if pixels.dtype.kind == "f" and np.array_equal(pixels, np.rint(pixels)):  # a TIFF of a GIS
        pixels = pixels.astype(np.int64)
    if pixels.ndim != 2 or pixels.dtype.kind not in "ui":
        raise ValueError(
            f"a label must have one channel of integers, got {pixels.dtype} {list(pixels.shape)} in {sample.label}"
            + _found_colours(pixels, sample.label)
        )
    if pixels.shape != (height, width):
        shown = f", as shown with EXIF orientation {orientation}" if orientation > 1 else ""
        raise ValueError(
            f"a label must have its image's size {width} x {height}{shown}, "
            f"got {pixels.shape[1]} x {pixels.shape[0]} in {sample.label}"
        )
    limit = len(TRAIN_IDS) if sample.label.name.endswith("_labelIds.png") else LABELS
    for value in (pixels.min(), pixels.max()):
        if not 0 <= value < limit:
            raise ValueError(f"labels must lie in [0, {limit}), got {value} in {sample.label}")
    pixels = TRAIN_IDS[pixels] if limit < LABELS else pixels
    return values.classes(pixels, sample.label) if values and not values.colours else pixels


def _found_colours(pixels: np.ndarray, path: Path) -> str:
    """Describes which colours a label contains, and how to use them."""
    if pixels.ndim != 3 or pixels.shape[2] < 3 or pixels.dtype != np.uint8:
        return ""
    colours = np.unique(pixels[..., :3].reshape(-1, 3), axis=0)
    shown = ", ".join(" ".join(map(str, colour)) for colour in colours[:6].tolist())
    more = f" and {len(colours) - 6} more" if colours[6:].size else ""
    lists = [
        parent / name
        for parent in path.parents[:3]
        for name in COLOUR_LISTS
        if (parent / name).is_file()
    ]
    advice = (
        f"colours={lists[0]} uses its list of colours"
        if lists
        else "to use colours, write a text file with a line like `128 0 0 car` for each class, and pass colours=FILE"
    )
    return f", in the colours {shown}{more}; {advice}"


def _read_sbd(path: Path) -> np.ndarray:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except (MatReadError, ValueError, KeyError, TypeError):
        raise ValueError(f"cannot read {path} as a label of SBD (GTcls.Segmentation)") from None


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        pages = _pages(image)
    except Image.DecompressionBombError:
        raise ValueError(
            f"{path} has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels, Pillow's limit; cut it into tiles"
        ) from None
    except FileNotFoundError:
        raise
    except Exception:  # decoders may raise anything on a damaged file
        raise ValueError(f"cannot read {path} as an image") from None
    if pages > 1:
        image.close()
        raise ValueError(
            f"an image must have one page, got {pages} pages of the same size in {path}; {VOLUMES}"
        )
    return image


def _pages(image: Image.Image) -> int:
    """Returns the number of pages, or 1 if the second page has another size: it is a smaller copy of the first."""
    if image.format not in ("TIFF", "GIF") or image.n_frames == 1:
        return 1
    first = image.size
    image.seek(1)
    second = image.size
    image.seek(0)
    return image.n_frames if second == first else 1


def _check_mode(image: Image.Image, path: Path) -> None:
    if image.mode in ("I", "F"):
        raise ValueError(
            f"an image must have 8 or 16 bits per channel, got mode {image.mode} in {path}"
        )


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8, without decoding the image. Pillow itself turns TIFFs."""
    if image.format == "TIFF" or (image.format == "PNG" and not PNG_EXIF & image.info.keys()):
        return 1
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF; the picture may be sound
        return 1
    return orientation if orientation in TURN else 1


def _pixels(image: Image.Image, path: Path, mode: str | None = None) -> np.ndarray:
    """Decodes an image and turns it as shown."""
    turn = TURN.get(_orientation(image))
    try:
        pixels = image.convert(mode) if mode else image
        return np.array(pixels if turn is None else pixels.transpose(turn))
    except Exception as error:  # the file is truncated or damaged
        raise ValueError(f"cannot read {path} as an image: {error}") from None
