"""Cases of the nearest-neighbour operators: edges of tiles, dtypes, unusual numbers."""

from collections.abc import Iterator

import torch

from . import Case
from .search_builder import Search, search_cases
from .tensors import BF16, F16, F32, F64, INF, METRICS, NAN, rows, subnormal, whole_rows


def searches() -> Iterator[Search]:
    for metric in METRICS:
        # Edges of the tiles: 32 or 64 queries, 16 or 128 bank rows, 32 columns.
        for queries, bank, columns, k in (
            (1, 1, 1, 1),
            (31, 15, 31, 3),
            (33, 16, 33, 16),
            (63, 127, 5, 8),
            (64, 128, 32, 32),
            (65, 129, 33, 33),
            (5, 300, 8, 7),
        ):
            name = f"{metric} {queries} x {bank} x {columns}, k {k}"
            pair = rows(queries, columns, seed=1), rows(bank, columns, seed=2)
            options = {"metric": metric, "thread": queries in (31, 65) and metric != "dot"}
            yield name, pair, k, options
        yield f"{metric} ties", (whole_rows(9, 3), whole_rows(150, 3)), 40, {"metric": metric}
        same = rows(1, 6).expand(200, 6)
        options = {"metric": metric, "thread": metric == "cosine"}
        yield f"{metric} equal rows", (rows(3, 6, seed=1), same), 20, options
        double = rows(34, 133, dtype=F64, seed=1), rows(20, 133, dtype=F64, seed=2)
        yield f"{metric} double", double, 6, {"metric": metric, "thread": metric == "cosine"}
        unusable = rows(40, 9, seed=2)
        unusable[3, 4], unusable[7, 0], unusable[11], unusable[39, 8] = NAN, INF, 0, -INF
        queries = rows(6, 9, seed=1)
        queries[2, 8], queries[4] = NAN, 0
        yield f"{metric} NaN, infinite and zero rows", (queries, unusable), 33, {"metric": metric}
    for k in (1, 2, 31, 32, 33, 64, 256, 257, 300, 700):
        yield f"k {k} of 690", (rows(3, 4, seed=1), rows(690, 4, seed=2)), k, {}
    # More columns than shared memory holds at a time.
    for columns in (255, 256, 257, 300):
        yield f"{columns} columns", (rows(3, columns, seed=1), rows(20, columns, seed=2)), 5, {}
    yield "300 columns, double", (rows(3, 300, dtype=F64, seed=1), rows(20, 300, dtype=F64)), 5, {}
    # A bank split over blocks, with results merged at the end.
    parted = rows(7, 5, seed=1), rows(1601, 5, seed=2)
    parted[1][-1] = parted[0][3]  # the last row is a neighbour
    yield "split bank", parted, 9, {"thread": True}
    yield "split bank of ties", (whole_rows(7, 3, seed=1), whole_rows(1600, 3)), 70, {}
    yield "split bank, double", tuple(t.double() for t in parted), 9, {"metric": "dot"}
    for first in (F64, F32, F16, BF16):
        for second in (F64, F32, F16, BF16):
            pair = rows(5, 40, dtype=first, seed=1), rows(70, 40, dtype=second, seed=2)
            yield f"{first} queries, {second} bank", pair, 6, {}
    for dtype in (F32, F16, BF16):
        for columns in (8, 9):  # rows that are aligned for 16-byte copies, and others
            pair = rows(5, columns, seed=1), rows(140, columns, dtype=dtype, seed=2)
            yield f"unit {dtype} bank, {columns} columns", pair, 6, {"unit_bank": True}
    views = rows(9, 20, seed=1)[::2, 3:12], rows(80, 40, seed=2)[::2, 1:10]
    yield "views", views, 4, {"metric": "l2"}
    spread = (
        rows(4, 6, seed=1),
        rows(60, 6, seed=2) * 2.0 ** (torch.arange(60) % 5 * 30 - 60)[:, None],
    )
    yield "rows of all lengths", spread, 12, {"thread": True}
    # So similar that the filter gives up before the last tile, while copies are in flight.
    yield "equal rows over many tiles", (rows(3, 6, seed=1), same[:1].expand(512, 6)), 20, {}
    # Banks sorted by score: every later row displaces an earlier one, or none does. With long queries the filter can
    # separate rows that are a few places apart.
    line = torch.arange(1.0, 1201.0)[:, None].repeat(1, 2)
    for k in (1, 32, 256):
        for name, bank in (("rising", line), ("falling", line.flip(0))):
            yield f"{name} scores, k {k}", (torch.full((2, 2), 1000.0), bank), k, {"metric": "dot"}
    # A tight class far from the origin: the roundings of long sums are larger than the bound of the centred product.
    for spread in (1e-3, 1e-5):
        mean = rows(1, 32, seed=3)
        tight = mean + spread * rows(9, 32, seed=1), mean + spread * rows(500, 32, seed=2)
        yield f"tight class, {spread}", tight, 32, {}
    # The same with a far query, for which the filter can separate the rows. To do so in bfloat16, it must subtract the
    # right centre in every column: in all 32 that are multiplied together, and in all 256 in shared memory.
    for columns in (70, 300):
        mean = 2 * rows(1, columns, seed=3)
        tight = rows(5, columns, seed=1), mean + 4e-3 * rows(200, columns, seed=2)
        yield f"tight class, {columns} columns", tight, 8, {"metric": "dot"}
    yield "subnormal rows", (subnormal(rows(5, 9, seed=1)), subnormal(rows(40, 9, seed=2))), 6, {}
    double = rows(5, 9, dtype=F64, seed=1), rows(40, 9, dtype=F64, seed=2)
    yield "subnormal rows, double", (subnormal(double[0]), subnormal(double[1])), 6, {}


def cases() -> Iterator[Case]:
    yield from search_cases(searches())
