"""Local density: mean similarity to the nearest bank rows, averaged over several scales."""

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops._precision import compute_dtype
from dgcl_ops._scales import scale_weights
from dgcl_ops.ops import _arguments, _registry

_OP = "dgcl_ops::knn_density"
_registry.define(
    "knn_density(Tensor queries, Tensor bank, int[] scales, str metric, Tensor? query_offsets, "
    "Tensor? bank_counts, bool exclude_self, bool per_scale, bool unit_bank) -> Tensor",
    reference.knn_density,
)


def knn_density(
    queries: Tensor,
    bank: Tensor,
    scales=(8, 16, 32),
    *,
    metric: str = "cosine",
    query_offsets: Tensor | None = None,
    bank_counts: Tensor | None = None,
    exclude_self: bool = False,
    per_scale: bool = False,
    unit_bank: bool = False,
) -> Tensor:
    """The mean of the k best scores of each query, averaged over the k of `scales`.

    rho_k(q) = mean of the k largest s(q, m), m in the bank; rho(q) = mean of rho_k(q) over the scales. One
    selection of max(scales) rows serves all of them. Every k is clamped to the neighbours the query has; a
    query without any has density 0, a query holding NaN has density NaN.

    Differentiable in `queries` and `bank`, with the neighbour set held fixed; backward selects again instead
    of keeping the neighbours. No second derivatives, and none by torch.func.

    Args:
        queries: rows whose density is wanted; grouped: sorted by class.
        bank: rows they are measured against, one matrix or one per class.
        scales: numbers of neighbours, in any order.
        metric: "cosine", "dot" or "l2" (minus the Euclidean distance).
        query_offsets: class c's queries are rows query_offsets[c] to query_offsets[c + 1]; needed exactly
            when the bank is grouped. Rows outside belong to no class: density 0.
        bank_counts: rows in use per class; all of them by default.
        exclude_self: query number p of its class is bank row p of that class and not its own neighbour;
            where the bank has no row p, the query's density is 0.
        per_scale: return rho_k for each scale instead of their mean.
        unit_bank: the bank's rows are unit rows already, so "cosine" does not normalise them.

    Returns:
        The densities, in float32 (float64 if an input is float64).

    Raises:
        TypeError, ValueError: for bad `scales` or `metric`.
        RuntimeError: for bad tensors; on the CPU also for offsets or counts out of range, which CUDA, to
            stay free of synchronisation, clamps; on CUDA for more than 64 scales.

    Shape:
        queries [M, D]; bank [N, D], or [C, N, D] with query_offsets [C + 1] and bank_counts [C], int64
        -> [M], or [S, M] with per_scale.

    Reference: Wang et al., Hunting Sparsity, CVPR 2023, section 3.3 (multi-scale density).
    """
    _arguments.tensors("knn_density", queries=queries, bank=bank)
    scales = _arguments.scale_tuple("knn_density", scales)
    metric = _arguments.metric_name("knn_density", metric)
    return torch.ops.dgcl_ops.knn_density(
        queries,
        bank,
        scales,
        metric,
        query_offsets,
        bank_counts,
        bool(exclude_self),
        bool(per_scale),
        bool(unit_bank),
    )


@_registry.register_fake(_OP)
def _fake(
    queries, bank, scales, metric, query_offsets, bank_counts, exclude_self, per_scale, unit_bank
):
    rows = queries.shape[0]
    shape = (len(scales), rows) if per_scale else (rows,)
    return queries.new_empty(shape, dtype=compute_dtype(queries, bank))


def _setup_context(ctx, inputs, output):
    queries, bank, ctx.scales, ctx.metric, query_offsets, bank_counts, *flags = inputs
    ctx.exclude_self, ctx.per_scale, ctx.unit_bank = flags
    ctx.save_for_backward(queries, bank, query_offsets, bank_counts)


def _backward(ctx, dL_drho):
    """rho = sum_r w_r s_r, so each selected score s_r receives w_r dL/drho."""
    queries, bank, query_offsets, bank_counts = ctx.saved_tensors
    ranks = max(1, min(max(ctx.scales), bank.shape[-2]))
    values, indices = torch.ops.dgcl_ops.knn_topk(
        queries,
        bank,
        ranks,
        ctx.metric,
        query_offsets,
        bank_counts,
        ctx.exclude_self,
        ctx.unit_bank,
    )
    found = (indices >= 0).sum(1)
    if ctx.per_scale:  # each scale has a gradient of its own
        terms = [((k,), gradient) for k, gradient in zip(ctx.scales, dL_drho, strict=True)]
    else:
        terms = [(ctx.scales, dL_drho)]
    dL_dscores = torch.zeros_like(values)
    for scales, gradient in terms:
        weights = scale_weights(scales, found, ranks).to(values.dtype)
        dL_dscores = dL_dscores + weights * gradient.unsqueeze(1)
    dL_dqueries, dL_dbank = torch.ops.dgcl_ops.knn_topk_backward(
        dL_dscores, queries, bank, values, indices, ctx.metric, query_offsets, ctx.unit_bank
    )
    return dL_dqueries, dL_dbank, None, None, None, None, None, None, None


_registry.register_autograd(_OP, _backward, _setup_context)


@torch.library.register_vmap(_OP)
def _vmap(info, in_dims, queries, bank, scales, metric, query_offsets, bank_counts, *flags):
    exclude_self, per_scale, unit_bank = flags
    rows = _registry.knn_batch(
        "knn_density", info, in_dims, queries, bank, query_offsets, bank_counts, exclude_self
    )
    density = torch.ops.dgcl_ops.knn_density(
        *rows[:2], scales, metric, rows[2], None, exclude_self, per_scale, unit_bank
    )
    return density.unflatten(-1, (info.batch_size, -1)), density.dim() - 1
