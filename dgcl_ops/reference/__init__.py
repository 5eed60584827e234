"""Every formula in plain PyTorch: a deliberate second implementation of the compiled kernels.

It is the oracle of the tests, the baseline of the benchmarks, and the fallback on devices without a compiled kernel. It
works on any device and dtype. Ordinary autograd differentiates it.

Numerics, as in the kernels:
    compute type  float32, or float64 if any input is float64. Autocast is disabled inside.
    zero rows     have the unit row 0. Rows holding inf or NaN have the unit row NaN.
    neighbours    a row whose score is NaN or -inf is never one. A missing neighbour is -inf with index -1.
    ties          lowest index first, by a stable sort. `torch.topk` does not define the order of equal scores, and
                  gives different indices on different devices. The scores come from `matmul`. Their last bit may
                  depend on its tiling; the kernels' canonical sum does not.
Offsets and counts are copied to the host. Work is done in blocks of at most `CHUNK_ELEMENTS` scores, logits or
distances, or of one row. So no temporary exceeds the largest of 64 MiB, a float64 copy of an input, and k numbers per
query. The arguments are those of the raw operators, in their order.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dgcl_ops._precision import compute_dtype, no_autocast
from dgcl_ops.reference.pixels import class_table as class_table
from dgcl_ops.reference.pixels import draw_negatives as draw_negatives
from dgcl_ops.reference.pixels import finite_rows as finite_rows
from dgcl_ops.reference.pixels import leading_rows as leading_rows
from dgcl_ops.reference.pixels import mix as mix
from dgcl_ops.reference.pixels import partition_keys as partition_keys
from dgcl_ops.reference.pixels import random_bits as random_bits
from dgcl_ops.reference.sums import sum_rows as sum_rows

# 64 MiB of int64 indices or float64 scores, the widest numbers in a block.
CHUNK_ELEMENTS = 1 << 23


def rescue_scale(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The largest magnitude of each row, and the power of two that keeps its squares in range."""
    size = rows.detach().abs()
    if rows.shape[-1] == 0:  # a row without columns is a zero row
        size = pad(size, (0, 1))
    size = size.amax(-1, keepdim=True)
    bound, shift = (2.0**400, 2.0**800) if rows.dtype == torch.float64 else (2.0**48, 2.0**96)
    one = torch.ones_like(size)
    scale = torch.where(size > bound, one / shift, torch.where(size < 1 / bound, one * shift, one))
    return size, scale


def unit_rows(rows: Tensor) -> Tensor:
    """`x / |x|` for each row of [..., D], float32 or float64; 0 for a zero row, NaN for a row with inf or NaN.

    Zero rows and rows with inf or NaN propagate no gradient. Multiplying a row by any power of two changes nothing.
    """
    size, scale = rescue_scale(rows)
    usable = (size > 0) & (size < torch.inf)
    safe = torch.where(usable, rows * scale, 1.0)
    unit = safe / safe.square().sum(-1, keepdim=True).sqrt()
    return torch.where(usable, unit, torch.where(size == 0, 0.0, torch.nan))


def _segments(
    queries: Tensor, bank: Tensor, query_offsets: Tensor | None, bank_counts: Tensor | None
) -> Iterator[tuple[int, int, Tensor]]:
    """Yields (first query, one past the last, bank rows [n, D]) per class. Copies the offsets to the host."""
    if bank.dim() == 2:
        yield 0, queries.shape[0], bank
        return
    classes, rows, _ = bank.shape
    counts = [rows] * classes if bank_counts is None else bank_counts.tolist()
    offsets = query_offsets.tolist()  # type: ignore[union-attr]  # a grouped bank has them
    for c in range(classes):
        yield offsets[c], offsets[c + 1], bank[c, : counts[c]]


def _scores(queries: Tensor, bank: Tensor, metric: str) -> Tensor:
    """[m, D] x [n, D] -> [m, n]. For the cosine the rows are unit rows already."""
    if metric == "l2":
        return -torch.cdist(queries, bank, compute_mode="donot_use_mm_for_euclid_dist")
    return queries @ bank.T


def _pair_scores(queries: Tensor, rows: Tensor, metric: str) -> Tensor:
    """[m, 1, D] x [m, k, D] -> [m, k], with gradient 0 where an l2 distance is 0."""
    if metric == "l2":
        square = (queries - rows).square().sum(-1)
        return -torch.where(square > 0, square, 1.0).sqrt() * (square > 0)
    return (queries * rows).sum(-1)


