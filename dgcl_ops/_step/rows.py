"""The projections of the pixels that a step has chosen.

They are read from a map of projections, or a `ProjectionHead` computes them from the features of these pixels alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from dgcl_ops._precision import no_autocast
from dgcl_ops._step.keys import average_keys, mean_of_chosen
from dgcl_ops._step.sampling import Table, unused_entries
from dgcl_ops._step.selection import Choice, Push
from dgcl_ops._step.strategy import Strategy
from dgcl_ops.ops import finite_rows, gather_rows

if TYPE_CHECKING:
    from dgcl_ops.memory import MemoryBank


class ChosenRows(NamedTuple):
    """Projections of the chosen pixels. The gradient flows only to the anchors.

    Anchors, keys and negatives are in float32, or float64 for float64 projections.
    """

    anchors: Tensor  # [C, A, E]
    keys: Tensor  # [C, E], one of each class
    negatives: Tensor  # [C, N, E]
    push: Tensor | None = None  # [C, P, E], in the dtype of the projections


def chosen_rows(
    strategy: Strategy,
    bank: MemoryBank,
    projections: Tensor | nn.Module,
    features: Tensor,
    choice: Choice,
) -> tuple[Choice, ChosenRows]:
    """The chosen rows, and the choice, changed only if a head has computed an inf or NaN.

    Args:
        strategy: how the step chose.
        bank: the memory bank.
        projections: [B, E, *S] or [M, E], or the head, which is called under the caller's autocast.
        features: [B, D, *S] or [M, D], the head's input.
        choice: the chosen pixels.
    """
    tables = [choice.anchors, choice.keys, choice.negatives]
    if choice.push is not None:
        tables.append(choice.push.pixels)
    if isinstance(projections, Tensor):
        anchors = gather_rows(projections, choice.anchors.index)
        with torch.no_grad():
            index = torch.cat([table.index for table in tables[1:]], 1)
            others = gather_rows(projections, index)
    else:
        anchors, others = _projected(projections, features, choice, tables)
    with torch.no_grad(), no_autocast(choice.active):
        dtype = torch.promote_types(others.dtype, torch.float32)
        keys, negatives, *pushed = others.split([t.index.shape[1] for t in tables[1:]], dim=1)
        if isinstance(projections, Tensor) and strategy.keys == "average":
            keys = average_keys(bank, choice, projections, dtype, strategy.normalize_keys)
        else:
            keys = mean_of_chosen(bank, choice, keys, dtype, strategy.normalize_keys)
        # A copy: the backward keeps the negatives, and a view would keep the other rows with them.
        negatives = negatives.to(dtype).contiguous()
        if choice.push is not None and not isinstance(projections, Tensor):
            choice = _without_non_finite(choice, choice.push, pushed[0])
    return choice, ChosenRows(anchors.to(dtype), keys, negatives, *pushed)


def _projected(
    head: nn.Module, features: Tensor, choice: Choice, tables: list[Table]
) -> tuple[Tensor, Tensor]:
    """Calls the head once, on the rows of all tables. The first table holds the anchors.

    Rows that reach neither the loss nor the bank are padding to the batch norm: entries beyond the counts, and the
    negatives of classes without a loss.

    Returns [C, A, E] and [C, W, E]; only the former has a gradient.
    """
    anchors, keys, negatives, *pushed = tables
    reached = Table(negatives.index, torch.where(choice.active, negatives.counts, 0))
    padding = torch.cat([unused_entries(table) for table in (anchors, keys, reached, *pushed)], 1)
    index = torch.cat([table.index for table in tables], 1)
    # Padding may be NaN, and the gradient of a weight would multiply it by 0.
    chosen = gather_rows(features, index.flatten()).masked_fill_(padding.view(-1, 1), 0)
    rows = head(chosen, ~padding.flatten()).unflatten(0, index.shape)
    width = anchors.index.shape[1]
    # A copy: the backward keeps the anchors, and a view would keep the other rows with them.
    return rows[:, :width].contiguous(), rows[:, width:].detach()


def _without_non_finite(choice: Choice, push: Push, projections: Tensor) -> Choice:
    """The choice without the pushed rows of those classes whose projections [C, P, E] have an inf or NaN.

    One such row would spoil the keys until it is overwritten. The pixels count as skipped.
    """
    finite = finite_rows(projections.flatten(0, 1)).view(projections.shape[:2])
    spoilt = ~(unused_entries(push.pixels) | finite)
    number = spoilt.sum(1)
    kept = Table(push.pixels.index, torch.where(number > 0, 0, push.pixels.counts))
    summary = choice.summary._replace(
        pixels=choice.summary.pixels - number,
        skipped=choice.summary.skipped + torch.nn.functional.pad(number.sum().view(1), (1, 1)),
    )
    return choice._replace(push=push._replace(pixels=kept), summary=summary)
