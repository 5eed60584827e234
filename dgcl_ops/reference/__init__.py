"""Every formula in plain PyTorch: the deliberate second telling of the compiled kernels.

The oracle of the tests, the baseline of the benchmarks, and the implementation on devices without a
compiled kernel. Any device, any dtype, differentiable by ordinary autograd.

Numerics, as in the kernels:
    compute type  float32, or float64 if any input is float64; autocast is disabled inside.
    zero rows     have the unit row 0; rows holding inf or NaN have the unit row NaN.
    neighbours    a score that is NaN or -inf is never one; a missing entry is -inf with index -1.
    ties          lowest index first, by a stable sort. `torch.topk` leaves the order of equal scores open
                  and gives different indices on different devices. The scores themselves are those of
                  `matmul`, whose last bit may depend on its tiling; the kernels' canonical sum does not.
Class offsets and counts are copied to the host. Work is done in blocks: at most `CHUNK_ELEMENTS` scores, logits or
distances exist at a time, or a single row if that has more. So the largest tensor is 64 MiB, an input in float64, or k
numbers for each query, whichever is more. The arguments are those of the raw operators, in their order.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from dgcl_ops._precision import compute_dtype, no_autocast

# 64 MiB of int64 indices or float64 scores, the widest numbers of a block.
CHUNK_ELEMENTS = 1 << 23


def rescue_scale(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The largest magnitude of each row, and the power of two that keeps its squares in range."""
    size = rows.detach().abs()
    if rows.shape[-1] == 0:  # a row without numbers is a zero row
        size = pad(size, (0, 1))
    size = size.amax(-1, keepdim=True)
    bound, shift = (2.0**400, 2.0**800) if rows.dtype == torch.float64 else (2.0**48, 2.0**96)
    one = torch.ones_like(size)
    scale = torch.where(size > bound, one / shift, torch.where(size < 1 / bound, one * shift, one))
    return size, scale


def unit_rows(rows: Tensor) -> Tensor:
    """x / |x| for each row; 0 for a zero row, NaN for a row holding inf or NaN.

    Neither kind passes a gradient on. Multiplying a row by a power of two changes nothing, however large.

    Shape: rows [..., D], float32 or float64 -> [..., D].
    """
    size, scale = rescue_scale(rows)
    usable = (size > 0) & (size < torch.inf)
    safe = torch.where(usable, rows * scale, 1.0)
    unit = safe / safe.square().sum(-1, keepdim=True).sqrt()
    return torch.where(usable, unit, torch.where(size == 0, 0.0, torch.nan))


def _segments(queries: Tensor, bank: Tensor, query_offsets, bank_counts):
    """Yields (first query, one past the last, bank rows [n, D]) per class. Copies the offsets to the host."""
    if bank.dim() == 2:
        yield 0, queries.shape[0], bank
        return
    classes, rows, _ = bank.shape
    counts = [rows] * classes if bank_counts is None else bank_counts.tolist()
    offsets = query_offsets.tolist()
    for c in range(classes):
        yield offsets[c], offsets[c + 1], bank[c, : counts[c]]


def _scores(queries: Tensor, bank: Tensor, metric: str) -> Tensor:
    """[m, D] x [n, D] -> [m, n]. Rows are unit rows already if the metric is cosine."""
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
    queries: Tensor, bank: Tensor, k: int, metric: str, first_self
) -> tuple[Tensor, Tensor]:
    """Top-k of one chunk. `first_self`: bank row of the first query, or None."""
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
        # The choice has no gradient. Only the chosen pairs are scored again: nothing of size [m, n] is
        # kept, and a NaN row, which is nobody's neighbour, cannot reach a gradient as 0 * NaN.
        found = indices >= 0
        rows = bank[indices.clamp(min=0)].masked_fill(~found.unsqueeze(-1), 0.0)
        asking = queries.masked_fill(~found.any(1, keepdim=True), 0.0).unsqueeze(1)
        values = torch.where(found, _pair_scores(asking, rows, metric), missing)
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
        values, indices, done = [], [], 0
        empty = wide_queries.new_zeros((0, bank.shape[-1]))

        def select(begin, end, rows, first_self=None):
            chosen = _select(wide_queries[begin:end], rows, k, metric, first_self)
            values.append(chosen[0])
            indices.append(chosen[1])

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
    scales=(8, 16, 32),
    metric: str = "cosine",
    query_offsets: Tensor | None = None,
    bank_counts: Tensor | None = None,
    exclude_self: bool = False,
    per_scale: bool = False,
    unit_bank: bool = False,
) -> Tensor:
    """The mean of the k best scores for each k of `scales`, and their mean: see `dgcl_ops.ops.knn_density`."""
    k = max(1, min(max(scales), bank.shape[-2]))  # more are never found
    values, indices = knn_topk(
        queries, bank, k, metric, query_offsets, bank_counts, exclude_self, unit_bank
    )
    found = indices >= 0
    scores = torch.where(found, values, 0.0)
    means = [scores[:, :k].sum(1) / found[:, :k].sum(1).clamp(min=1) for k in scales]
    density = torch.stack(means)
    # A query holding NaN is nowhere; one holding inf has no direction. Without bank rows: 0 all the same.
    lost = ~queries.isfinite() if metric == "cosine" else queries.isnan()
    for begin, end, rows in _segments(queries, bank, query_offsets, bank_counts):
        last = min(end, begin + rows.shape[0]) if exclude_self or rows.shape[0] == 0 else end
        density[:, begin:last].masked_fill_(lost[begin:last].any(1), torch.nan)
    return density if per_scale else density.mean(0)


