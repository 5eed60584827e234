"""Labels for the two losses: nearest resize, entropy-filtered pseudo labels.

Everything here is plain PyTorch with static shapes. Nothing synchronises with the host, so a training step that uses it
can be captured in a CUDA graph or compiled with `fullgraph=True`.

Reference: Wang et al., "Hunting Sparsity: Density-Guided Contrastive Learning for Semi-Supervised
Semantic Segmentation", CVPR 2023, section 3.2.
"""

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from dgcl_ops._inputs import checked_floats, checked_labels, checked_tensor, per_pixel
from dgcl_ops.schedules import (  # noqa: F401  also importable from here
    CLASSIFICATION_DROP,
    CONTRAST_DROP,
    CONTRAST_DROP_FLOOR,
    classification_drop_fraction,
    contrast_drop_fraction,
    ema_decay,
    linear_schedule,
    poly_learning_rate,
    training_progress,
)


def resize_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes a label map of any number of dimensions by nearest neighbour, with integer arithmetic only.

    Output pixel (i, j) is input pixel (floor(i H / h), floor(j W / w)), the rule of
    `torch.nn.functional.interpolate(mode="nearest")`. Labels are copied and never become floats, so large ids and the
    ignored value survive. The positions are integers too. `interpolate` multiplies by a rounded float32 scale, which
    for some sizes is one pixel too low where i H / h is a whole number. Most of these are enlargements, such as
    2 -> 82.

    Args:
        labels: [B, *S], [B, 1, *S] or [*S], any integer or boolean dtype. S has the length of `size`.
        size: the output size *s, such as `features.shape[2:]`: (h, w) for 2-D maps, (depth, h, w) for volumes.

    Returns:
        The labels at the new size, [B, *s] or [*s], with the same dtype and device.

    Raises:
        TypeError: If `labels` are not integers, or `size` is not a sequence of ints.
        ValueError: If `labels` have the wrong rank or no pixels, or a size is not positive.
    """
    op = "resize_labels"
    labels = checked_labels(op, labels, allow_bool=True)
    # A SymInt of a dynamic shape is not an int, so the check excludes other types instead.
    if (
        isinstance(size, (str, Tensor))
        or not isinstance(size, Sequence)
        or any(isinstance(side, (bool, float)) for side in size)
    ):
        raise TypeError(f"{op}: size must be a sequence of ints such as (h, w), got {size!r}")
    if len(size) == 0 or any(side < 1 for side in size):
        raise ValueError(f"{op}: size must hold positive ints such as (h, w), got {tuple(size)}")
    given = list(labels.shape)
    if labels.dim() == len(size) + 2 and given[1] == 1:
        labels = labels.squeeze(1)
    if labels.dim() not in (len(size), len(size) + 1):
        fix = "; for one-hot labels use labels.argmax(1)" if len(given) == len(size) + 2 else ""
        raise ValueError(
            f"{op}: labels must have {len(size)} spatial dimensions, as size {tuple(size)} has, and may have a batch "
            f"dimension, got {given}{fix}"
        )
    if 0 in labels.shape[-len(size) :]:
        raise ValueError(f"{op}: labels must have at least one pixel, got {given}")
    for dim, side in enumerate(size, start=labels.dim() - len(size)):
        places = torch.arange(side, device=labels.device) * labels.shape[dim] // side
        labels = labels.index_select(dim, places)
    return labels


def prediction_entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax over the classes, in nats.

    Computed in float32, or in float64 for float64 logits. A class at -inf has probability 0 and adds 0. A NaN or +inf
    logit gives NaN, and so does a pixel whose logits are all -inf.

    Args:
        logits: [B, C, *S] or [M, C], class scores before the softmax, of at least 2 classes.

    Returns:
        The entropy of each pixel, [B, *S] or [M], in [0, log C].

    Raises:
        TypeError: If `logits` are not floating point.
        ValueError: If `logits` have the wrong rank or fewer than 2 classes.
    """
    logits = _checked_logits("prediction_entropy", logits)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    entropy: Tensor = torch.special.entr(wide.softmax(dim=1)).sum(dim=1)
    return entropy


