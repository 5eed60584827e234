"""The k nearest bank rows of each query."""

from typing import Any

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops._precision import compute_dtype
from dgcl_ops.ops import _arguments, _registry
from dgcl_ops.ops._arguments import Metric
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
    metric: Metric = "cosine",
    query_offsets: Tensor | None = None,
    bank_counts: Tensor | None = None,
    exclude_self: bool = False,
    unit_bank: bool = False,
) -> tuple[Tensor, Tensor]:
    """Finds the `k` best-scoring bank rows of each query, sorted by descending score.

    Rows are ranked by a float32 (float64) score that is summed in a fixed order. The result is the same on every
    backend and instruction set, and for any number of threads. Equal scores go to the lower index. A row whose score
    is NaN or -inf is never a neighbour.

    The values are differentiable in `queries` and `bank`, with the neighbour set held fixed. An l2 distance of 0 has
    gradient 0. Second derivatives and `torch.func` are not supported.

    Args:
        queries: [M, D], the rows to look up. With a grouped bank they are sorted by class.
        bank: [N, D], or [C, N, D] for one bank per class. Views are read in place. The dtype may differ from the
            queries' dtype.
        k: neighbours per query, at least 1 and less than 2^31. It may exceed the number of rows.
        metric: "cosine", "dot" or "l2". "l2" is the negative Euclidean distance, computed from differences. A zero row
            has cosine 0 with every row.
        query_offsets: [C + 1] int64. Class c's queries are rows query_offsets[c] to query_offsets[c + 1]. Required
            with a grouped bank, and only then. Rows outside belong to no class and have no neighbours.
        bank_counts: [C] int64, the rows in use per class. By default all.
        exclude_self: treat query p of a class as row p of that class's bank, and do not count it as its own neighbour.
            A query without such a row has no neighbours.
        unit_bank: the bank holds unit rows already, so "cosine" does not normalise them.

    Returns:
        The pair (values, indices).

        - values: [M, k] float32 (float64 if an input is float64). -inf for a missing neighbour.
        - indices: [M, k] int64, rows in the bank of the query's class. -1 for a missing neighbour.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `k` is not positive, or `metric` is unknown.
        RuntimeError: If a shape, dtype or device is wrong, or, on the CPU, if offsets or counts are out of range. CUDA
            clamps them instead, because a check would sync.

    Reference: Wang et al., Hunting Sparsity, CVPR 2023, section 3.3 (nearest-neighbour graphs).
    """
    _arguments.tensors("knn_topk", queries=queries, bank=bank)
    k = _arguments.positive_integer("knn_topk", "k", k)
    name = _arguments.metric_name("knn_topk", metric)
    return torch.ops.dgcl_ops.knn_topk(
        queries, bank, k, name, query_offsets, bank_counts, bool(exclude_self), bool(unit_bank)
    )


@_registry.register_fake(_OP)
def _fake(
    queries: Tensor, bank: Tensor, k: int, metric: str, *options: Tensor | bool | None
) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], k)
    values = queries.new_empty(shape, dtype=compute_dtype(queries, bank))
    return values, queries.new_empty(shape, dtype=torch.int64)


@_registry.register_fake(f"{_OP}_backward")
def _backward_fake(
    dL_dvalues: Tensor, queries: Tensor, bank: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    return queries.new_empty(queries.shape), bank.new_empty(bank.shape)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    queries, bank, _, ctx.metric, query_offsets, _, _, ctx.unit_bank = inputs
    values, indices = output
    ctx.mark_non_differentiable(indices)
    ctx.save_for_backward(queries, bank, values, indices, query_offsets)


def _backward(ctx: Any, dL_dvalues: Tensor, _dL_dindices: Tensor) -> tuple[Tensor | None, ...]:
    queries, bank, values, indices, query_offsets = ctx.saved_tensors
    dL_dqueries, dL_dbank = torch.ops.dgcl_ops.knn_topk_backward(
        dL_dvalues, queries, bank, values, indices, ctx.metric, query_offsets, ctx.unit_bank
    )
    return dL_dqueries, dL_dbank, None, None, None, None, None, None


_registry.register_autograd(_OP, _backward, _setup_context)
_registry.register_autograd(f"{_OP}_backward", _arguments.no_second_derivative("knn_topk"))


@torch.library.register_vmap(_OP)
def _vmap(
    info: Any,
    in_dims: tuple,
    queries: Tensor,
    bank: Tensor,
    k: int,
    metric: str,
    query_offsets: Tensor | None,
    bank_counts: Tensor | None,
    exclude_self: bool,
    unit_bank: bool,
) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    rows, banks, offsets = _registry.knn_batch(
        "knn_topk", info, in_dims, queries, bank, query_offsets, bank_counts, exclude_self
    )
    outputs = torch.ops.dgcl_ops.knn_topk(
        rows, banks, k, metric, offsets, None, exclude_self, unit_bank
    )
    return tuple(each.unflatten(0, (info.batch_size, -1)) for each in outputs), (0, 0)
