"""What one step of the density-guided contrast chooses: candidates, anchors, keys, negatives, rows to push.

`select` chooses and changes nothing: called twice with the same state it returns the same tables.
`select_and_gather` also reads the chosen rows off the projections. The loss is then arithmetic on these
rows alone. Shapes are static, see `sampling`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dgcl_ops import _random
from dgcl_ops._step import sampling
from dgcl_ops._step.batch import Batch
from dgcl_ops._step.sampling import Rows, Segments, Table
from dgcl_ops.ops import _arguments, gather_rows

ANCHORS = ("low_density", "random", "low_confidence")
KEYS = ("high_density", "average", "high_confidence")
STARTS = ("per_class", "all_full")


@dataclass(frozen=True)
class Strategy:
    """How to choose. The fields are the arguments of DensityContrastLoss of the same names."""

    num_anchors: int
    num_keys: int
    num_negatives: int
    max_candidates: int
    anchors: str
    keys: str
    start: str
    disjoint: bool
    normalize_keys: bool
    ignore_index: int

    def __post_init__(self):
        op = "DensityContrastLoss"
        for name in ("num_anchors", "num_keys", "num_negatives", "max_candidates"):
            _arguments.positive_integer(op, name, getattr(self, name))
        _arguments.one_of(op, "anchors", self.anchors, ANCHORS)
        _arguments.one_of(op, "keys", self.keys, KEYS)
        _arguments.one_of(op, "start", self.start, STARTS)
        _arguments.integral(op, "ignore_index", self.ignore_index)
        if self.disjoint and self.keys == "average":
            raise ValueError(
                f"{op}: disjoint must be False with keys 'average', the mean of all candidates, anchors "
                f"among them, got {self.disjoint!r}"
            )

    @property
    def by_density(self) -> bool:
        return self.anchors == "low_density" or self.keys == "high_density"

    @property
    def by_confidence(self) -> bool:
        return self.anchors == "low_confidence" or self.keys == "high_confidence"


class Queries(NamedTuple):
    """Rows whose density is known."""

    rows: Rows
    features: Tensor  # [M, D]
    density: Tensor  # [M]


class Push(NamedTuple):
    """The rows of a batch that go into the bank. `select_and_gather` reads their projections."""

    pixels: Table  # [C, P]
    features: Tensor  # [C, P, D]
    density: Tensor  # [C, P]


class Choice(NamedTuple):
    """All that one step chooses. Tables hold pixels of the batch, `bank_keys` slots of the rings."""

    active: Tensor  # [C] bool, the classes that have a loss
    candidates: Rows  # rows that anchors and keys are chosen from
    candidate_counts: Tensor  # [C] int64, 0 where not active
    anchors: Table  # [C, A]
    keys: Table  # [C, K], counts 0 with keys "average"
    bank_keys: Table  # [C, K], counts 0 unless keys are "high_density"
    negatives: Table  # [C, N]
    push: Push | None
    anchor_density: Tensor | None  # [C, A], where densities were needed
    key_density: Tensor | None  # [C, K], likewise
    pixels: Tensor  # [C] int64, usable pixels of each class
    # Of the batch's other pixels, [3] int64: ignored; labelled, with an inf or NaN; with a label outside [0, C).
    passed_over: Tensor


@torch.no_grad()
def select(strategy: Strategy, bank, contrasted: Tensor, batch: Batch, push: bool) -> Choice:
    """Chooses, from the batch, the bank as it is, and the random state.

    The rows to push are the first of each class's random segment, and the candidates more of the same segment:
    where densities choose, those of the pushed rows are among them and are never computed twice.

    Args:
        strategy: how.
        bank: the memory bank, with the random state.
        contrasted: [C] bool, False for excluded classes.
        batch: the batch.
        push: whether rows to push are wanted.
    """
    pixel_count = batch.labels.numel()
    segments = _segments(bank, batch, strategy.ignore_index)
    ready = bank.ready()
    if strategy.start == "all_full":
        ready = (bank.ready(bank.capacity) | ~contrasted).all()
    active = contrasted & ready & (segments.counts > 0)

    # Candidates, and rows whose density is needed. Where densities choose, an active class needs those of its
    # candidates, which include its push; any other class those of its push.
    width = min(strategy.max_candidates, pixel_count)
    push_width = min(bank.share(), pixel_count)
    candidate_limits = torch.where(active, width, 0)
    push_limits = torch.where(contrasted, push_width if push else 0, 0)
    counts = torch.minimum(segments.counts, candidate_limits)
    candidate_size = min(pixel_count, bank.num_classes * width)
    queries = None
    if strategy.by_density:
        limits = torch.maximum(candidate_limits, push_limits)
        queries = _queries(bank, batch, segments, limits, candidate_size)
        candidates = queries.rows
    else:
        candidates = sampling.leading_rows(segments, candidate_limits, candidate_size)
        if push:
            size = min(pixel_count, bank.num_classes * push_width)
            queries = _queries(bank, batch, segments, push_limits, size)
    density = queries.density if strategy.by_density else None

    values = {"low_density": density, "high_density": density}
    if strategy.by_confidence:
        candidate_confidence = batch.confidence.reshape(-1)[candidates.pixels]
        values["low_confidence"] = values["high_confidence"] = candidate_confidence
    anchors, keys = _anchors_and_keys(
        strategy, candidates, counts, values.get(strategy.anchors), values.get(strategy.keys)
    )
    if strategy.keys == "high_confidence":
        # With `disjoint`, a class of one pixel has an anchor but no key.
        active = active & (keys.counts > 0)
    anchors = Table(anchors.index, torch.where(active, anchors.counts, 0))

    shape = (bank.num_classes, strategy.num_negatives)
    bits = _random.random_bits(bank.rng_state, bank.first_stream() + 1, shape)
    push_counts = torch.minimum(segments.counts, push_limits)
    return Choice(
        active=active,
        candidates=candidates,
        candidate_counts=counts,
        anchors=Table(candidates.pixels[anchors.index], anchors.counts),
        keys=Table(candidates.pixels[keys.index], keys.counts),
        bank_keys=_bank_keys(strategy, bank),
        negatives=sampling.draw_negatives(segments, bits),
        push=_push(queries, push_counts, push_width) if push else None,
        anchor_density=density[anchors.index] if strategy.by_density else None,
        key_density=density[keys.index] if strategy.by_density else None,
        pixels=segments.counts,
        passed_over=_passed_over(batch, segments, strategy.ignore_index),
    )


def rows_to_push(bank, batch: Batch, ignore_index: int) -> Push:
    """What `select` chooses to push, without a contrast and of all classes."""
    segments = _segments(bank, batch, ignore_index)
    width = min(bank.share(), batch.labels.numel())
    limits = torch.full_like(segments.counts, width)
    size = min(batch.labels.numel(), bank.num_classes * width)
    queries = _queries(bank, batch, segments, limits, size)
    return _push(queries, torch.minimum(segments.counts, limits), width)


def _segments(bank, batch: Batch, ignore_index: int) -> Segments:
    bits = _random.random_bits(bank.rng_state, bank.first_stream(), (batch.labels.numel(),))
    return sampling.partition(batch.labels, bank.num_classes, ignore_index, bits, batch.usable)


def _queries(bank, batch: Batch, segments: Segments, limits: Tensor, size: int) -> Queries:
    """The first limits[c] rows of each segment, at most `size` in all, with their densities."""
    rows = sampling.leading_rows(segments, limits, size)
    features = gather_rows(batch.features, rows.pixels)
    return Queries(rows, features, bank.density_of(features, rows.offsets))


def _push(queries: Queries, counts: Tensor, width: int) -> Push:
    """The first counts[c] <= width queries of each class."""
    row = sampling.front(queries.rows, counts, width).index
    pixels = Table(queries.rows.pixels[row], counts)
    return Push(pixels, queries.features[row], queries.density[row])


def _passed_over(batch: Batch, segments: Segments, ignore_index: int) -> Tensor:
    """See Choice. On the CPU no label lies outside: `partition` refuses it. Shape: [3]."""
    labelled = batch.labels.reshape(-1).to(torch.int64) != ignore_index
    used = (labelled & batch.usable).sum()
    return torch.stack(((~labelled).sum(), labelled.sum() - used, used - segments.offsets[-1]))


def _anchors_and_keys(
    strategy: Strategy,
    candidates: Rows,
    counts: Tensor,
    anchor_values: Tensor | None,
    key_values: Tensor | None,
) -> tuple[Table, Table]:
    """The rows of lowest `anchor_values`, or any without them, and the rows of highest `key_values`.

    Candidates stand in random order inside a class: "any" are the first ones. Of equal values, anchors take the
    first and keys the last.

    Shape: counts [C], values [M] -> tables of row numbers [C, A] and [C, K].
    """
    size = candidates.pixels.shape[0]
    num_anchors, num_keys = strategy.num_anchors, strategy.num_keys
    anchor_counts = counts.clamp(max=num_anchors)
    key_counts = counts.clamp(max=num_keys)
    if strategy.disjoint:
        share = counts * num_keys // (num_anchors + num_keys)
        share = torch.maximum(share, (counts > 1).to(share.dtype))
        key_counts = share.clamp(max=num_keys)
        anchor_counts = (counts - key_counts).clamp(max=num_anchors)
    if key_values is None:
        order = None
        keys = sampling.front(candidates, torch.zeros_like(counts), min(num_keys, size))
    else:
        order = sampling.order_by(key_values, candidates)
        keys = sampling.back(candidates, key_counts, min(num_keys, size), order)
    if strategy.disjoint:
        taken = torch.zeros(size + 1, dtype=torch.bool, device=counts.device)
        spare = torch.where(sampling.used_entries(keys), keys.index, size)
        taken = taken.scatter(0, spare.reshape(-1), True)[:size]
        anchor_values = key_values.new_zeros(()) if anchor_values is None else anchor_values
        order = sampling.order_by(torch.where(taken, torch.inf, anchor_values), candidates)
    elif anchor_values is None:
        order = None
    elif anchor_values is not key_values:
        order = sampling.order_by(anchor_values, candidates)
    anchors = sampling.front(candidates, anchor_counts, min(num_anchors, size), order)
    return anchors, keys


def _bank_keys(strategy: Strategy, bank) -> Table:
    """The slots of highest stored density; of equal ones, the lowest slots."""
    width = min(strategy.num_keys, bank.capacity)
    if strategy.keys != "high_density":
        slots = torch.zeros((bank.num_classes, width), dtype=torch.int64, device=bank.counts.device)
        return Table(slots, torch.zeros_like(bank.counts))
    return Table(bank.densest_slots(width), bank.counts.clamp(max=width))


# ---- the chosen rows ---------------------------------------------------------------------------------


class ChosenRows(NamedTuple):
    """Projections of the chosen pixels. The gradient flows to the anchors alone."""

    anchors: Tensor  # [C, A, E]
    keys: Tensor  # [C, E], one of each class
    negatives: Tensor  # [C, N, E]
    push: Tensor | None = None  # [C, P, E], in the dtype of the batch


def select_and_gather(
    strategy: Strategy, bank, contrasted: Tensor, batch: Batch, push: bool, dtype: torch.dtype
) -> tuple[Choice, ChosenRows]:
    """The choice of a step, and the chosen rows of the projections in `dtype`."""
    choice = select(strategy, bank, contrasted, batch, push)
    anchors = gather_rows(batch.projections, choice.anchors.index).to(dtype)
    with torch.no_grad():
        others = [choice.keys, choice.negatives, *([choice.push.pixels] if push else [])]
        widths = [table.index.shape[1] for table in others]
        rows = gather_rows(batch.projections, torch.cat([table.index for table in others], 1))
        keys, negatives, *pushed = rows.split(widths, dim=1)
        keys = _positive_keys(strategy, bank, batch, choice, keys.to(dtype))
        # A copy: the backward keeps the negatives, and a view would keep the pushed rows with them.
        negatives = negatives.to(dtype).contiguous()
    return choice, ChosenRows(anchors, keys, negatives, *pushed)


def _positive_keys(
    strategy: Strategy, bank, batch: Batch, choice: Choice, of_batch: Tensor
) -> Tensor:
    """The mean of the key rows of batch and bank: the estimate of each class's centre.

    Shape: of_batch [C, K, E] -> [C, E].
    """
    dtype = of_batch.dtype
    if strategy.keys == "average":
        total = _candidate_sums(strategy, choice, bank.num_classes, batch.projections, dtype)
        rows = bank.projections.to(dtype)
        weights = bank.held().to(dtype)
        if strategy.normalize_keys:
            weights = weights * _inverse_norms(rows, 2)
        total = total + torch.bmm(weights.unsqueeze(1), rows).squeeze(1)
        count = choice.candidate_counts + bank.counts
    else:
        total = _sum_of_used(strategy, of_batch, choice.keys)
        rows = bank.projection_rows(choice.bank_keys.index).to(dtype)
        total = total + _sum_of_used(strategy, rows, choice.bank_keys)
        count = choice.keys.counts + choice.bank_keys.counts
    return total / count.clamp(min=1).unsqueeze(1)


def _sum_of_used(strategy: Strategy, rows: Tensor, table: Table) -> Tensor:
    """[C, K, E] -> [C, E]. An entry without meaning may be NaN: it is replaced, not multiplied by 0."""
    if strategy.normalize_keys:
        rows = rows * _inverse_norms(rows, 2).unsqueeze(2)
    return torch.where(sampling.used_entries(table).unsqueeze(2), rows, 0).sum(1)


def _candidate_sums(
    strategy: Strategy, chosen: Choice, num_classes: int, projections: Tensor, dtype: torch.dtype
) -> Tensor:
    """Sum of the candidates' projections of each class, as a product with a one-hot matrix.

    Image by image, so that no second copy of the whole map exists; unlike atomic additions, a matrix product
    adds in the same order each time.

    Shape: projections [B, E, H, W] or [M, E] -> [C, E].
    """
    rows = chosen.candidates
    position = torch.arange(rows.pixels.shape[0], device=rows.pixels.device)
    first = torch.nn.functional.pad(rows.offsets[:-1], (0, 1))[rows.classes]
    limit = torch.nn.functional.pad(chosen.candidate_counts, (0, 1))[rows.classes]
    pixel_count = projections.numel() // projections.shape[1]
    # Rows that are no candidates write their mark into a spare place behind the last pixel.
    place = torch.where(position - first < limit, rows.pixels, pixel_count)
    member = torch.full((pixel_count + 1,), num_classes, device=place.device)
    member = member.scatter(0, place, rows.classes)[:pixel_count]
    images = (projections.t(),) if projections.dim() == 2 else projections.flatten(2).unbind(0)
    total = torch.zeros((num_classes, projections.shape[1]), dtype=dtype, device=place.device)
    class_index = torch.arange(num_classes, device=place.device)
    for image, classes in zip(
        images, member.view(len(images), -1), strict=False
    ):  # [E, H * W], [H * W]
        image = torch.where(classes < num_classes, image.to(dtype), 0)
        weights = (classes == class_index.unsqueeze(1)).to(dtype)
        if strategy.normalize_keys:
            weights = weights * _inverse_norms(image, 0)
        total = total + weights @ image.t()
    return total


def _inverse_norms(rows: Tensor, dim: int) -> Tensor:
    """1 / |x| along a dimension, 0 for a zero row."""
    norms = torch.linalg.vector_norm(rows, dim=dim)
    return torch.where(norms > 0, 1 / norms, 0)
