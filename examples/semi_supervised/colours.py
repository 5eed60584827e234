"""Random colour operations, as in RandAugment. They do not move pixels, so the labels stay valid.

Each takes an image [3, H, W] in [0, 1] and returns another one. All random numbers come from the NumPy generator.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 255  # largest level of an 8-bit channel
BLUR_RADIUS = 6  # pixels, three times the largest sigma


def random_operations(images: Tensor, rng: np.random.Generator, most: int) -> Tensor:
    """Applies 1 to `most` random operations to each image [B, 3, H, W], with repetition."""
    changed = []
    for image in images:
        for _ in range(rng.integers(1, most + 1)):
            operation, low, high = OPERATIONS[rng.integers(len(OPERATIONS))]
            image = operation(image, rng.uniform(low, high))
        changed.append(image)
    return torch.stack(changed)


def grey(image: Tensor) -> Tensor:
    """Returns the luminance [1, H, W]."""
    red, green, blue = image
    return (0.299 * red + 0.587 * green + 0.114 * blue)[None]


def identity(image: Tensor, _: float) -> Tensor:
    return image


def autocontrast(image: Tensor, _: float) -> Tensor:
    """Stretches each channel to [0, 1]. A constant channel stays."""
    low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    return torch.where(high > low, (image - low) / (high - low).clamp(min=1e-6), image).clamp(0, 1)


def equalize(image: Tensor, _: float) -> Tensor:
    """Makes the 256 levels of each channel equally frequent. A constant channel stays."""
    levels = (image * LEVELS).round().long().flatten(1)
    counts = levels.new_zeros(len(levels), LEVELS + 1).scatter_add_(
        1, levels, torch.ones_like(levels)
    )
    below = (counts.cumsum(1) - counts).gather(1, levels)  # pixels of a lower level
    most = below.amax(1, keepdim=True)
    return torch.where(most > 0, below / most.clamp(min=1), image.flatten(1)).view_as(image)


def blur(image: Tensor, sigma: float) -> Tensor:
    """Blurs with a Gaussian. The border pixels are repeated."""
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=image.device)
    weights = torch.exp(-((offsets / sigma) ** 2) / 2)
    weights = (weights / weights.sum()).to(image.dtype)
    padded = F.pad(image[None], (BLUR_RADIUS,) * 4, mode="replicate")[0]
    for axis in (1, 2):
        padded = (padded.unfold(axis, len(weights), 1) * weights).sum(-1)
    return padded


def contrast(image: Tensor, factor: float) -> Tensor:
    return torch.lerp(grey(image).mean().expand_as(image), image, factor).clamp(0, 1)


def brightness(image: Tensor, factor: float) -> Tensor:
    return (image * factor).clamp(0, 1)


def saturation(image: Tensor, factor: float) -> Tensor:
    return torch.lerp(grey(image).expand_as(image), image, factor).clamp(0, 1)


def sharpness(image: Tensor, factor: float) -> Tensor:
    """Blends each pixel with the mean of its 3x3 window, in which it counts five times. Border pixels stay."""
    smooth = image.clone()
    inner = image[:, 1:-1, 1:-1]
    smooth[:, 1:-1, 1:-1] = (9 * F.avg_pool2d(image, 3, stride=1) + 4 * inner) / 13
    return torch.lerp(smooth, image, factor).clamp(0, 1)


def posterize(image: Tensor, bits: float) -> Tensor:
    """Keeps the highest bits of each 8-bit channel."""
    step = 2 ** (8 - math.floor(bits))
    return (image * LEVELS).round().div(step, rounding_mode="floor") * step / LEVELS


def solarize(image: Tensor, threshold: float) -> Tensor:
    """Inverts the values at or above the threshold."""
    return torch.where(image < threshold, image, 1 - image)


def hue(image: Tensor, turn: float) -> Tensor:
    """Rotates the hue by a part of the circle. Each pixel keeps its largest and its smallest channel value."""
    high, low = image.amax(0), image.amin(0)
    span = (high - low).clamp(min=1e-6)
    red, green, blue = image
    sixth = torch.where(
        high == red,
        (green - blue) / span,
        torch.where(high == green, 2 + (blue - red) / span, 4 + (red - green) / span),
    )
    position = torch.stack([(start + sixth + 6 * turn) % 6 for start in (5, 3, 1)])
    return high - (high - low) * torch.minimum(position, 4 - position).clamp(0, 1)


# Each operation with the range of its strength.
OPERATIONS = (
    (identity, 0.0, 1.0),
    (autocontrast, 0.0, 1.0),
    (equalize, 0.0, 1.0),
    (blur, 0.1, 2.0),
    (contrast, 0.05, 0.95),
    (brightness, 0.05, 0.95),
    (saturation, 0.05, 0.95),
    (sharpness, 0.05, 0.95),
    (posterize, 4.0, 8.0),
    (solarize, 0.0, 1.0),
    (hue, -0.5, 0.5),
)