def counted(rows: int, counts: Tensor | None, groups: int, device) -> Tensor:
    """[G, rows] mask of the first counts[g] rows of each group."""
    position = torch.arange(rows, device=device).expand(groups, rows)
    return position < (rows if counts is None else counts[:, None])


def contrast_blocks(groups: int, rows: int, logits: int):
    """Yields (groups, anchors) as slices; a block has at most CHUNK_ELEMENTS logits, or those of one anchor."""
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
    """Loss [G] and log-sum-exp [G, A] of each anchor's logits, with `eps` in the sum; 0 beyond the count."""
    dtype = compute_dtype(anchors, keys, negatives)
    with no_autocast(anchors):
        groups, rows, _ = anchors.shape
        used = counted(rows, anchor_counts, groups, anchors.device)
        pushing = counted(negatives.shape[1], negative_counts, groups, anchors.device)
        # Rows beyond the counts may hold anything; a zero row is harmless.
        unit_anchors = unit_rows(anchors.to(dtype).masked_fill(~used.unsqueeze(-1), 0.0))
        unit_negatives = unit_rows(negatives.to(dtype).masked_fill(~pushing.unsqueeze(-1), 0.0))
        unit_keys = unit_rows(keys.to(dtype)).unsqueeze(1)
        lse = unit_anchors.new_empty((groups, rows))
        surprise = torch.empty_like(lse)
        for g, block in contrast_blocks(groups, rows, negatives.shape[1] + 1):
            asking = unit_anchors[g, block]
            to_key = (asking @ unit_keys[g].mT) / temperature  # [G, A, 1]
            to_negatives = (asking @ unit_negatives[g].mT) / temperature  # [G, A, N]
            to_negatives = to_negatives.masked_fill(~pushing[g].unsqueeze(1), -torch.inf)
            logits = torch.cat([to_key, to_negatives], dim=2)
            maximum = logits.amax(2, keepdim=True).detach()  # a constant, as published
            log_sum = ((logits - maximum).exp().sum(2) + eps).log()
            lse[g, block] = maximum.squeeze(2) + log_sum
            surprise[g, block] = log_sum - (logits[..., 0] - maximum.squeeze(2))
        loss = torch.where(used, surprise, 0.0).sum(1) / used.sum(1).clamp(min=1)
        return loss, torch.where(used, lse, 0.0)


def density_contrast(*args, **kwargs) -> Tensor:
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
        # Of more rows than the ring holds, only the last ones stay: an index is never written twice.
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


def class_counts(labels: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """How often each class occurs: see `dgcl_ops.ops.class_counts`. On the CPU, a stray label is an error."""
    flat = labels.reshape(-1).to(torch.int64)
    valid = (flat >= 0) & (flat < num_classes)
    stray = flat[~valid & (flat != ignore_index)] if flat.device.type == "cpu" else flat[:0]
    if stray.numel():
        raise RuntimeError(
            f"class_counts: labels must lie in [0, {num_classes}) or equal ignore_index "
            f"{ignore_index}, got {int(stray[0])}"
        )
    valid &= flat != ignore_index
    return torch.bincount(flat[valid], minlength=num_classes)


def gather_rows(maps: Tensor, indices: Tensor) -> Tensor:
    """[B, D, H, W], indices [...] -> [..., D]: see `dgcl_ops.ops.gather_rows`."""
    area = maps.shape[2] * maps.shape[3]
    return maps.flatten(2)[indices // area, :, indices % area]


def silhouette_sums(features: Tensor, offsets: Tensor, rows: Tensor | None = None) -> Tensor:
    """[M, C] sums of distances by class: see `dgcl_ops.ops.silhouette_sums`. Copies the offsets to the host."""
    bounds = offsets.tolist()
    wide = features.double()
    asking = wide if rows is None else rows.double()
    sums = wide.new_zeros((asking.shape[0], len(bounds) - 1))
    if features.shape[1] == 0:  # all distances are 0
        return sums
    chunk = max(1, CHUNK_ELEMENTS // max(1, features.shape[0]))
    for at in range(0, asking.shape[0], chunk):
        distances = torch.cdist(
            asking[at : at + chunk], wide, compute_mode="donot_use_mm_for_euclid_dist"
        )
        for c, (begin, end) in enumerate(pairwise(bounds)):
            sums[at : at + chunk, c] = distances[:, begin:end].sum(1)
    return sums
