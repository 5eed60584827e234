"""Cases of sum_rows."""

from collections.abc import Iterator

import torch
from torch import Tensor

from . import Case
from .tensors import (
    BF16,
    F16,
    F32,
    F64,
    FLOATS,
    INF,
    NAN,
    integers,
    labels,
    rows,
    spaced,
    vast_memory,
)


def table(classes: int, width: int, number: int, seed: int = 0) -> Tensor:
    return labels(classes * width, number, seed=seed).view(classes, width)


def cases() -> Iterator[Case]:
    def case(name, *arguments, in_float64=False, repaired=None, **options):
        other = None if repaired is None else lambda: repaired
        return Case("sum_rows", name, lambda: (*arguments, in_float64), repaired=other, **options)

    # Fewer columns than the threads of a block, as many, more; and several classes in a block.
    for dim in (1, 2, 21, 63, 64, 65, 200):
        for classes, width in ((1, 1), (3, 9), (22, 17)):
            counts = labels(classes, width + 1, seed=dim)
            places = table(classes, width, 30, seed=dim)
            title = f"{classes} classes, {width} places, {dim} columns"
            thread = (dim, classes) == (65, 3)
            yield case(f"{title}, shared rows", rows(30, dim), places, counts, thread=thread)
            yield case(f"{title}, own rows", rows(classes, 30, dim), places, counts)
            yield case(f"{title}, in order", rows(classes, width, dim), None, counts)
    places, counts = table(3, 19, 11), integers([19, 0, 8])
    for dtype in FLOATS:
        for name, given in {
            "dense": rows(3, 11, 37, dtype=dtype),
            "strided": spaced(rows(3, 11, 37, dtype=dtype)),
            "transposed": rows(3, 37, 11, dtype=dtype).mT,
            "every class the same": rows(1, 11, 37, dtype=dtype).expand(3, 11, 37),
            "every row the same": rows(3, 1, 37, dtype=dtype).expand(3, 11, 37),
        }.items():
            yield case(f"{name}, {dtype}", given, places, counts)
            yield case(f"{name}, {dtype}, in float64", given, places, counts, in_float64=True)
    # A sum in another order has other bits: the large numbers cancel only at the end.
    large = torch.tensor([2.0**25, 1, 1, 1, -(2.0**25), 3], dtype=F32)[None, :, None]
    yield case("cancelling", large, None, integers([6]), float32_only=True)
    yield case("cancelling, in float64", large, None, integers([6]), in_float64=True)
    yield case("zeros below 0", torch.full((1, 3, 2), -0.0), None, integers([3]))
    yield case("overflow of float16", torch.full((1, 9, 3), 6e4, dtype=F16), None, integers([9]))
    yield case("below float32", torch.full((1, 9, 3), 1e-310, dtype=F64), None, integers([9]))
    bad = rows(2, 6, 5)
    bad[0, 2:] = NAN
    bad[1, 1, 2:4] = torch.tensor([INF, -INF])
    yield case("NaN beyond the counts", bad, None, integers([2, 1]))
    yield case("inf in a sum", bad, None, integers([2, 6]))
    beyond = torch.tensor([[0, 5, 2**40, -7], [3, 6, 6, -(2**62)]])
    yield case("indices beyond the counts", bad, beyond, integers([2, 1]))
    twice = torch.stack([places, -places - 1], 2)[:, :, 0]
    yield case("every second index", rows(11, 4), twice, torch.stack([counts, -counts], 1)[:, 0])
    yield case("no rows", rows(3, 0, 4), None, integers([0, 0, 0]))
    yield case("no rows to index", rows(0, 4), table(3, 2, 1), integers([0, 0, 0]))
    yield case("no places", rows(3, 5, 4), table(3, 0, 1), integers([0, 0, 0]))
    yield case("no classes", rows(5, 4), table(0, 3, 1), integers([]))
    yield case("no columns", rows(3, 5, 0), None, integers([1, 2, 5]))

    good = rows(3, 7, 5), table(3, 4, 7), integers([4, 2, 3])
    stray = good[1].clone()
    stray[0, 1], stray[1, 0], stray[2, 3] = 2**40, -1, 99  # the last is beyond its count
    mended = stray.clone()
    mended[0, 1], mended[1, 0] = 6, 0
    yield case("indices out of range", good[0], stray, good[2],
               repaired=(good[0], mended, good[2], False))  # fmt: skip
    yield case("counts out of range", *good[:2], integers([2**62, -5, 3]),
               repaired=(*good[:2], integers([4, 0, 3]), False))  # fmt: skip
    yield case("counts out of range, in order", good[0], None, integers([8, -1, 2**33]),
               repaired=(good[0], None, integers([7, 0, 7]), False))  # fmt: skip
    yield Case("sum_rows", "an index without rows", lambda: (rows(0, 4), table(3, 2, 9), good[2] - 2),
               answer=lambda: [torch.zeros(3, 4)])  # fmt: skip
    yield case(
        "many rows", rows(40, 60, 70), table(40, 90, 60), labels(40, 91), parallel=True, long=True
    )

    def far_apart() -> tuple:
        # The second class and the third row are each beyond 2^31 elements.
        given = vast_memory().as_strided((2, 3, 3), (2**31 + 16, 2**30, 1))
        given.copy_(rows(2, 3, 3, dtype=BF16))
        return given, integers([[1, 0, 2]] * 2), integers([3, 2]), False

    yield Case("sum_rows", "rows far apart", far_apart, vast=True)
