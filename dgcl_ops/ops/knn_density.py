"""Local density: mean similarity to the nearest bank rows, averaged over several scales."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops._precision import compute_dtype
from dgcl_ops._scales import scale_weights
from dgcl_ops.ops import _arguments, _registry
from dgcl_ops.ops._arguments import Metric

_OP = "dgcl_ops::knn_density"
_registry.define(
    "knn_density(Tensor queries, Tensor bank, int[] scales, str metric, Tensor? query_offsets, "
    "Tensor? bank_counts, bool exclude_self, bool per_scale, bool unit_bank) -> Tensor",
    reference.knn_density,
)


def knn_density(
    queries: Tensor,
    bank: Tensor,
    scales: Sequence[int] = (8, 16, 32),
    *,
    metric: Metric = "cosine",
    query_offsets: Tensor | None = None,
    bank_counts: Tensor | None = None,
    exclude_self: bool = False,
    per_scale: bool = False,
    unit_bank: bool = False,
) -> Tensor:
    """Averages the k best scores of each query, then averages over the k in `scales`.

    rho_k(q) is the mean of the k largest s(q, m) over m in the bank. rho(q) is the mean of rho_k(q) over the scales.
    One selection of max(scales) rows serves all scales. Each k is clamped to the number of neighbours that the query
    has. A query without neighbours has density 0. A query with a NaN has density NaN.

    Differentiable in `queries` and `bank`, with the neighbour set held fixed. Backward repeats the selection instead
    of storing the neighbours. Second derivatives and `torch.func` are not supported.

    Args:
        queries: [M, D], the rows to compute the density of. With a grouped bank they are sorted by class.
        bank: [N, D], or [C, N, D] for one bank per class. The rows to compare with.
        scales: S numbers of neighbours, in any order.
        metric: "cosine", "dot" or "l2". "l2" is the negative Euclidean distance.
        query_offsets: [C + 1] int64. Class c's queries are rows query_offsets[c] to query_offsets[c + 1]. Required
            with a grouped bank, and only then. Rows outside belong to no class and have density 0.
        bank_counts: [C] int64, the rows in use per class. By default all.
        exclude_self: treat query p of a class as row p of that class's bank, and do not count it as its own neighbour.
            A query without such a row has density 0.
        per_scale: return rho_k for each scale instead of their mean.
        unit_bank: the bank holds unit rows already, so "cosine" does not normalise them.

    Returns:
        The densities, [M], or [S, M] with `per_scale`; float32 (float64 if an input is float64).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a scale is not positive, or `metric` is unknown.
        RuntimeError: If a shape, dtype or device is wrong, or, on the CPU, if offsets or counts are out of range. CUDA
            clamps them instead, because a check would sync. CUDA takes at most 64 scales.

    Reference: Wang et al., Hunting Sparsity, CVPR 2023, section 3.3 (multi-scale density).
    """
    _arguments.tensors("knn_density", queries=queries, bank=bank)
    scales = _arguments.scale_tuple("knn_density", scales)
    name = _arguments.metric_name("knn_density", metric)
    return torch.ops.dgcl_ops.knn_density(
        queries,
        bank,
        scales,
        name,
        query_offsets,
        bank_counts,
        bool(exclude_self),
        bool(per_scale),
        bool(unit_bank),
    )


@_registry.register_fake(_OP)
def _fake(
    queries: Tensor,
    bank: Tensor,
    scales: Sequence[int],
    metric: str,
    query_offsets: Tensor | None,
    bank_counts: Tensor | None,
    exclude_self: bool,
    per_scale: bool,
    unit_bank: bool,
) -> Tensor:
    rows = queries.shape[0]
    shape = (len(scales), rows) if per_scale else (rows,)
    return queries.new_empty(shape, dtype=compute_dtype(queries, bank))


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    queries, bank, ctx.scales, ctx.metric, query_offsets, bank_counts, *flags = inputs
    ctx.exclude_self, ctx.per_scale, ctx.unit_bank = flags
    ctx.save_for_backward(queries, bank, query_offsets, bank_counts)


def _backward(ctx: Any, dL_drho: Tensor) -> tuple[Tensor | None, ...]:
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
    neighbours = (indices >= 0).sum(1)
    if ctx.per_scale:  # each scale has a gradient of its own
        terms = [((k,), gradient) for k, gradient in zip(ctx.scales, dL_drho, strict=True)]
    else:
        terms = [(ctx.scales, dL_drho)]
    dL_dscores = torch.zeros_like(values)
    for scales, gradient in terms:
        weights = scale_weights(scales, neighbours, ranks).to(values.dtype)
        dL_dscores = dL_dscores + weights * gradient.unsqueeze(1)
    dL_dqueries, dL_dbank = torch.ops.dgcl_ops.knn_topk_backward(
        dL_dscores, queries, bank, values, indices, ctx.metric, query_offsets, ctx.unit_bank
    )
    return dL_dqueries, dL_dbank, None, None, None, None, None, None, None


_registry.register_autograd(_OP, _backward, _setup_context)


@torch.library.register_vmap(_OP)
def _vmap(
    info: Any,
    in_dims: tuple,
    queries: Tensor,
    bank: Tensor,
    scales: Sequence[int],
    metric: str,
    query_offsets: Tensor | None,
    bank_counts: Tensor | None,
    exclude_self: bool,
    per_scale: bool,
    unit_bank: bool,
) -> tuple[Tensor, int]:
    rows, banks, offsets = _registry.knn_batch(
        "knn_density", info, in_dims, queries, bank, query_offsets, bank_counts, exclude_self
    )
    density = torch.ops.dgcl_ops.knn_density(
        rows, banks, scales, metric, offsets, None, exclude_self, per_scale, unit_bank
    )
    return density.unflatten(-1, (info.batch_size, -1)), density.dim() - 1
