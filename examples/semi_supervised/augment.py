"""Weak and strong views. All random numbers come from the NumPy generator argument, none from global state."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from semi_supervised.images import MEAN

# Border colours. "mean" becomes exactly 0 after normalisation, as in the published runs.
BORDER_COLOURS = {"grey": (0.45, 0.45, 0.45), "mean": MEAN}
SCALE_DISTRIBUTIONS = ("uniform", "balanced")


def random_crop(
    image: Tensor,
    label: Tensor,
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    scale_distribution: str = "uniform",
    mirror: bool = False,
    border: int | None = None,
    border_colour: str = "grey",
) -> tuple[Tensor, Tensor]:
    """Draws the weak view: a random window of the image, resized to `size`.

    Args:
        image: [3, H, W] in [0, 1].
        label: [H, W] integers.
        size: height and width of the result.
        rng: source of the random numbers.
        scale: limits of the magnification. The window's size is `size / scale`.
        scale_distribution: distribution of the magnification, see `draw_scale`.
        mirror: whether to swap left and right with probability 1/2.
        border: label of the border around an image that is smaller than the window. None: no border, the window
            shrinks to fit, each side separately.
        border_colour: one of BORDER_COLOURS.

    Returns:
        Image [3, h, w] and label [h, w] int64.
    """
    magnification = draw_scale(rng, scale, scale_distribution)
    height, width = (round(side / magnification) for side in size)
    if border is not None:
        sides = border_sides(image, (height, width))
        image, label = with_border(image, sides, border_colour), F.pad(label, sides, value=border)
    limits = image.shape[-2:]
    height, width = min(height, limits[0]), min(width, limits[1])
    top, left = rng.integers(limits[0] - height + 1), rng.integers(limits[1] - width + 1)
    box = np.s_[..., top : top + height, left : left + width]
    swap = mirror and rng.random() < 0.5

    # Interpolation keeps 0 exact, but would round the mean colour.
    shift = colour_of_border("mean", image) if border_colour == "mean" else 0.0
    image = image[box] - shift
    image = F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0] + shift
    label = F.interpolate(label[box][None, None].float(), size, mode="nearest")[0, 0].long()
    return (image.flip(-1), label.flip(-1)) if swap else (image, label)


def draw_scale(rng: np.random.Generator, scale: tuple[float, float], distribution: str) -> float:
    """Draws a magnification.

    Args:
        rng: source of the random numbers.
        scale: its limits.
        distribution: "uniform", or "balanced" as published: below 1 with probability 1/2, uniform on either side.
    """
    low, high = scale
    if distribution == "balanced":
        low, high = (low, 1.0) if rng.random() < 0.5 else (1.0, high)
    return rng.uniform(low, high)


def border_sides(image: Tensor, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns left, right, top, bottom of the border that centres an image [..., H, W] in at least `size`."""
    down, across = (
        max(0, side - given) for side, given in zip(size, image.shape[-2:], strict=True)
    )
    return across // 2, across - across // 2, down // 2, down - down // 2


def with_border(image: Tensor, sides: tuple[int, int, int, int], colour: str) -> Tensor:
    """Adds a border: [..., 3, H, W] -> [..., 3, top + H + bottom, left + W + right]."""
    if not any(sides):
        return image
    left, right, top, bottom = sides
    height, width = image.shape[-2:]
    shape = (*image.shape[:-2], top + height + bottom, left + width + right)
    framed = colour_of_border(colour, image).expand(shape).clone()
    framed[..., top : top + height, left : left + width] = image
    return framed


def colour_of_border(colour: str, like: Tensor) -> Tensor:
    """Returns the colour, [3, 1, 1], on the device of `like`. It is not copied from the host: a copy would sync."""
    return torch.stack([like.new_full((1, 1), value) for value in BORDER_COLOURS[colour]])


def jitter(images: Tensor, rng: np.random.Generator, strength: float = 0.4) -> Tensor:
    """Changes contrast, saturation, brightness and tint of each image [B, 3, H, W] in [0, 1]."""

    def factor(strength: float, channels: int = 1) -> Tensor:
        drawn = rng.uniform(1 - strength, 1 + strength, (len(images), channels, 1, 1))
        return torch.from_numpy(drawn).to(images, non_blocking=True)

    mean = images.mean((1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, factor(strength))
    grey = images.mean(1, keepdim=True)
    images = torch.lerp(grey, images, factor(strength))
    return (images * factor(strength / 2) * factor(strength / 4, channels=3)).clamp(0, 1)


def cutmix(
    rng: np.random.Generator, *maps: Tensor | None, probability: float = 0.5, mode: str = "image"
) -> list[Tensor | None]:
    """Pastes a box of a neighbouring image into each image, at the same place in every map.

    Args:
        rng: source of the random numbers.
        maps: [B, ..., H, W] each: images, labels, ... All share B, H and W. The first must be a tensor. The others may
            be None and then stay None.
        probability: chance that an image, or the batch, is changed.
        mode: "image": each image is changed independently. Its box covers 0.1 to 0.5 of the area and comes from the
            previous image. "batch", as published: all images are changed, or none. Each box covers half of the area and
            comes from the next image.

    Returns:
        New maps in the same order.
    """
    count, height, width = len(maps[0]), *maps[0].shape[-2:]
    return paste(draw_boxes(rng, count, height, width, probability, mode), *maps)


class Box(NamedTuple):
    """A box that is copied from one image of a batch into another."""

    image: int
    source: int
    where: tuple  # an index [..., rows, columns]


def draw_boxes(
    rng: np.random.Generator, count: int, height: int, width: int, probability: float, mode: str
) -> list[Box]:
    """Draws the boxes of `count` images, see `cutmix`. Images without a box do not change."""
    boxes = []
    by_image, box_size = {"image": (True, box_of_a_part), "batch": (False, box_of_half)}[mode]
    changed = not by_image and rng.random() < probability
    for i in range(count):
        rows, columns = box_size(rng, height, width)
        top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
        if by_image:
            changed = rng.random() < probability
        if changed:
            where = np.s_[..., top : top + rows, left : left + columns]
            boxes.append(Box(i, (i - 1) % count if by_image else (i + 1) % count, where))
    return boxes


def paste(boxes: list[Box], *maps: Tensor | None) -> list[Tensor | None]:
    """Pastes boxes into maps [B, ..., H, W]. Returns new maps. None stays None."""
    mixed = [None if each is None else each.clone() for each in maps]
    for image, source, where in boxes:
        for new, old in zip(mixed, maps, strict=True):
            if old is not None:
                new[image][where] = old[source][where]
    return mixed


def box_of_a_part(rng: np.random.Generator, height: int, width: int) -> tuple[int, int]:
    """Draws rows and columns of a box with 0.1 to 0.5 of the area and an aspect ratio of 0.5 to 2."""
    area, ratio = rng.uniform(0.1, 0.5), rng.uniform(0.5, 2.0)
    rows = min(height, round(height * (area * ratio) ** 0.5))
    return rows, min(width, round(width * (area / ratio) ** 0.5))


def box_of_half(rng: np.random.Generator, height: int, width: int) -> tuple[int, int]:
    """Draws rows and columns of a box with half of the area and more than half of the columns, but not all.

    `width` must be at least 3.
    """
    columns = int(rng.integers(width // 2 + 1, width))
    return round(height * width / 2 / columns), columns
