"""A batch of maps, checked once, with a mask of the pixels that hold no inf or NaN."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from dgcl_ops._classifiers import WRAPPERS
from dgcl_ops._inputs import checked_labels, checked_tensor, per_pixel, plain
from dgcl_ops.ops import finite_rows
from dgcl_ops.ops._pixel_checks import MOST_SPATIAL
from dgcl_ops.projection_head import ProjectionHead

if TYPE_CHECKING:
    from dgcl_ops._step.strategy import Strategy
    from dgcl_ops.memory import MemoryBank


class Batch(NamedTuple):
    """What a step chooses from: maps and labels that fit each other and the bank. R is the number of pixels."""

    labels: Tensor  # [B, *S] or [M]
    features: Tensor  # [B, D, *S] or [M, D]
    confidence: Tensor | None  # [B, *S] or [M]; None if the strategy does not use it
    usable: Tensor  # [R] bool, False where a map holds an inf or NaN
    op: str  # for errors

    @classmethod
    def checked(
        cls,
        op: str,
        bank: MemoryBank,
        projections: Tensor | nn.Module,
        labels: Tensor,
        features: Tensor | None,
        confidence: Tensor | None = None,
        strategy: Strategy | None = None,
    ) -> tuple[Batch, Tensor | nn.Module]:
        """The batch and its projections, if they fit the bank. Tensors of a subclass become plain ones.

        Args:
            op: name for the errors.
            bank: the memory bank.
            projections: [B, E, *S] or [M, E], or a ProjectionHead.
            labels: [B, *S], [B, 1, *S] or [M].
            features: [B, D, *S] or [M, D]; None uses the projections.
            confidence: [B, *S], [B, 1, *S] or [M].
            strategy: decides whether confidence is needed. None never needs it, and refuses a head.

        Raises:
            TypeError: If a dtype does not fit.
            ValueError: If a shape or device does not fit.
        """
        if not isinstance(projections, Tensor):
            _check_head(op, bank, projections, strategy)
            if features is None:
                raise ValueError(f"{op}: features is required with a ProjectionHead")
            if type(features) is not Tensor:
                features = checked_tensor(op, "features", features)
            maps = {"features": features}
        else:
            if features is None:
                if bank.feature_dim != bank.projection_dim:
                    raise ValueError(
                        f"{op}: features is required because feature_dim {bank.feature_dim} differs from "
                        f"projection_dim {bank.projection_dim}"
                    )
                features = projections
            same = features is projections
            if type(projections) is not Tensor:
                projections = plain(projections)
            if type(features) is not Tensor:
                features = projections if same else checked_tensor(op, "features", features)
            maps = {"projections": projections, "features": features}
        labels = _check_maps(op, bank, maps, labels)
        needed = strategy is not None and strategy.by_confidence
        if confidence is not None:
            confidence = checked_tensor(op, "confidence", confidence)
            if not confidence.is_floating_point():
                raise ValueError(
                    f"{op}: confidence must be a float tensor of the labels' shape {list(labels.shape)}, "
                    f"got {confidence.dtype} {list(confidence.shape)}"
                )
            rule = ", the shape of the labels"
            confidence = per_pixel(op, "confidence", confidence, labels.shape, rule)
        elif strategy is not None and needed:
            raise ValueError(
                f"{op}: confidence is required with anchors={strategy.anchors!r}, keys={strategy.keys!r}"
            )
        if not needed:
            confidence = None
        others = None
        if isinstance(projections, Tensor) and projections is not features:
            others = projections
        with torch.no_grad():
            usable = finite_rows(features, others, confidence)
        return cls(labels, features, confidence, usable, op), projections

    def one_ignored_pixel(self, ignore_index: int) -> Batch:
        """Replaces a batch without pixels, which stays connected to it. The pixel changes nothing."""
        features = zero_row(self.features)
        label = torch.full((1,), ignore_index, dtype=torch.int64, device=features.device)
        confidence = None if self.confidence is None else self.confidence.new_zeros(1)
        usable = self.usable.new_ones(1)
        return Batch(label, features, confidence, usable, self.op)


def zero_row(maps: Tensor) -> Tensor:
    """[1, D] zeros, with a gradient to maps without pixels."""
    return maps.new_zeros((1, maps.shape[1])) + maps.sum()


def _check_head(op: str, bank: MemoryBank, projections: object, strategy: Strategy | None) -> None:
    """Raises unless `projections` is a head that fits the bank and the strategy."""
    head = projections
    # Wrappers have one child. DataParallel is not unwrapped, since each replica would see different rows.
    while isinstance(head, nn.Module) and not isinstance(head, nn.DataParallel):
        if list(head._modules) not in WRAPPERS:
            break
        (head,) = head._modules.values()
    if not isinstance(head, ProjectionHead):
        allowed = "a tensor" if strategy is None else "a tensor or a ProjectionHead"
        raise TypeError(f"{op}: projections must be {allowed}, got {type(head).__name__}")
    if strategy is None:
        raise TypeError(
            f"{op}: projections must be a tensor, got a ProjectionHead; pass head(features)"
        )
    if strategy.keys == "average":
        raise ValueError(
            f"{op}: keys='average' is not supported with a ProjectionHead as projections, since that mean needs the "
            "projections of all candidates; pass head(features)"
        )
    theirs, ours = (head.in_channels, head.out_channels), (bank.feature_dim, bank.projection_dim)
    if theirs != ours:
        raise ValueError(
            f"{op}: projections must be a ProjectionHead from {ours[0]} to {ours[1]} channels, got one from "
            f"{theirs[0]} to {theirs[1]}"
        )
    weight = getattr(head.layers[0], "weight", None)  # not a parameter while FSDP has flattened it
    if isinstance(weight, Tensor) and weight.device != bank.counts.device:
        raise ValueError(
            f"{op}: the ProjectionHead must be on the bank's device {bank.counts.device}, got {weight.device}; "
            "move the module with .to(device)"
        )


def _check_maps(op: str, bank: MemoryBank, maps: dict[str, Tensor], labels: Tensor) -> Tensor:
    """The labels [B, *S] or [M], if maps and labels fit each other and the bank."""
    for name, tensor in maps.items():
        channels = bank.projection_dim if name == "projections" else bank.feature_dim
        if not tensor.is_floating_point():
            raise TypeError(f"{op}: {name} must have a float dtype, got {tensor.dtype}")
        if not 2 <= tensor.dim() <= 2 + MOST_SPATIAL or tensor.shape[1] != channels:
            last = tensor.dim() > 2 and tensor.shape[-1] == channels
            fix = f"; use {name}.movedim(-1, 1), since its channels are last" if last else ""
            raise ValueError(
                f"{op}: {name} must have shape [B, {channels}, *S] with 1 to {MOST_SPATIAL} spatial dimensions, or "
                f"[M, {channels}], got {list(tensor.shape)}{fix}"
            )
    labels = checked_labels(op, labels)
    first, *others = maps.values()
    size = [*first.shape[:1], *first.shape[2:]]
    if any(list(other.shape[:1] + other.shape[2:]) != size for other in others):
        raise ValueError(
            f"{op}: features must have the size of the projections {list(first.shape)}, except for the channels, "
            f"got {list(maps['features'].shape)}"
        )
    labels = per_pixel(op, "labels", labels, size, ", one for each pixel of the maps")
    device = bank.counts.device
    for name, tensor in (*maps.items(), ("labels", labels)):
        if tensor.device != device:
            raise ValueError(
                f"{op}: {name} must be on the bank's device {device}, got {tensor.device}; "
                "move the module with .to(device)"
            )
    return labels
