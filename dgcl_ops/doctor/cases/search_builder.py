"""Makes cases of the search operators from descriptions of searches."""

import functools
from collections.abc import Callable, Iterable, Iterator

import torch

from . import Case
from .tensors import BF16, F16, F32, F64

# Name, (queries, bank) or a function that makes them, k, and options: those of the public function, those of Case, and
# `backward`, which adds a case of knn_topk_backward.
Search = tuple[str, tuple | Callable[[], tuple], int, dict]
MARKS = ("anything", "environment", "float32_only", "vast", "long", "bulk", "thread", "parallel")
EXACT = {"environment": ("DGCL_OPS_CUDA_SEARCH", "exact")}


def density_scales(k: int) -> list[int]:
    return sorted({max(1, k // 3), max(1, k // 2), k})


def arguments(op: str, search: Search, repair: bool = False) -> tuple:
    name, pair, k, options = search
    queries, bank = pair() if callable(pair) else pair
    options = options | (options["repaired"] if repair else {})
    offsets, counts = options.get("offsets"), options.get("counts")
    metric, unit_bank = options.get("metric", "cosine"), options.get("unit_bank", False)
    common = metric, offsets, counts, options.get("exclude_self", False)
    if op == "knn_density":
        scales = options.get("scales") or density_scales(k)
        return (queries, bank, scales, *common, len(name) % 2 == 0, unit_bank)
    if op == "knn_topk":
        return (queries, bank, k, *common, unit_bank)
    values, indices = torch.ops.dgcl_ops.knn_topk(queries, bank, k, *common, unit_bank)
    return torch.ones_like(values), queries, bank, values, indices, metric, offsets, unit_bank


def tolerance(search: Search) -> float:
    """A bank row sums at most one product for each query, in a fixed order. The CPU rounds some products once less."""
    _, pair, _, _ = search
    queries, _ = pair
    digits = {F64: 53, F32: 24, F16: 10, BF16: 7}[queries.dtype]
    terms = 1 if queries.dtype in (F16, BF16) else max(70, len(queries))
    return terms * 2.0**-digits


def search_cases(searches: Iterable[Search]) -> Iterator[Case]:
    for search in searches:
        name, _, _, options = search
        marks = {mark: options[mark] for mark in MARKS if mark in options}
        for op in ("knn_topk", "knn_density"):
            make = functools.partial(arguments, op, search)
            repaired = functools.partial(make, repair=True) if "repaired" in options else None
            yield Case(op, name, make, repaired=repaired, **marks)
        if options.get("backward"):
            make = functools.partial(arguments, "knn_topk_backward", search)
            yield Case("knn_topk_backward", name, make, tolerance(search), **marks)
