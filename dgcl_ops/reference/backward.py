"""The gradients of `reference` written out, for devices without a compiled kernel.

An operator's backward runs below autograd, where the formulas of `reference` cannot be differentiated. These are the
formulas that autograd would evaluate. The tests compare them with ordinary autograd through `reference`. The neighbour
set is held fixed. Rows that are zero, or hold inf or NaN, receive gradient 0 from cosines.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops._precision import compute_dtype, no_autocast
from dgcl_ops.reference import unit_rows


def _unit_rows_backward(dL_dunit: Tensor, rows: Tensor) -> Tensor:
    """dL/dx = (g - (g.u) u) / |x|, and 0 where `unit_rows` propagates no gradient."""
    size, scale = reference.rescue_scale(rows)
    usable = (size > 0) & (size < torch.inf)
    safe = torch.where(usable, rows * scale, 1.0)
    norm = safe.square().sum(-1, keepdim=True).sqrt()
    unit = safe / norm
    radial = (dL_dunit * unit).sum(-1, keepdim=True)
    return torch.where(usable, (dL_dunit - radial * unit) / norm * scale, 0.0)


def _query_classes(rows: int, query_offsets: Tensor | None, device: torch.device) -> Tensor:
    """The class of each query, -1 outside the offsets."""
    position = torch.arange(rows, device=device)
    if query_offsets is None:
        return torch.zeros_like(position)
    classes = torch.searchsorted(query_offsets.contiguous(), position, right=True) - 1
    return classes.masked_fill(position >= query_offsets[-1], -1)


def knn_topk_backward(
    dL_dvalues: Tensor,
    queries: Tensor,
    bank: Tensor,
    values: Tensor,
    indices: Tensor,
    metric: str,
    query_offsets: Tensor | None = None,
    unit_bank: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradients of `knn_topk`'s values with the neighbour set held fixed, written out.

    dot: ds/dq = b, ds/db = q; cosine: the same on unit rows, then through x / |x|;
    l2: ds/dq = (q - b) / s = -ds/db, and 0 where s = 0.
    """
    dtype = compute_dtype(queries, bank)
    with no_autocast(queries):
        raw_queries, raw_bank = queries.to(dtype), bank.to(dtype).reshape(-1, bank.shape[-1])
        cosine = metric == "cosine"
        wide_queries = unit_rows(raw_queries) if cosine else raw_queries
        wide_bank = unit_rows(raw_bank) if cosine and not unit_bank else raw_bank
        dL_dqueries, dL_dbank = torch.zeros_like(raw_queries), torch.zeros_like(raw_bank)
        classes = _query_classes(queries.shape[0], query_offsets, queries.device)
        # As in csrc/math/score_gradient.h, a pair without a gradient is skipped, even if it holds NaN.
        used = (indices >= 0) & (classes >= 0).unsqueeze(1) & (dL_dvalues != 0)
        if metric == "l2":
            used &= values != 0
        gathered = max(1, indices.shape[1] * bank.shape[-1])  # numbers per query
        chunk = max(1, reference.CHUNK_ELEMENTS // gathered)
        for at in range(0, queries.shape[0] if raw_bank.shape[0] else 0, chunk):
            part = slice(at, at + chunk)
            valid = used[part]
            # A query without neighbours may hold NaN. It propagates no gradient.
            unused = ~valid.any(1, keepdim=True)
            chosen_queries = wide_queries[part].masked_fill(unused, 0.0).unsqueeze(1)
            flat = classes[part, None] * bank.shape[-2] + indices[part]
            flat = torch.where(valid, flat, 0)
            rows = wide_bank[flat].masked_fill(~valid.unsqueeze(-1), 0.0)
            dL_dscore = torch.where(valid, dL_dvalues[part].to(dtype), 0.0).unsqueeze(-1)
            if metric == "l2":
                score = values[part].to(dtype).unsqueeze(-1)
                slope = torch.where(valid.unsqueeze(-1), dL_dscore / score, 0.0)
                to_query = slope * (chosen_queries - rows)
                to_bank = -to_query
            else:
                to_query, to_bank = dL_dscore * rows, dL_dscore * chosen_queries
            to_query, to_bank = (
                g.masked_fill(~valid.unsqueeze(-1), 0.0) for g in (to_query, to_bank)
            )
            dL_dqueries[part] = to_query.sum(1)
            dL_dbank.index_add_(0, flat.reshape(-1), to_bank.reshape(-1, bank.shape[-1]))
        if cosine:
            dL_dqueries = _unit_rows_backward(dL_dqueries, raw_queries)
            dL_dbank = dL_dbank if unit_bank else _unit_rows_backward(dL_dbank, raw_bank)
        return dL_dqueries.to(queries.dtype), dL_dbank.reshape(bank.shape).to(bank.dtype)


def density_contrast_backward(
    dL_dloss: Tensor,
    anchors: Tensor,
    keys: Tensor,
    negatives: Tensor,
    lse: Tensor,
    temperature: float,
    anchor_counts: Tensor | None = None,
    negative_counts: Tensor | None = None,
    needs_key_grad: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the contrast: dL/dz = (P - onehot0) / (count T), then through x / |x|.

    Without `needs_key_grad`, the gradients of keys and negatives are empty.
    """
    dtype = compute_dtype(anchors, keys, negatives)
    with no_autocast(anchors):
        groups, rows, _ = anchors.shape
        anchor_mask = reference.counted(rows, anchor_counts, groups, anchors.device)
        negative_mask = reference.counted(
            negatives.shape[1], negative_counts, groups, anchors.device
        )
        raw_anchors = anchors.to(dtype).masked_fill(~anchor_mask.unsqueeze(-1), 0.0)
        raw_negatives = negatives.to(dtype).masked_fill(~negative_mask.unsqueeze(-1), 0.0)
        raw_keys = keys.to(dtype).unsqueeze(1)
        a, p, n = unit_rows(raw_anchors), unit_rows(raw_keys), unit_rows(raw_negatives)
        lse = torch.where(anchor_mask, lse, 0.0)
        weights = dL_dloss.to(dtype) / anchor_mask.sum(1).clamp(min=1) / temperature
        weights = torch.where(anchor_mask, weights.unsqueeze(1), 0.0)
        dL_da, dL_dp, dL_dn = torch.zeros_like(a), torch.zeros_like(p), torch.zeros_like(n)
        for g, block in reference.contrast_blocks(groups, rows, negatives.shape[1] + 1):
            rows_a, key, others = a[g, block], p[g], n[g]
            log_sum, weight = lse[g, block].unsqueeze(-1), weights[g, block].unsqueeze(-1)
            p0 = torch.exp((rows_a @ key.mT) / temperature - log_sum)
            # A key without anchors may be NaN.
            p0 = torch.where(anchor_mask[g, block].unsqueeze(-1), p0, 0.0)
            pn = torch.exp((rows_a @ others.mT) / temperature - log_sum)
            pn = pn.masked_fill(~negative_mask[g].unsqueeze(1), 0.0)
            dz0, dzn = weight * (p0 - 1), weight * pn  # [G, A, 1], [G, A, N]
            dL_da[g, block] = dz0 * key + dzn @ others
            if needs_key_grad:
                dL_dp[g] += dz0.mT @ rows_a
                dL_dn[g] += dzn.mT @ rows_a
        dL_danchors = _unit_rows_backward(dL_da, raw_anchors).to(anchors.dtype)
        if not needs_key_grad:
            return dL_danchors, keys.new_empty(0), negatives.new_empty(0)
        return (
            dL_danchors,
            _unit_rows_backward(dL_dp, raw_keys).squeeze(1).to(keys.dtype),
            _unit_rows_backward(dL_dn, raw_negatives).to(negatives.dtype),
        )


def gather_rows_backward(dL_drows: Tensor, indices: Tensor, shape: Sequence[int]) -> Tensor:
    """Gradient of the maps [B, D, *S]: each pixel gets the sum of the rows that chose it.

    The sum starts at 0, is computed in float32 (float64 for float64 rows), and is rounded once. On the CPU,
    `index_add_` adds the rows in ascending order. So the result equals that of the compiled kernels, except that -0
    becomes 0. Other devices may add in any order.
    """
    images, dim, area = shape[0], shape[1], math.prod(shape[2:])
    dL_dmaps = dL_drows.new_empty((images, dim, area))
    pixels, rows = indices.reshape(-1), dL_drows.reshape(indices.numel(), dim)
    with no_autocast(dL_drows):
        step = max(1, reference.CHUNK_ELEMENTS // max(1, images * area))
        for at in range(0, dim, step):
            part = rows[:, at : at + step].to(compute_dtype(rows))
            sums = part.new_zeros((images * area, part.shape[1])).index_add_(0, pixels, part)
            dL_dmaps[:, at : at + step] = sums.view(images, area, part.shape[1]).mT
    return dL_dmaps.view(tuple(shape))
