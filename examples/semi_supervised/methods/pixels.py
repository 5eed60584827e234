"""Losses and shares of pixels that several methods use. Border pixels never count."""

import math
from dataclasses import fields
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from dgcl_ops import entropy_filter
from dgcl_ops.losses import MIN_TEMPERATURE
from semi_supervised.settings import check_types

# Options that lie in [0, 1].
SHARES = ("threshold", "weak_threshold", "dropout", "unreliable", "momentum", "ramp")
MAY_BE_ZERO = ("heads", "vat_heads", "operations")


def check_options(options: Any) -> None:
    """Raises TypeError or ValueError unless each option has its type and is finite and not negative.

    None is allowed where the type allows it. Thresholds and other shares must lie in [0, 1]. Integers must be at least
    1, temperatures at least MIN_TEMPERATURE. xi must be positive.
    """
    check_types(options)
    for each in fields(options):
        value = getattr(options, each.name)
        if value is None:
            continue
        if each.name in SHARES and not 0 <= value <= 1:
            raise ValueError(f"{each.name} must lie in [0, 1], got {value}")
        if each.type is int and value < 1 and each.name not in MAY_BE_ZERO:
            raise ValueError(f"{each.name} must be at least 1, got {value}")
        if each.name == "temperature" and not MIN_TEMPERATURE <= value < math.inf:
            raise ValueError(
                f"temperature must be finite and at least {MIN_TEMPERATURE}, got {value}"
            )
        if not 0 <= value < math.inf:
            raise ValueError(f"{each.name} must be finite and not negative, got {value}")
        if each.name == "xi" and value == 0:
            raise ValueError(f"xi must be positive, got {value}")


def most_likely(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the largest probability and its class, [B, H, W] each, for logits [B, C, H, W]. No gradient."""
    return logits.detach().softmax(1).max(1)


def mean_over(values: Tensor, counted: Tensor) -> Tensor:
    """Returns the mean of values [B, H, W] over the counted pixels, or 0 if there are none."""
    return (values * counted).sum() / counted.sum().clamp(min=1)


def share(kept: Tensor, inside: Tensor) -> Tensor:
    """Returns the share of the pixels inside that are kept."""
    return (kept & inside).sum() / inside.sum().clamp(min=1)


def confident_cross_entropy(logits: Tensor, labels: Tensor, kept: Tensor, inside: Tensor) -> Tensor:
    """Returns the cross-entropy of the kept pixels, summed and divided by the number of all pixels inside.

    Args:
        logits: [B, C, H, W].
        labels: [B, H, W].
        kept: [B, H, W] bool, the pixels that are learned.
        inside: [B, H, W] bool, False in borders.
    """
    each = F.cross_entropy(logits, labels, reduction="none")
    return mean_over(each * kept, inside)


def squared_differences(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the squared differences of probabilities, summed over the classes.

    Args:
        logits: [B, C, H, W].
        targets: [B, C, H, W], probabilities without a gradient.

    Returns:
        [B, H, W].
    """
    return (logits.softmax(1) - targets).square().sum(1)


def certain(logits: Tensor, share: float, inside: Tensor) -> Tensor:
    """Returns the pixels inside whose prediction has the lowest entropy.

    Args:
        logits: [B, C, H, W].
        share: the share of the pixels inside to return.
        inside: [B, H, W] bool, False in borders.

    Returns:
        [B, H, W] bool.
    """
    return entropy_filter(logits, share, ignore_index=-1, valid_mask=inside) >= 0
