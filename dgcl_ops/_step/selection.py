"""What one step chooses: candidates, anchors, keys, negatives, rows to push.

`select` changes nothing: called twice with the same state it returns the same tables. `rows` then gets their
projections. Shapes are static, see `sampling`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dgcl_ops._step import sampling
from dgcl_ops._step.batch import Batch
from dgcl_ops._step.sampling import LeadingPixels, Segments, Table
from dgcl_ops._step.strategy import Strategy
from dgcl_ops.ops import class_table, draw_negatives, gather_rows, random_bits, sum_rows

if TYPE_CHECKING:
    from dgcl_ops.memory import MemoryBank


class Queries(NamedTuple):
    """Pixels with their features and densities."""

    pixels: LeadingPixels
    features: Tensor  # [M, D]
    density: Tensor  # [M]


class Push(NamedTuple):
    """The rows of a batch that enter the bank. `rows` gets their projections."""

    pixels: Table  # [C, P]
    features: Tensor  # [C, P, D]
    density: Tensor  # [C, P]


class Summary(NamedTuple):
    """What the diagnostics record of a choice."""

    pixels: Tensor  # [C] int64, usable pixels of each class
    candidates: Tensor  # [C] int64, 0 if not active
    anchors: Tensor  # [C] int64, 0 if not active
    keys: Tensor  # [C] int64, of the batch
    skipped: Tensor  # [3] int64, the other pixels, as in `Segments`
    # [C], sum over the anchors, and over the batch's keys; None if nothing is chosen by density
    anchor_density_sum: Tensor | None
    key_density_sum: Tensor | None


class Choice(NamedTuple):
    """All that one step chooses. Tables hold pixels of the batch, `bank_keys` holds slots of the rings."""

    active: Tensor  # [C] bool, classes that have a loss
    candidates: LeadingPixels  # anchors and keys are chosen from these
    candidate_counts: Tensor  # [C] int64, 0 if not active
    anchors: Table  # [C, A]
    keys: Table  # [C, K]; empty with keys "average"
    bank_keys: Table | None  # [C, K]; None unless keys are "high_density"
    negatives: Table  # [C, N]
    push: Push | None
    summary: Summary


@torch.no_grad()
def select(
    strategy: Strategy, bank: MemoryBank, included: Tensor, batch: Batch, push: bool
) -> Choice:
    """Chooses from the batch, given the bank and the random state.

    The rows to push are the first of each class's random segment. The candidates are more of the same segment. So the
    density of a pushed row that is also a candidate is computed once.

    Args:
        strategy: how to choose.
        bank: the memory bank, with the random state.
        included: [C] bool, False for excluded classes.
        batch: the batch.
        push: whether to choose rows to push.
    """
    pixel_count = batch.labels.numel()
    segments = _segments(bank, batch, strategy.ignore_index)
    ready = _ready(strategy, bank, included)

    # If anything is chosen by density, an active class needs the densities of its candidates, which include the rows to
    # push. Other classes need only the densities of the rows to push.
    width = min(strategy.max_candidates, pixel_count)
    push_width = min(bank.rows_per_rank, pixel_count)
    # A product with a mask is one launch on a GPU; torch.where with a number is two.
    candidate_limits = (included & ready) * width
    push_limits = included * (push_width if push else 0)
    counts = torch.minimum(segments.counts, candidate_limits)
    active = counts > 0
    candidate_size = min(pixel_count, bank.num_classes * width)
    queries = density = None
    if strategy.by_density:
        limits = torch.maximum(candidate_limits, push_limits)
        queries = _queries(bank, batch, segments, limits, candidate_size)
        candidates, density = queries.pixels, queries.density
    else:
        candidates = sampling.leading_pixels(segments, candidate_limits, candidate_size)
        if push:
            size = min(pixel_count, bank.num_classes * push_width)
            queries = _queries(bank, batch, segments, push_limits, size)

    values = {"low_density": density, "high_density": density}
    if batch.confidence is not None:
        confidence = batch.confidence.reshape(-1)[candidates.pixels]
        values["low_confidence"] = values["high_confidence"] = confidence
    (anchors, anchor_pixels), (keys, key_pixels) = _anchors_and_keys(
        strategy, candidates, counts, values.get(strategy.anchors), values.get(strategy.keys)
    )
    if strategy.keys == "high_confidence":
        # With `disjoint`, a class of one pixel has an anchor but no key.
        active = active & (keys.counts > 0)
        anchors = Table(anchors.index, anchors.counts * active)

    words = bank.num_classes * strategy.num_negatives
    bits = random_bits(bank.rng_state, bank._first_stream() + 1, words).view(bank.num_classes, -1)
    push_counts = torch.minimum(segments.counts, push_limits)
    return Choice(
        active=active,
        candidates=candidates,
        candidate_counts=counts,
        anchors=Table(anchor_pixels, anchors.counts),
        keys=Table(key_pixels, keys.counts),
        bank_keys=_bank_keys(strategy, bank),
        negatives=Table(*draw_negatives(segments.pixels, segments.counts, bits)),
        push=_push(queries, push_counts, push_width) if push and queries is not None else None,
        summary=Summary(
            pixels=segments.counts,
            candidates=counts,
            anchors=anchors.counts,
            keys=keys.counts,
            skipped=segments.skipped,
            anchor_density_sum=_used_sum(density, anchors),
            key_density_sum=_used_sum(density, keys),
        ),
    )


def rows_to_push(bank: MemoryBank, batch: Batch, ignore_index: int) -> Push:
    """The rows that `select` would push, from all classes."""
    segments = _segments(bank, batch, ignore_index)
    width = min(bank.rows_per_rank, batch.labels.numel())
    limits = torch.full_like(segments.counts, width)
    size = min(batch.labels.numel(), bank.num_classes * width)
    queries = _queries(bank, batch, segments, limits, size)
    return _push(queries, torch.minimum(segments.counts, limits), width)


def _ready(strategy: Strategy, bank: MemoryBank, included: Tensor) -> Tensor:
    """[C] bool, or [] if the classes start together."""
    if strategy.start == "all_full":
        return (bank.counts >= included * bank.capacity).all()
    return bank.ready()


def _segments(bank: MemoryBank, batch: Batch, ignore_index: int) -> Segments:
    bits = random_bits(bank.rng_state, bank._first_stream(), batch.labels.numel())
    return sampling.partition(
        batch.labels, batch.usable, bits, bank.num_classes, ignore_index, op=batch.op
    )


def _queries(
    bank: MemoryBank, batch: Batch, segments: Segments, limits: Tensor, size: int
) -> Queries:
    """The first limits[c] pixels of each segment, at most `size` in all, with their densities."""
    pixels = sampling.leading_pixels(segments, limits, size)
    features = gather_rows(batch.features, pixels.pixels)
    return Queries(pixels, features, bank.density_of(features, pixels.offsets))


def _push(queries: Queries, counts: Tensor, width: int) -> Push:
    """The first counts[c] <= width queries of each class."""
    (entries, _), pixels = _table(queries.pixels, counts, width)
    return Push(Table(pixels, counts), queries.features[entries], queries.density[entries])


def _used_sum(values: Tensor | None, table: Table) -> Tensor | None:
    """[C]: sum of values[table.index] over the used entries."""
    if values is None:
        return None
    return sum_rows(values.unsqueeze(1), table.index, table.counts).squeeze(1)


def _anchors_and_keys(
    strategy: Strategy,
    candidates: LeadingPixels,
    counts: Tensor,
    anchor_values: Tensor | None,
    key_values: Tensor | None,
) -> tuple[tuple[Table, Tensor], tuple[Table, Tensor]]:
    """The candidates of lowest `anchor_values`, and those of highest `key_values`.

    Without values, the anchors are the first candidates, which are in random order, and there are no keys. On ties,
    anchors take the first and keys the last.

    counts [C], values [M] -> tables of entries of `candidates`, [C, A] and [C, K], each with the entries' pixels.
    """
    size = candidates.pixels.shape[0]
    num_anchors, num_keys = strategy.num_anchors, strategy.num_keys
    anchor_counts = counts.clamp(max=num_anchors)
    key_counts = counts.clamp(max=num_keys)
    if strategy.disjoint:
        # Split a small class in proportion, with one key at least if it has two pixels.
        split = counts * num_keys // (num_anchors + num_keys)
        split = torch.maximum(split, (counts > 1).to(split.dtype))
        key_counts = split.clamp(max=num_keys)
        anchor_counts = (counts - key_counts).clamp(max=num_anchors)
    if key_values is None:
        order, key_pixels = None, counts.new_empty((counts.shape[0], 0))
        keys = Table(key_pixels, torch.zeros_like(counts))
    else:
        order = sampling.order_by(key_values, candidates)
        keys, key_pixels = _table(candidates, key_counts, min(num_keys, size), order, last=True)
    if strategy.disjoint:
        # Keys sort last. Unused entries write to a spare slot past the end.
        taken = torch.zeros(size + 1, dtype=torch.bool, device=counts.device)
        marked = torch.where(sampling.unused_entries(keys), size, keys.index)
        taken = taken.scatter(0, marked.reshape(-1), True)[:size]
        values = (
            taken.new_zeros((), dtype=torch.float32) if anchor_values is None else anchor_values
        )
        order = sampling.order_by(torch.where(taken, torch.inf, values), candidates)
    elif anchor_values is None:
        order = None
    elif anchor_values is not key_values:
        order = sampling.order_by(anchor_values, candidates)
    anchors = _table(candidates, anchor_counts, min(num_anchors, size), order)
    return anchors, (keys, key_pixels)


def _table(
    pixels: LeadingPixels,
    counts: Tensor,
    width: int,
    order: Tensor | None = None,
    last: bool = False,
) -> tuple[Table, Tensor]:
    """The first or last counts[c] <= width entries of each class in the given order, and their pixels [C, width]."""
    entries, entry_pixels = class_table(pixels.pixels, pixels.offsets, order, width, last)
    return Table(entries, counts), entry_pixels


def _bank_keys(strategy: Strategy, bank: MemoryBank) -> Table | None:
    """The slots of highest stored density. Ties go to the lower slot."""
    if strategy.keys != "high_density":
        return None
    return Table(*bank.rings.topk_density(bank, min(strategy.num_keys, bank.capacity)))
