"""The k nearest bank rows of each query."""

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops._precision import compute_dtype
from dgcl_ops.ops import _arguments, _registry
from dgcl_ops.reference import backward as reference_backward

_OP = "dgcl_ops::knn_topk"
_registry.define(
    "knn_topk(Tensor queries, Tensor bank, int k, str metric, Tensor? query_offsets, "
    "Tensor? bank_counts, bool exclude_self, bool unit_bank) -> (Tensor values, Tensor indices)",
    reference.knn_topk,
)
_registry.define(
    "knn_topk_backward(Tensor dL_dvalues, Tensor queries, Tensor bank, Tensor values, "
    "Tensor indices, str metric, Tensor? query_offsets, bool unit_bank) -> "
    "(Tensor dL_dqueries, Tensor dL_dbank)",
    reference_backward.knn_topk_backward,
)


def knn_topk(
    queries: Tensor,
    bank: Tensor,
    k: int,
    *,
    metric: str = "cosine",
    query_offsets: Tensor | None = None,
    bank_counts: Tensor | None = None,
    exclude_self: bool = False,
    unit_bank: bool = False,
) -> tuple[Tensor, Tensor]:
    """The `k` best-scoring bank rows of each query, sorted by score downward.

    The selection is that of a float32 (float64) score summed in a fixed order: the same on every backend
    and instruction set and for every number of threads. Equal scores go to the lower index. A score that
    is NaN or -inf is never a neighbour.

    Differentiable in `queries` and `bank` through the values, with the neighbour set held fixed; an l2
    distance of 0 has gradient 0. No second derivatives, and none by torch.func.

    Args:
        queries: rows to look up; grouped: sorted by class.
        bank: rows to choose from, one matrix or one per class. Row distances may be any (views are read in
            place); queries and bank may differ in dtype.
        k: neighbours per query, at least 1 and less than 2^31. May exceed the rows there are.
        metric: "cosine" (a zero row scores 0 with everything), "dot", or "l2" (minus the Euclidean distance,
            from differences).
        query_offsets: class c's queries are rows query_offsets[c] to query_offsets[c + 1]; needed exactly
            when the bank is grouped. Rows outside belong to no class and find nothing.
        bank_counts: rows in use per class; all of them by default.
        exclude_self: query number p of its class is bank row p of that class and not its own neighbour;
            where the bank has no row p, the query finds nothing.
        unit_bank: the bank's rows are unit rows already, so "cosine" does not normalise them.

    Returns:
        values, in float32 (float64 if an input is float64), and indices into the rows of the query's class.
        Missing neighbours have value -inf and index -1.

    Raises:
        TypeError, ValueError: for a bad `k` or `metric`.
        RuntimeError: for bad tensors; on the CPU also for offsets or counts out of range, which CUDA, to
            stay free of synchronisation, clamps.

    Shape:
        queries [M, D]; bank [N, D], or [C, N, D] with query_offsets [C + 1] and bank_counts [C], int64
        -> values [M, k], indices [M, k] int64.

    Reference: Wang et al., Hunting Sparsity, CVPR 2023, section 3.3 (nearest-neighbour graphs).
    """
    _arguments.tensors("knn_topk", queries=queries, bank=bank)
    k = _arguments.positive_integer("knn_topk", "k", k)
    metric = _arguments.metric_name("knn_topk", metric)
    return torch.ops.dgcl_ops.knn_topk(
        queries, bank, k, metric, query_offsets, bank_counts, bool(exclude_self), bool(unit_bank)
    )


@_registry.register_fake(_OP)
def _fake(queries, bank, k, metric, query_offsets, bank_counts, exclude_self, unit_bank):
    shape = (queries.shape[0], k)
    values = queries.new_empty(shape, dtype=compute_dtype(queries, bank))
    return values, queries.new_empty(shape, dtype=torch.int64)


@_registry.register_fake(f"{_OP}_backward")
def _backward_fake(dL_dvalues, queries, bank, values, indices, metric, query_offsets, unit_bank):
    return queries.new_empty(queries.shape), bank.new_empty(bank.shape)


def _setup_context(ctx, inputs, output):
    queries, bank, _, ctx.metric, query_offsets, _, _, ctx.unit_bank = inputs
    values, indices = output
    ctx.mark_non_differentiable(indices)
    ctx.save_for_backward(queries, bank, values, indices, query_offsets)


def _backward(ctx, dL_dvalues, _dL_dindices):
    queries, bank, values, indices, query_offsets = ctx.saved_tensors
    dL_dqueries, dL_dbank = torch.ops.dgcl_ops.knn_topk_backward(
        dL_dvalues, queries, bank, values, indices, ctx.metric, query_offsets, ctx.unit_bank
    )
    return dL_dqueries, dL_dbank, None, None, None, None, None, None


_registry.register_autograd(_OP, _backward, _setup_context)
_registry.register_autograd(f"{_OP}_backward", _arguments.no_second_derivative("knn_topk"))


@torch.library.register_vmap(_OP)
def _vmap(
    info, in_dims, queries, bank, k, metric, query_offsets, bank_counts, exclude_self, unit_bank
):
    rows = _registry.knn_batch(
        "knn_topk", info, in_dims, queries, bank, query_offsets, bank_counts, exclude_self
    )
    found = torch.ops.dgcl_ops.knn_topk(
        *rows[:2], k, metric, rows[2], None, exclude_self, unit_bank
    )
    return tuple(each.unflatten(0, (info.batch_size, -1)) for each in found), (0, 0)