def _select(
    queries: Tensor, bank: Tensor, k: int, metric: str, first_self: int | None
) -> tuple[Tensor, Tensor]:
    """Top-k of one chunk. `first_self` is the bank row of the first query, or None."""
    missing = queries.new_full((queries.shape[0], k), -torch.inf)
    if bank.shape[0] == 0:
        return missing, missing.new_full(missing.shape, -1, dtype=torch.int64)
    with torch.no_grad():
        scores = _scores(queries, bank, metric)
        scores.masked_fill_(scores.isnan(), -torch.inf)
        if first_self is not None:
            own = torch.arange(queries.shape[0], device=queries.device) + first_self
            columns = torch.arange(bank.shape[0], device=queries.device)
            excluded = (own[:, None] == columns) | (own[:, None] >= bank.shape[0])
            scores.masked_fill_(excluded, -torch.inf)
        ranked = torch.sort(scores, dim=1, descending=True, stable=True)
        values, indices = (t[:, :k] for t in ranked)
        indices = torch.where(values > -torch.inf, indices, -1)
        fewer = (0, k - values.shape[1])
        values, indices = pad(values, fewer, value=-torch.inf), pad(indices, fewer, value=-1)
    if torch.is_grad_enabled() and (queries.requires_grad or bank.requires_grad):
        # The selection has no gradient. Only the selected pairs are scored again, so nothing of size [m, n] is
        # stored, and no gradient of 0 * NaN comes from a NaN row.
        valid = indices >= 0
        rows = bank[indices.clamp(min=0)].masked_fill(~valid.unsqueeze(-1), 0.0)
        with_neighbours = queries.masked_fill(~valid.any(1, keepdim=True), 0.0).unsqueeze(1)
        values = torch.where(valid, _pair_scores(with_neighbours, rows, metric), missing)
    return values, indices