@torch.no_grad()
def entropy_filter(
    logits: Tensor,
    keep_fraction: float | Tensor,
    *,
    ignore_index: int = 255,
    valid_mask: Tensor | None = None,
) -> Tensor:
    """Turns a teacher's logits into pseudo labels and ignores the most uncertain pixels.

    A pixel's label is its argmax, the lowest class on ties. The pixel is ignored if its entropy is at or above the
    `keep_fraction` quantile of the batch. "At or above" is the paper's rule: pixels tied with the threshold are all
    ignored. The two ends are exact: 1 keeps every pixel, where a quantile would drop the maximum, and 0 keeps none.

    The quantile interpolates linearly, as `torch.quantile` does, over the pixels that are valid and not NaN. It works
    at any size, while `torch.quantile` of PyTorch 2.13 stops at 2**24 elements. Nothing synchronises with the host.

    Args:
        logits: [B, C, *S] or [M, C], the teacher's class scores before the softmax, of at least 2 classes. For a
            single channel x of a binary model, which predicts sigmoid(x), pass `torch.cat([-x, x], 1) / 2`.
        keep_fraction: fraction of pixels to keep, in [0, 1]. A 0-dim tensor may change from step to step without a
            recompilation. A tensor's value is clamped to [0, 1], and NaN keeps none.
        ignore_index: label of ignored pixels, outside [0, C).
        valid_mask: [B, *S], [B, 1, *S] or [M] bool. False marks padding (a crop's border, a CutMix hole), which is
            ignored and left out of the quantile. None marks all pixels as valid.

    Returns:
        The filtered labels, [B, *S] or [M] int64. A pixel with a NaN logit is always ignored.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, `keep_fraction` is outside [0, 1], or `ignore_index` is a class.

    Reference: Wang et al., CVPR 2023, section 3.2.
    """
    op = "entropy_filter"
    logits = _checked_logits(op, logits)
    keep = _checked_fraction(keep_fraction, logits.device)
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"entropy_filter: ignore_index must be an int, got {ignore_index!r}")
    if 0 <= ignore_index < logits.shape[1]:
        raise ValueError(
            f"entropy_filter: ignore_index must lie outside the classes [0, {logits.shape[1]}), "
            f"got {ignore_index}"
        )
    labels = logits.argmax(dim=1)  # [B, *S]
    entropy = prediction_entropy(logits)  # [B, *S]
    usable = ~entropy.isnan()
    if valid_mask is not None:
        mask = checked_tensor(op, "valid_mask", valid_mask, "a bool tensor")
        if mask.dtype != torch.bool:
            raise TypeError(f"{op}: valid_mask must be a bool tensor, got {mask.dtype}")
        usable = usable & per_pixel(op, "valid_mask", mask, labels.shape, "")
    certain = (entropy < _masked_quantile(entropy, keep, usable)) | (keep >= 1)
    return labels.masked_fill(~(certain & usable), ignore_index)


def _masked_quantile(values: Tensor, fraction: Tensor, usable: Tensor) -> Tensor:
    """Linearly interpolated quantile of `values[usable]`, without a size limit or a host sync.

    The position fraction * (n - 1) is a float64. float32 has no odd integers above 2**24, which would move the
    threshold of a large batch. Unusable entries sort last as +inf, so the first n entries are the usable ones, and n
    stays on the device.

    Args:
        values: any shape. Usable entries are finite.
        fraction: 0-dim tensor in [0, 1].
        usable: bool, the shape of `values`.

    Returns:
        A 0-dim tensor of the dtype of `values`; +inf or NaN if nothing is usable.
    """
    if values.numel() == 0:
        return values.new_full((), math.inf)
    ordered = values.masked_fill(~usable, math.inf).flatten().sort().values
    position = fraction * (usable.sum() - 1).clamp_min(0)
    below = position.floor()
    indices = torch.stack([below, position.ceil()]).long()
    low, high = ordered.index_select(0, indices).to(position.dtype).unbind()
    return torch.lerp(low, high, position - below).to(values.dtype)


def _checked_logits(op: str, logits: Tensor) -> Tensor:
    logits = checked_floats(op, "logits", logits)
    if logits.dim() < 2:
        raise ValueError(
            f"{op}: logits must have shape [B, C, *S] or [M, C], got {list(logits.shape)}"
        )
    if logits.shape[1] < 2:
        raise ValueError(
            f"{op}: logits must have at least 2 classes, got {list(logits.shape)}; for one channel of a sigmoid use "
            "torch.cat([-logits, logits], 1) / 2"
        )
    return logits


def _checked_fraction(fraction: float | Tensor, device: torch.device) -> Tensor:
    """The fraction as a 0-dim tensor on the device, in float64 if the device has it."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    if isinstance(fraction, Tensor):
        if fraction.dim() != 0:
            raise ValueError(
                f"entropy_filter: keep_fraction must be 0-dim, got {list(fraction.shape)}"
            )
        return fraction.detach().to(device, dtype, non_blocking=True).nan_to_num(0.0).clamp(0, 1)
    if not isinstance(fraction, (int, float, Real, torch.SymFloat)):
        raise TypeError(
            f"entropy_filter: keep_fraction must be a float or a 0-dim tensor, got {fraction!r}"
        )
    if not 0 <= fraction <= 1:
        raise ValueError(f"entropy_filter: keep_fraction must lie in [0, 1], got {fraction}")
    return torch.full((), fraction, dtype=dtype, device=device)
