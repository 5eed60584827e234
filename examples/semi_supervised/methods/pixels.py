"""Losses and shares of pixels that several methods use. Border pixels never count."""

from torch import Tensor
from torch.nn import functional as F

from dgcl_ops import entropy_filter


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
