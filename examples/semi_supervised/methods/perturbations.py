"""Perturbations of feature maps [B, D, h, w].

Random numbers come from PyTorch's generator, which the trainer seeds at each step.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def noisy(maps: Tensor, limit: float = 0.3) -> Tensor:
    """Returns z + z n. n is uniform in [-limit, limit], drawn per channel and pixel, and the same for all images."""
    return maps + maps * torch.empty_like(maps[:1]).uniform_(-limit, limit)


def without_strongest(maps: Tensor, low: float = 0.7, high: float = 0.9) -> Tensor:
    """Sets the strongest pixels of each image to 0.

    A pixel's strength is its mean over the channels. The limit is a random share, from `low` to `high`, of the largest
    strength in the image.
    """
    strength = maps.mean(1, keepdim=True)
    share = torch.empty_like(strength[..., :1, :1]).uniform_(low, high)
    return maps * (strength <= share * strength.amax((2, 3), keepdim=True))


def cut_out(
    maps: Tensor, classes: Tensor, num_classes: int, background: int, share: float = 0.4
) -> Tensor:
    """Sets a random window in the bounding box of each predicted class to 0.

    Args:
        maps: [B, D, h, w].
        classes: [B, h, w], the predicted classes.
        num_classes: number of classes.
        background: a class that has no window.
        share: height and width of a window, as a share of the box's.
    """
    numbers = torch.arange(num_classes, device=maps.device)[:, None, None]
    present = (classes[:, None] == numbers) & (numbers != background)  # [B, C, h, w]
    rows, columns = (random_part(present.any(side), share) for side in (3, 2))
    cut = (rows[..., None] & columns[..., None, :]).any(1, keepdim=True)
    return maps * ~cut


def random_part(present: Tensor, share: float) -> Tensor:
    """Returns a random part of the interval from the first True to the last one, along the last dimension.

    Args:
        present: [..., n] bool.
        share: length of the part, as a share of the interval's.

    Returns:
        [..., n] bool. All are False where nothing is present.
    """
    size = present.shape[-1]
    places = torch.arange(size, device=present.device)
    first = torch.where(present, places, size).amin(-1, keepdim=True)
    last = torch.where(present, places, -1).amax(-1, keepdim=True)
    length = last - first + 1  # negative where nothing is present
    part = (share * length).round()
    start = first + (torch.rand(first.shape, device=first.device) * (length - part + 1)).floor()
    return (places >= start) & (places < start + part)


def adversarial(
    decode: Callable[[Tensor], Tensor],
    maps: Tensor,
    *,
    xi: float,
    size: float,
    per_pixel: bool,
) -> Tensor:
    """Finds a small perturbation that changes a decoder's probabilities most: virtual adversarial training.

        r = eps g / |g|,    g = gradient with respect to d of KL(p(z) || p(z + xi d)),    d random, |d| = 1

    An entry of d is about 1 / sqrt(D h w). With the published xi = 1e-6, z + xi d rounds to z in float32, and r is
    rounding noise. So this always runs in float32 or float64, and xi must be larger, such as 0.1.

    Args:
        decode: returns logits [B, C, h, w] for maps like `maps`.
        maps: z [B, D, h, w].
        xi: step of the finite difference.
        size: eps, the norm of r.
        per_pixel: whether |.| is the norm over the channels of a pixel. Otherwise, it is the norm over the whole map of
            an image, so the change of a pixel depends on the crop's size.

    Returns:
        r [B, D, h, w] without a gradient, in float32 or float64.
    """
    dimensions = (1,) if per_pixel else (1, 2, 3)

    def unit(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=dimensions, keepdim=True)
        return x / norm.clamp(min=torch.finfo(x.dtype).tiny)

    maps = maps.detach()
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    with torch.enable_grad(), torch.autocast(maps.device.type, enabled=False):
        direction = unit(torch.randn_like(maps)).requires_grad_()
        with torch.no_grad():
            probabilities = decode(maps).softmax(1)
        # KL without its first term, which does not depend on the direction
        divergence = -(probabilities * F.log_softmax(decode(maps + xi * direction), 1)).sum()
        [gradient] = torch.autograd.grad(divergence, direction)
    return size * unit(gradient)
