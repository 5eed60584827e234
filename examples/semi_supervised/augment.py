"""Weak and strong views. All random numbers come from the NumPy generator that is passed in, none from global state."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def random_crop(
    image: Tensor,
    label: Tensor | None,
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    mirror: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The weak view: a window somewhere in the image, resized to `size`, mirrored half the time if `mirror`.

    Args:
        image: [3, H, W] in [0, 1].
        label: [H, W] integers, or None.
        size: (height, width) of the result.
        rng: source of the random numbers; their number does not depend on `label`.
        scale: limits of the magnification; the window has the size `size / scale`, and fits into the image.
        mirror: whether left and right may be swapped.
    """
    limits = image.shape[-2:]
    magnification = rng.uniform(*scale)
    height, width = (
        min(limit, round(side / magnification)) for limit, side in zip(limits, size, strict=True)
    )
    top, left = rng.integers(limits[0] - height + 1), rng.integers(limits[1] - width + 1)
    box = np.s_[..., top : top + height, left : left + width]
    swap = mirror and rng.random() < 0.5

    image = F.interpolate(image[box][None], size, mode="bilinear", align_corners=False)[0]
    if label is not None:
        label = F.interpolate(label[box][None, None].float(), size, mode="nearest")[0, 0].long()
    if swap:
        image, label = image.flip(-1), None if label is None else label.flip(-1)
    return image, label


def jitter(images: Tensor, rng: np.random.Generator, strength: float = 0.4) -> Tensor:
    """Changes contrast, saturation, brightness and tint of each image. [B, 3, H, W] in [0, 1] -> same."""

    def factor(strength, channels=1):
        drawn = rng.uniform(1 - strength, 1 + strength, (len(images), channels, 1, 1))
        return torch.from_numpy(drawn).to(images)

    mean = images.mean((1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, factor(strength))
    grey = images.mean(1, keepdim=True)
    images = torch.lerp(grey, images, factor(strength))
    return (images * factor(strength / 2) * factor(strength / 4, channels=3)).clamp(0, 1)


def cutmix(
    rng: np.random.Generator,
    *maps: Tensor,
    probability: float = 0.5,
    area: tuple[float, float] = (0.1, 0.5),
) -> list[Tensor]:
    """Pastes a box of each image's neighbour into it, the same box in each map (images, pseudo labels, ...).

    Args:
        rng: source of the random numbers.
        maps: [B, ..., H, W] each, of the same B, H, W.
        probability: of an image being changed.
        area: limits of the box's share of the image.
    """
    mixed = [each.clone() for each in maps]
    count, height, width = len(maps[0]), *maps[0].shape[-2:]
    for i in range(count):
        share, ratio = rng.uniform(*area), rng.uniform(0.5, 2.0)
        rows = min(height, round(height * (share * ratio) ** 0.5))
        columns = min(width, round(width * (share / ratio) ** 0.5))
        top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
        if rng.random() < probability:
            box = np.s_[..., top : top + rows, left : left + columns]
            for new, old in zip(mixed, maps, strict=True):
                new[i][box] = old[i - 1][box]
    return mixed
