"""A batch of maps, checked once, with a mask of the pixels that hold no inf or NaN."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dgcl_ops.ops import finite_rows

if TYPE_CHECKING:
    from dgcl_ops._step.strategy import Strategy
    from dgcl_ops.memory import MemoryBank


class Batch(NamedTuple):
    """Maps and labels that fit each other and the bank. R is the number of pixels."""

    projections: Tensor  # [B, E, H, W] or [M, E]
    labels: Tensor  # [B, H, W] or [M]
    features: Tensor  # [B, D, H, W] or [M, D]
    confidence: Tensor | None  # [B, H, W] or [M]; None if the strategy does not use it
    usable: Tensor  # [R] bool, False where a map holds an inf or NaN
    op: str  # for errors

    @classmethod
    @torch.no_grad()
    def checked(
        cls,
        op: str,
        bank: MemoryBank,
        projections: Tensor,
        labels: Tensor,
        features: Tensor | None,
        confidence: Tensor | None = None,
        strategy: Strategy | None = None,
    ) -> Batch:
        """The batch, if it fits the bank.

        Args:
            op: name for the errors.
            bank: the memory bank.
            projections: [B, E, H, W] or [M, E].
            labels: [B, H, W] or [M].
            features: [B, D, H, W] or [M, D]; None uses the projections.
            confidence: the labels' shape.
            strategy: decides whether confidence is needed. None never needs it.

        Raises:
            TypeError: If a dtype does not fit.
            ValueError: If a shape or device does not fit.
        """
        if features is None:
            if bank.feature_dim != bank.projection_dim:
                raise ValueError(
                    f"{op}: features is required because feature_dim {bank.feature_dim} differs from projection_dim "
                    f"{bank.projection_dim}"
                )
            features = projections
        _check_maps(op, bank, projections, labels, features)
        needed = strategy is not None and strategy.by_confidence
        if confidence is not None:
            if confidence.shape != labels.shape or not confidence.is_floating_point():
                raise ValueError(
                    f"{op}: confidence must be a float tensor of the labels' shape {list(labels.shape)}, "
                    f"got {confidence.dtype} {list(confidence.shape)}"
                )
        elif strategy is not None and needed:
            raise ValueError(
                f"{op}: confidence is required with anchors={strategy.anchors!r}, keys={strategy.keys!r}"
            )
        if not needed:
            confidence = None
        others = None if features is projections else features
        usable = finite_rows(projections, others, confidence)
        return cls(projections, labels, features, confidence, usable, op)

    def one_ignored_pixel(self, ignore_index: int) -> Batch:
        """Replaces a batch without pixels when other ranks wait for this one. The pixel changes nothing."""
        projections, features = (
            maps.new_zeros((1, maps.shape[1])) for maps in (self.projections, self.features)
        )
        label = torch.full((1,), ignore_index, dtype=torch.int64, device=projections.device)
        confidence = None if self.confidence is None else self.confidence.new_zeros(1)
        usable = self.usable.new_ones(1)
        return Batch(projections, label, features, confidence, usable, self.op)


def _check_maps(
    op: str, bank: MemoryBank, projections: Tensor, labels: Tensor, features: Tensor
) -> None:
    """Raises unless maps and labels fit each other and the bank."""
    for name, tensor, channels in (
        ("projections", projections, bank.projection_dim),
        ("features", features, bank.feature_dim),
    ):
        if not tensor.is_floating_point():
            raise TypeError(f"{op}: {name} must have a float dtype, got {tensor.dtype}")
        if tensor.dim() not in (2, 4) or tensor.shape[1] != channels:
            raise ValueError(
                f"{op}: {name} must have shape [B, {channels}, H, W] or [M, {channels}], "
                f"got {list(tensor.shape)}"
            )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{op}: labels must have an integer dtype, got {labels.dtype}")
    size = [*projections.shape[:1], *projections.shape[2:]]
    if list(features.shape[:1] + features.shape[2:]) != size:
        raise ValueError(
            f"{op}: features must have the height and width of the projections {list(projections.shape)}, "
            f"got {list(features.shape)}"
        )
    if list(labels.shape) != size:
        raise ValueError(
            f"{op}: labels must have shape {size}, one for each pixel of the maps, got "
            f"{list(labels.shape)}; use dgcl_ops.resize_labels to resize a label map"
        )
    device = bank.counts.device
    for name, tensor in (("projections", projections), ("features", features), ("labels", labels)):
        if tensor.device != device:
            raise ValueError(
                f"{op}: {name} must be on the bank's device {device}, got {tensor.device}; "
                "move the module with .to(device)"
            )
