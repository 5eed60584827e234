"""What the pictures of `viz` show: densities of features in a bank, of pixels, of the bank itself; anchors and keys."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dgcl_ops._step import sampling, selection
from dgcl_ops._step.batch import Batch, finite_rows
from dgcl_ops.losses import DensityContrastLoss
from dgcl_ops.memory import MemoryBank


def check_shape(function: str, name: str, values, shape: list[int]) -> None:
    if values is not None and list(values.shape) != shape:
        raise ValueError(
            f"viz.{function}: {name} must have shape {shape}, got {list(values.shape)}"
        )


@torch.no_grad()
def feature_density(bank: MemoryBank, features: Tensor, labels: Tensor) -> Tensor:
    """Density of each feature in the bank of its class; 0 where there is no such class or it is not ready.

    Shape: features [N, D], labels [N] -> [N].
    """
    check_shape("feature_density", "labels", labels, [len(features)])
    known = (labels >= 0) & (labels < bank.num_classes)
    classes = torch.where(known, labels.long(), bank.num_classes)
    order = classes.argsort(stable=True)[: int(known.sum())]
    counts = classes.bincount(minlength=bank.num_classes + 1)[:-1]
    offsets = F.pad(counts.cumsum(0), (1, 0))  # [C + 1], where each class begins
    found = bank.density_of(features[order].contiguous(), offsets)
    return found.new_zeros(len(features)).index_copy(0, order, found)


@torch.no_grad()
def density_map(
    bank: MemoryBank, features: Tensor, labels: Tensor, size: tuple[int, int]
) -> Tensor:
    """`feature_density` of each pixel of feature maps, interpolated to `size`; 0 where there is none.

    Args:
        bank: a loss's `bank`. It holds the student's features: give those of the student.
        features: maps of the network.
        labels: of the maps' size, labels or predictions; see `resize_labels`.
        size: (H, W) of the result, that of the images.

    Shape: features [B, D, h, w], labels [B, h, w] -> [B, H, W].
    """
    check_shape("density_map", "labels", labels, [len(features), *features.shape[2:]])
    rows = features.permute(0, 2, 3, 1).flatten(0, 2)
    shape = len(features), 1, *features.shape[-2:]
    density = feature_density(bank, rows, labels.flatten()).view(shape)
    known = (labels >= 0) & (labels < bank.num_classes)
    known = known & bank.ready()[torch.where(known, labels, 0).long()]
    known = known[:, None].to(density.dtype)
    # Interpolated over the pixels with a density alone: a neighbour without one would pass for a sparse one.
    known, density = (
        F.interpolate(x, size, mode="bilinear", align_corners=False)
        for x in (known, density * known)
    )
    return torch.where(known >= 0.5, density / known, 0)[:, 0]


@torch.no_grad()
def bank_densities(bank: MemoryBank) -> Tensor:
    """The densities a bank holds, on the host, NaN where a slot is empty or its class not ready: a snapshot to keep
    for `plot_density_histograms`; of a sharded bank, those of this process. Shape: [C, capacity]."""
    held = bank.valid_slots() & bank.ready()[:, None]
    return torch.where(held, bank.density, torch.nan).cpu()


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
    """Which of these rows the loss would take as anchors and as keys, were they its batch. Changes nothing.

    Args:
        loss: its bank, readiness, excluded classes and strategy count.
        features, labels: the rows; `ignore_index` where there is no label.
        num_anchors, num_keys: of each class, by default the loss's. A picture shows fewer rows than a step looks at:
            give numbers in proportion.
        confidence: [N], needed if the strategy goes by confidence.

    Returns:
        Two [N] bool.

    Shape: features [N, D], labels [N].
    """
    numbers = {"num_anchors": num_anchors, "num_keys": num_keys}
    given = {name: number for name, number in numbers.items() if number is not None}
    strategy = replace(loss.strategy, **given)
    if strategy.by_confidence and confidence is None:
        raise ValueError(
            f"viz.anchors_and_keys: confidence must be given with anchors {strategy.anchors!r} and keys "
            f"{strategy.keys!r}, got None"
        )
    usable = finite_rows(features)
    if strategy.by_confidence:
        usable = usable & torch.isfinite(confidence)
    batch = Batch(features, labels, features, confidence, usable, "viz.anchors_and_keys")
    chosen = selection.select(strategy, loss.bank, loss.included, batch, push=False)
    marks = torch.zeros((2, len(features)), dtype=torch.bool, device=features.device)
    for mark, table in zip(marks, (chosen.anchors, chosen.keys), strict=True):
        mark[table.index[sampling.used_entries(table)]] = True
    return marks[0], marks[1]
