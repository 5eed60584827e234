"""The data of the pictures: densities of features, of pixels and of the bank; anchors and keys."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dgcl_ops._inputs import checked_labels, checked_tensor, per_pixel, plain
from dgcl_ops._step import sampling, selection
from dgcl_ops._step.batch import Batch
from dgcl_ops.losses import DensityContrastLoss
from dgcl_ops.memory import MemoryBank
from dgcl_ops.ops import finite_rows

# By the number of spatial dimensions.
INTERPOLATIONS = {1: "linear", 2: "bilinear", 3: "trilinear"}


def check_shape(function: str, name: str, values: Any, shape: list[int]) -> None:
    if values is not None and list(values.shape) != shape:
        raise ValueError(
            f"viz.{function}: {name} must have shape {shape}, got {list(values.shape)}"
        )


@torch.no_grad()
def feature_density(bank: MemoryBank, features: Tensor, labels: Tensor) -> Tensor:
    """The density of each feature in its class's bank; 0 if the label is not a class or the class is not ready.

    Args:
        bank: the loss's memory bank, `loss.bank`.
        features: [N, D].
        labels: [N], the class of each feature.

    Returns:
        The densities, [N].

    Raises:
        ValueError: If `labels` do not have the shape [N].
    """
    op = "viz.feature_density"
    features = checked_tensor(op, "features", features)
    labels = per_pixel(op, "labels", checked_labels(op, labels), [len(features)], "")
    known = (labels >= 0) & (labels < bank.num_classes)
    classes = torch.where(known, labels.long(), bank.num_classes)
    order = classes.argsort(stable=True)[: int(known.sum())]
    counts = classes.bincount(minlength=bank.num_classes + 1)[:-1]
    offsets = F.pad(counts.cumsum(0), (1, 0))  # [C + 1], where each class begins
    density = bank.density_of(features[order].contiguous(), offsets)
    return density.new_zeros(len(features)).index_copy(0, order, density)


@torch.no_grad()
def density_map(bank: MemoryBank, features: Tensor, labels: Tensor, size: Sequence[int]) -> Tensor:
    """The `feature_density` of each pixel of feature maps, interpolated to `size`. 0 marks a pixel without one.

    Args:
        bank: the loss's memory bank, `loss.bank`. It holds features of the student, so pass features of the student.
        features: [B, D, *s], feature maps of the network with one to three spatial dimensions.
        labels: [B, *s] or [B, 1, *s], labels or predictions at the maps' size; see `resize_labels`.
        size: *S of the result, the size of the images: (H, W) or (depth, H, W).

    Returns:
        The density maps, [B, *S]. Draw a volume slice by slice.

    Raises:
        ValueError: If `labels` do not have the shape of the maps without the channels, or there are more than three
            spatial dimensions.
    """
    op = "viz.density_map"
    features = checked_tensor(op, "features", features)
    mode = INTERPOLATIONS.get(features.dim() - 2)
    if mode is None or len(size) != features.dim() - 2:
        raise ValueError(
            f"{op}: features must have shape [B, D, *s] with one to three spatial dimensions, as many as size "
            f"{tuple(size)}, got {list(features.shape)}"
        )
    shape = len(features), *features.shape[2:]
    labels = per_pixel(op, "labels", checked_labels(op, labels), shape, "")
    rows = features.movedim(1, -1).flatten(0, -2)
    density = feature_density(bank, rows, labels.flatten()).view(shape)[:, None]
    known = (labels >= 0) & (labels < bank.num_classes)
    known = known & bank.ready()[torch.where(known, labels, 0).long()]
    known = known[:, None].to(density.dtype)
    # Interpolated over pixels with a density only. A neighbour without one would look like a sparse one.
    known, density = (
        F.interpolate(x, tuple(size), mode=mode, align_corners=False)
        for x in (known, density * known)
    )
    return torch.where(known >= 0.5, density / known, 0)[:, 0]


@torch.no_grad()
def bank_densities(bank: MemoryBank) -> Tensor:
    """A snapshot of a bank's densities for `plot_density_histograms`, on the host.

    NaN marks an empty slot or a class that is not ready. A sharded bank returns the densities of this rank.

    Args:
        bank: the loss's memory bank, `loss.bank`.

    Returns:
        The densities, [C, capacity].
    """
    has_density = bank.valid_slots() & bank.ready()[:, None]
    return torch.where(has_density, bank.density, torch.nan).cpu()


@torch.no_grad()
def anchors_and_keys(
    loss: DensityContrastLoss,
    features: Tensor,
    labels: Tensor,
    *,
    num_anchors: int | None = None,
    num_keys: int | None = None,
    confidence: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Marks the rows that the loss would choose as anchors and keys from this batch. The loss is not modified.

    Args:
        loss: the loss. Its bank, readiness, excluded classes and strategy count.
        features: [N, D], the rows.
        labels: [N]. `ignore_index` marks a row without a label.
        num_anchors: anchors per class. By default the loss's number. A picture shows fewer rows than a step has, so
            pass a proportionally smaller number.
        num_keys: keys per class, like `num_anchors`.
        confidence: [N]. Required if the strategy uses confidence.

    Returns:
        The pair (anchors, keys), each [N] bool.

    Raises:
        ValueError: If the strategy uses confidence, and `confidence` is None.
    """
    numbers = {"num_anchors": num_anchors, "num_keys": num_keys}
    given: dict[str, Any] = {name: n for name, n in numbers.items() if n is not None}
    strategy = replace(loss.strategy, **given)
    if strategy.by_confidence and confidence is None:
        raise ValueError(
            f"viz.anchors_and_keys: confidence is required with anchors {strategy.anchors!r} and keys "
            f"{strategy.keys!r}, got None"
        )
    op = "viz.anchors_and_keys"
    features = checked_tensor(op, "features", features)
    labels = per_pixel(op, "labels", checked_labels(op, labels), [len(features)], "")
    confidence = plain(confidence) if strategy.by_confidence and confidence is not None else None
    usable = finite_rows(features, None, confidence)
    batch = Batch(labels, features, confidence, usable, op)
    chosen = selection.select(strategy, loss.bank, loss.included, batch, push=False)
    marks = torch.zeros((2, len(features)), dtype=torch.bool, device=features.device)
    for mark, table in zip(marks, (chosen.anchors, chosen.keys), strict=True):
        mark[table.index[~sampling.unused_entries(table)]] = True
    return marks[0], marks[1]
