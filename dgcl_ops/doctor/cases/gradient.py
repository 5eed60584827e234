"""Cases of the gradient of the nearest-neighbour scores."""

from collections.abc import Iterator

import torch

from . import Case
from .search_sizes import four_classes
from .tensors import (
    BF16,
    F16,
    F32,
    F64,
    METRICS,
    NAN,
    guarded,
    integers,
    rows,
    subnormal,
    whole_rows,
)

# Relative to the largest gradient. At most 70 terms are added, in the same order. The CPU fuses products and sums only
# where columns fill a vector, so the remaining columns may round 70 products. The output's dtype rounds once more.
GRADIENT = {F64: 70 * 2.0**-53, F32: 70 * 2.0**-24, F16: 2.0**-10, BF16: 2.0**-7}


def case(
    name, queries, bank, k, metric="cosine", offsets=None, unit=False, scale=0.75, **options
) -> Case:
    """Makes a case from the neighbours that knn_topk selects on the CPU. The upstream gradient has zeros."""
    stray = options.pop("stray", False)
    counts = options.pop("counts", None)

    def arguments():
        # stray: neighbours for all queries, including those without a class
        search = (bank[0], k, metric, None) if stray else (bank, k, metric, offsets)
        neighbours = torch.ops.dgcl_ops.knn_topk(queries, *search, counts, False, unit)
        values = neighbours[0]
        upstream = whole_rows(*values.shape, dtype=values.dtype, seed=9) * scale
        return (upstream, queries, bank, *neighbours, metric, offsets, unit)

    tolerance = GRADIENT[queries.dtype]
    return Case("knn_topk_backward", name, arguments, tolerance=tolerance, **options)


def cases() -> Iterator[Case]:
    for metric in METRICS:
        for queries, bank, columns, k in (
            (1, 1, 1, 1),
            (9, 5, 31, 7),
            (33, 40, 33, 4),
            (6, 9, 129, 9),
        ):
            pair = rows(queries, columns, seed=1), rows(bank, columns, seed=2)
            name = f"{metric} {queries} x {bank} x {columns}, k {k}"
            yield case(name, *pair, k, metric, thread=queries == 9)
        grouped = rows(30, 10, seed=1), rows(3, 12, 10, seed=2)
        yield case(f"{metric} classes", *grouped, 5, metric, integers([1, 14, 14, 28]))
        outside = integers([1, 14, 14, 28])
        yield case(f"{metric} queries of no class", *grouped, 5, metric, outside, stray=True)
        few = rows(70, 6, seed=1), rows(2, 6, seed=2)
        yield case(f"{metric} rows that are everybody's", *few, 2, metric)
    for dtype in (F64, F16, BF16):
        pair = rows(9, 40, dtype=dtype, seed=1), rows(12, 40, dtype=dtype, seed=2)
        yield case(f"{dtype}", *pair, 5)
    yield case("unit bank", rows(9, 5, seed=1), rows(12, 5, seed=2), 4, unit=True)
    zeros = rows(6, 4, seed=1), rows(12, 4, seed=2)
    zeros[0][2], zeros[1][3], zeros[1][5, 1] = 0, 0, NAN
    yield case("zero and NaN rows", *zeros, 12)
    equal = rows(8, 4, seed=1)
    yield case("distances of zero", equal, equal.clone(), 3, "l2")
    # The gradient of a row is that of its unit row divided by its length, which is finite here.
    yield case(
        "subnormal queries", subnormal(rows(9, 5, seed=1)), rows(12, 5, seed=2), 4, scale=2.0**-40
    )
    # More than kMostGradientWarps queries and bank rows, so some warps take two.
    many = rows(8192 + 9, 2, seed=1), rows(8192 + 9, 2, seed=2)
    yield case("more rows than warps", *many, 1, "l2", long=True)
    yield from everyday_cases()
    yield from refused_cases()


def everyday_cases() -> Iterator[Case]:
    for metric in METRICS:
        yield case(metric, rows(130, 67, seed=1), rows(300, 67, seed=2), 9, metric)
        pair, classes = four_classes()
        offsets, counts = classes["offsets"], classes["counts"]
        yield case(f"{metric} grouped", *pair, 33, metric, offsets, counts=counts)
    yield case("bfloat16 in float16", rows(70, 40, dtype=BF16), rows(200, 40, dtype=F16), 9)
    holes = rows(80, 40, seed=1), rows(90, 40, seed=2)
    for t in holes:
        t[5], t[70, 3] = 0, NAN
    yield case("zero and NaN rows of 40 columns", *holes, 90)
    yield case("unit bank of 40 columns", *holes, 9, unit=True)


def refused_cases() -> Iterator[Case]:
    """A neighbour just beyond the bank, or anywhere."""
    queries, bank = guarded(rows(9, 8, seed=1)), guarded(rows(12, 8))
    for stray in (12, -2, 2**62):

        def arguments(stray=stray):
            options = (3, "dot", None, None, False, False)
            values, indices = torch.ops.dgcl_ops.knn_topk(queries, bank, *options)
            indices[4, 1] = stray
            return torch.ones_like(values), queries, bank, values, indices, "dot", None, False

        yield Case("knn_topk_backward", f"neighbour {stray} of 12", arguments, anything=True)
