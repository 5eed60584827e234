"""Cross-entropy on pseudo labels, as a module."""

import torch
from torch import Tensor, nn

from dgcl_ops._inputs import checked_labels, checked_tensor, per_pixel
from dgcl_ops._precision import compute_dtype, no_autocast
from dgcl_ops.ops import _arguments


class PseudoLabelLoss(nn.Module):
    """Cross-entropy on pseudo labels, weighted by (all pixels / pixels kept).

    The more pixels the entropy filter ignores, the larger is the weight of the mean over the kept pixels.

    Args:
        ignore_index: label of ignored pixels.

    Raises:
        TypeError: If `ignore_index` is not an integer.
    """

    def __init__(self, ignore_index: int = 255):
        super().__init__()
        self.ignore_index = _arguments.integral("PseudoLabelLoss", "ignore_index", ignore_index)

    def extra_repr(self) -> str:
        return f"ignore_index={self.ignore_index}"

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            logits: [B, C, *S] or [M, C], any float dtype.
            labels: [B, *S], [B, 1, *S] or [M], any integer dtype.

        Returns:
            The loss as a scalar, computed in float64 for float64 logits, else in float32. It is 0, still connected to
            `logits`, if no pixel is kept.

        Raises:
            TypeError: If a dtype does not fit.
            ValueError: If the shapes do not fit.
        """
        op = "PseudoLabelLoss"
        logits = checked_tensor(op, "logits", logits)
        if not logits.is_floating_point():
            raise TypeError(f"{op}: logits must have a float dtype, got {logits.dtype}")
        if logits.dim() < 2:
            raise ValueError(
                f"{op}: logits must have shape [B, C, *S] or [M, C], got {list(logits.shape)}"
            )
        labels = checked_labels(op, labels)
        size = logits.shape[:1] + logits.shape[2:]
        labels = per_pixel(op, "labels", labels, size, ", one for each pixel of the logits")
        wide = compute_dtype(logits)
        with no_autocast(logits):
            labels = labels.to(torch.int64)
            total = torch.nn.functional.cross_entropy(
                logits.to(wide), labels, ignore_index=self.ignore_index, reduction="sum"
            )
            kept = (labels != self.ignore_index).sum().clamp(min=1)
            return (total / kept) * (labels.numel() / kept)