def knn_topk(
    queries: Tensor,
    bank: Tensor,
    k: int,
    metric: str = "cosine",
    query_offsets: Tensor | None = None,
    bank_counts: Tensor | None = None,
    exclude_self: bool = False,
    unit_bank: bool = False,
) -> tuple[Tensor, Tensor]:
    """The k best-scoring bank rows of each query: see `dgcl_ops.ops.knn_topk`."""
    dtype = compute_dtype(queries, bank)
    with no_autocast(queries):
        wide_queries = queries.to(dtype)
        if metric == "cosine":
            wide_queries = unit_rows(wide_queries)
        values, indices, done = list[Tensor](), list[Tensor](), 0
        empty = wide_queries.new_zeros((0, bank.shape[-1]))

        def select(begin: int, end: int, rows: Tensor, first_self: int | None = None) -> None:
            best, rows_of_best = _select(wide_queries[begin:end], rows, k, metric, first_self)
            values.append(best)
            indices.append(rows_of_best)

        for begin, end, rows in _segments(queries, bank, query_offsets, bank_counts):
            rows = rows.to(dtype)
            if metric == "cosine" and not unit_bank:
                rows = unit_rows(rows)
            select(done, begin, empty)
            chunk = max(1, CHUNK_ELEMENTS // max(1, rows.shape[0]))
            for at in range(begin, end, chunk):
                select(at, min(at + chunk, end), rows, at - begin if exclude_self else None)
            done = end
        select(done, queries.shape[0], empty)
        return torch.cat(values), torch.cat(indices)


def knn_density(
    queries: Tensor,
    bank: Tensor,
    scales: Sequence[int] = (8, 16, 32),
    metric: str = "cosine",
    query_offsets: Tensor | None = None,
    bank_counts: Tensor | None = None,
    exclude_self: bool = False,
    per_scale: bool = False,
    unit_bank: bool = False,
) -> Tensor:
    """The mean of the k best scores for each k in `scales`, and their mean: see `dgcl_ops.ops.knn_density`."""
    k = max(1, min(max(scales), bank.shape[-2]))  # no query has more neighbours
    values, indices = knn_topk(
        queries, bank, k, metric, query_offsets, bank_counts, exclude_self, unit_bank
    )
    valid = indices >= 0
    scores = torch.where(valid, values, 0.0)
    means = [scores[:, :k].sum(1) / valid[:, :k].sum(1).clamp(min=1) for k in scales]
    density = torch.stack(means)
    # A query with NaN has no position, and one with inf no direction. Without bank rows its density is still 0.
    nan_rows = ~queries.isfinite() if metric == "cosine" else queries.isnan()
    for begin, end, rows in _segments(queries, bank, query_offsets, bank_counts):
        last = min(end, begin + rows.shape[0]) if exclude_self or rows.shape[0] == 0 else end
        density[:, begin:last].masked_fill_(nan_rows[begin:last].any(1), torch.nan)
    return density if per_scale else density.mean(0)


def counted(rows: int, counts: Tensor | None, groups: int, device: torch.device) -> Tensor:
    """A [G, rows] mask of the first counts[g] rows of each group."""
    position = torch.arange(rows, device=device).expand(groups, rows)
    return position < (rows if counts is None else counts[:, None])


def contrast_blocks(groups: int, rows: int, logits: int) -> Iterator[tuple[slice, slice]]:
    """Yields (groups, anchors) as slices. A block has at most CHUNK_ELEMENTS logits, or the logits of one anchor."""
    together = max(1, CHUNK_ELEMENTS // max(1, rows * logits))
    step = rows if rows * logits <= CHUNK_ELEMENTS else max(1, CHUNK_ELEMENTS // logits)
    for group in range(0, groups, together):
        for row in range(0, rows, max(1, step)):
            yield slice(group, group + together), slice(row, row + step)


def density_contrast_with_lse(
    anchors: Tensor,
    keys: Tensor,
    negatives: Tensor,
    temperature: float = 0.5,
    anchor_counts: Tensor | None = None,
    negative_counts: Tensor | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Loss [G], and log-sum-exp [G, A] of each anchor's logits with `eps` in the sum; 0 beyond the count."""
    dtype = compute_dtype(anchors, keys, negatives)
    with no_autocast(anchors):
        groups, rows, _ = anchors.shape
        anchor_mask = counted(rows, anchor_counts, groups, anchors.device)
        negative_mask = counted(negatives.shape[1], negative_counts, groups, anchors.device)
        # Rows beyond the counts may hold anything. A zero row is harmless.
        unit_anchors = unit_rows(anchors.to(dtype).masked_fill(~anchor_mask.unsqueeze(-1), 0.0))
        unit_negatives = unit_rows(
            negatives.to(dtype).masked_fill(~negative_mask.unsqueeze(-1), 0.0)
        )
        unit_keys = unit_rows(keys.to(dtype)).unsqueeze(1)
        lse = unit_anchors.new_empty((groups, rows))
        anchor_loss = torch.empty_like(lse)
        for g, block in contrast_blocks(groups, rows, negatives.shape[1] + 1):
            block_anchors = unit_anchors[g, block]
            to_key = (block_anchors @ unit_keys[g].mT) / temperature  # [G, A, 1]
            to_negatives = (block_anchors @ unit_negatives[g].mT) / temperature  # [G, A, N]
            to_negatives = to_negatives.masked_fill(~negative_mask[g].unsqueeze(1), -torch.inf)
            logits = torch.cat([to_key, to_negatives], dim=2)
            maximum = logits.amax(2, keepdim=True).detach()  # a constant, as published
            log_sum = ((logits - maximum).exp().sum(2) + eps).log()
            lse[g, block] = maximum.squeeze(2) + log_sum
            anchor_loss[g, block] = log_sum - (logits[..., 0] - maximum.squeeze(2))
        loss = torch.where(anchor_mask, anchor_loss, 0.0).sum(1) / anchor_mask.sum(1).clamp(min=1)
        return loss, torch.where(anchor_mask, lse, 0.0)


def density_contrast(*args: Any, **kwargs: Any) -> Tensor:
    """The loss [G] alone: see `dgcl_ops.ops.density_contrast`."""
    return density_contrast_with_lse(*args, **kwargs)[0]


def memory_push(
    bank_features: Tensor,
    bank_projections: Tensor,
    bank_density: Tensor,
    counts: Tensor,
    heads: Tensor,
    features: Tensor,
    projections: Tensor,
    density: Tensor,
    row_counts: Tensor,
    normalize: bool = False,
) -> None:
    """Writes each class's first row_counts[c] rows into its ring, in place. Copies the counts to the host."""
    capacity = bank_features.shape[1]
    if normalize:
        features = unit_rows(features.to(compute_dtype(bank_features, features)))
    for c, rows in enumerate(row_counts.tolist()):
        # If there are more rows than slots, only the last ones stay. So no slot is written twice.
        kept = torch.arange(max(0, rows - capacity), rows, device=features.device)
        slot = (heads[c] + kept) % capacity
        for target, source in (
            (bank_features, features),
            (bank_projections, projections),
            (bank_density, density),
        ):
            target[c].index_copy_(0, slot, source[c][kept].to(target.dtype))
    counts.copy_((counts + row_counts).clamp(max=capacity))
    heads.copy_((heads + row_counts) % capacity)


def gather_rows(maps: Tensor, indices: Tensor) -> Tensor:
    """[B, D, *S], indices [...] -> [..., D]: see `dgcl_ops.ops.gather_rows`."""
    places: list[Any] = []
    for size in reversed(maps.shape[2:]):
        places.append(indices % size)
        indices = indices // size
    places += [slice(None), indices]
    return maps[tuple(reversed(places))]


def silhouette_sums(features: Tensor, offsets: Tensor, rows: Tensor | None = None) -> Tensor:
    """[M, C] sums of distances by class: see `dgcl_ops.ops.silhouette_sums`. Copies the offsets to the host."""
    bounds = offsets.tolist()
    wide = features.double()
    queries = wide if rows is None else rows.double()
    sums = wide.new_zeros((queries.shape[0], len(bounds) - 1))
    if features.shape[1] == 0:  # all distances are 0
        return sums
    chunk = max(1, CHUNK_ELEMENTS // max(1, features.shape[0]))
    for at in range(0, queries.shape[0], chunk):
        distances = torch.cdist(
            queries[at : at + chunk], wide, compute_mode="donot_use_mm_for_euclid_dist"
        )
        for c, (begin, end) in enumerate(pairwise(bounds)):
            sums[at : at + chunk, c] = distances[:, begin:end].sum(1)
    return sums
