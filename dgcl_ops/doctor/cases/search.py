"""Cases of the nearest-neighbour operators."""

import functools
from collections.abc import Iterator

import torch

from .cases import INF, NAN, Case, integers, rows, subnormal, whole_rows

METRICS = ("cosine", "dot", "l2")
EXACT = {"environment": ("DGCL_OPS_CUDA_SEARCH", "exact")}
F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16


def searches() -> Iterator[tuple[str, tuple, int, dict]]:
    """Name, (queries, bank), k and options; for knn_topk and knn_density alike."""
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
        lost = rows(40, 9, seed=2)
        lost[3, 4], lost[7, 0], lost[11], lost[39, 8] = NAN, INF, 0, -INF
        asking = rows(6, 9, seed=1)
        asking[2, 8], asking[4] = NAN, 0
        yield f"{metric} NaN, infinite and zero rows", (asking, lost), 33, {"metric": metric}
    for k in (1, 2, 31, 32, 33, 64, 256, 257, 300, 700):
        yield f"k {k} of 690", (rows(3, 4, seed=1), rows(690, 4, seed=2)), k, {}
    # Columns beyond what is in shared memory at a time.
    for columns in (255, 256, 257, 300):
        yield f"{columns} columns", (rows(3, columns, seed=1), rows(20, columns, seed=2)), 5, {}
    yield "300 columns, double", (rows(3, 300, dtype=F64, seed=1), rows(20, 300, dtype=F64)), 5, {}
    # A bank in parts for different blocks, merged at the end.
    parted = rows(7, 5, seed=1), rows(1601, 5, seed=2)
    parted[1][-1] = parted[0][3]  # the last row is somebody's neighbour
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
    # Too much alike for the filter before the last tile: it stops while copies are under way.
    yield "equal rows over many tiles", (rows(3, 6, seed=1), same[:1].expand(512, 6)), 20, {}
    # Banks in the order of their scores: every later row displaces an earlier one, or none does. With long queries the
    # filter can tell rows apart that are some places from each other.
    line = torch.arange(1.0, 1201.0)[:, None].repeat(1, 2)
    for k in (1, 32, 256):
        for name, bank in (("rising", line), ("falling", line.flip(0))):
            yield f"{name} scores, k {k}", (torch.full((2, 2), 1000.0), bank), k, {"metric": "dot"}
    # A tight class far from the origin: the roundings of long sums are larger than the bound of the centred product.
    for spread in (1e-3, 1e-5):
        mean = rows(1, 32, seed=3)
        tight = mean + spread * rows(9, 32, seed=1), mean + spread * rows(500, 32, seed=2)
        yield f"tight class, {spread}", tight, 32, {}
    # The same with a far query, where the filter can tell the rows apart: in bfloat16 it must have the right centre at
    # every column, in each 32 that are multiplied together and in each 256 that are in shared memory.
    for columns in (70, 300):
        mean = 2 * rows(1, columns, seed=3)
        tight = rows(5, columns, seed=1), mean + 4e-3 * rows(200, columns, seed=2)
        yield f"tight class, {columns} columns", tight, 8, {"metric": "dot"}
    yield "subnormal rows", (subnormal(rows(5, 9, seed=1)), subnormal(rows(40, 9, seed=2))), 6, {}
    double = rows(5, 9, dtype=F64, seed=1), rows(40, 9, dtype=F64, seed=2)
    yield "subnormal rows, double", (subnormal(double[0]), subnormal(double[1])), 6, {}
    yield from far_apart()
    yield from searches_on_the_bound()
    yield from grouped_searches()
    yield from exact_searches()


@functools.cache
def four_thousand_million() -> torch.Tensor:
    """So many elements of address space; only the pages that somebody touches take memory."""
    return torch.empty(2**32 + 64, dtype=BF16)


def far_apart() -> Iterator[tuple[str, tuple, int, dict]]:
    """Rows more than 2^31 elements from the first: offsets need 64 bits."""
    bank = four_thousand_million().as_strided((5, 8), (2**30, 1))
    bank.copy_(rows(5, 8, dtype=BF16, seed=2))
    for metric in ("cosine", "dot"):
        yield f"{metric} rows far apart", (rows(3, 8, seed=1), bank), 3, {"metric": metric}
    floats = four_thousand_million().view(F32).as_strided((3, 8), (2**30, 1), 16)  # elsewhere
    floats.copy_(rows(3, 8, seed=3))
    yield "exact rows far apart", (rows(3, 8, seed=1), floats), 3, {"metric": "dot"} | EXACT


def rounded_apart(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A query, a row A and a row B, [65] each, with equal products. bfloat16 rounds A down and B up, on both sides, all
    the same way: in the filter B is ahead by as much as its bound allows it to be wrong."""
    half = 32
    down, up = 1 + 2**-8 * 0.98, 1 + 2**-8 * 1.02  # where bfloat16 has steps of 2^-7
    generator = torch.Generator().manual_seed(seed)
    magnitudes = 2.0 ** torch.randint(-2, 3, (half,), generator=generator)
    query, row_a, row_b = torch.zeros(3, 2 * half + 1)
    query[:half] = row_a[:half] = down * magnitudes
    query[half:-1] = row_b[half:-1] = up * magnitudes
    query[-1] = 1
    row_b[-1] = query @ row_a - query @ row_b
    return query, row_a, row_b


def searches_on_the_bound() -> Iterator[tuple[str, tuple, int, dict]]:
    """40 of A, truly a little ahead of 60 of B. The mean of the averaged rows is 0: centring changes nothing."""
    query, row_a, row_b = rounded_apart(seed=1)
    near, far = (1 + 2**-16) * row_a, row_b
    for name, size, places in (
        # All of them when a list is first cut down.
        ("first cut", 256, lambda i: True),
        # A comes later, against the threshold that B has set. Every third row is not among the 256 that are averaged.
        ("threshold", 384, lambda i: i % 3 == 2 and i >= 256),
    ):
        bank = torch.zeros(size, len(query))
        free = [i for i in range(size) if i % 3 != 2]
        late = [i for i in range(size) if places(i) and i not in free[:120]][:40]
        bank[free[:60]], bank[free[60:120]], bank[late] = far, -far, near
        if size == 256:
            bank[[i for i in range(size) if i not in free[:120] and i not in late][:40]] = -near
        yield f"rows on the bound: {name}", (query.repeat(3, 1), bank), 32, {"metric": "dot"}


def grouped_searches() -> Iterator[tuple[str, tuple, int, dict]]:
    offsets, counts = integers([2, 2, 40, 105, 106, 110]), integers([30, 9, 33, 0, 1])
    for metric in METRICS:
        for itself in (False, True):
            pair = rows(112, 10, seed=1), rows(5, 33, 10, seed=2)
            options = {"metric": metric, "offsets": offsets, "counts": counts}
            options["exclude_self"] = itself
            options["thread"] = metric == "cosine" and itself
            name = f"{metric} classes{', not itself' if itself else ''}"
            yield name, pair, 8, options
    bank = rows(70, 7, seed=3)
    yield "bank against itself", (bank, bank), 5, {"exclude_self": True}
    yield "bank of ties against itself", (bank.round(), bank.round()), 69, {"exclude_self": True}
    pair = rows(30, 6, seed=1), rows(3, 9, 6)
    wrong = {"offsets": integers([-3, 20, 20, 99]), "counts": integers([-1, 50, 4])}
    right = {"offsets": integers([0, 20, 20, 30]), "counts": integers([0, 9, 4])}
    yield "offsets and counts out of range", pair, 4, wrong | {"repaired": right}
    for first in (65, 130):  # queries before the first class fill tiles of their own
        late = {"offsets": integers([first, first + 20, first + 69]), "counts": integers([30, 9])}
        yield f"{first} queries of no class", (rows(200, 6, seed=1), rows(2, 33, 6)), 4, late
    yield "offsets that decrease", pair, 4, {"offsets": integers([25, 3, 99, 7]), "anything": True}


def exact_searches() -> Iterator[tuple[str, tuple, int, dict]]:
    """Without the tensor cores' filter."""
    for metric in METRICS:
        for queries, bank, columns, k in (
            (1, 1, 1, 1),
            (31, 15, 31, 3),
            (33, 17, 33, 16),
            (65, 90, 32, 40),
            (3, 40, 260, 5),
        ):
            name = f"exact {metric} {queries} x {bank} x {columns}, k {k}"
            options = {"metric": metric, "thread": queries == 33 or columns == 260}
            pair = rows(queries, columns, seed=1), rows(bank, columns, seed=2)
            yield name, pair, k, options | EXACT
    yield "exact ties", (whole_rows(9, 3), whole_rows(150, 3)), 10, EXACT
    # The last tile fills the lists up.
    full = rows(5, 8, seed=1), rows(128, 8, seed=2)
    yield "exact, cut down at the end", full, 16, EXACT | {"thread": True}
    grouped = {"offsets": integers([1, 40, 40, 75]), "counts": integers([60, 3, 17])}
    yield "exact classes", (rows(80, 8, seed=1), rows(3, 64, 8)), 5, grouped | EXACT
    # Three blocks run at a time: each takes a second class.
    several = {"offsets": torch.arange(0, 14, 2)}
    yield (
        "exact, more classes than blocks",
        (rows(12, 8, seed=1), rows(6, 20, 8)),
        4,
        several | EXACT,
    )
    lost = rows(5, 7, seed=1)
    lost[2, 3] = NAN
    yield "exact, a NaN query", (lost, rows(40, 7, seed=2)), 5, EXACT
    bank = rows(40, 7, seed=3)
    yield "exact bank against itself", (bank, bank), 5, {"exclude_self": True} | EXACT


def density_scales(k: int) -> list[int]:
    return sorted({max(1, k // 3), max(1, k // 2), k})


def cases() -> Iterator[Case]:
    for name, (queries, bank), k, options in searches():
        thread, repaired = options.get("thread", False), options.get("repaired")

        def arguments(op, name=name, queries=queries, bank=bank, k=k, o=options, instead=None):
            o = o | (instead or {})
            flags = o.get("exclude_self", False)
            common = o.get("metric", "cosine"), o.get("offsets"), o.get("counts"), flags
            unit = o.get("unit_bank", False)
            if op == "knn_topk":
                return (queries, bank, k, *common, unit)
            return (queries, bank, density_scales(k), *common, len(name) % 2 == 0, unit)

        for op in ("knn_topk", "knn_density"):
            make = functools.partial(arguments, op)
            other = functools.partial(arguments, op, instead=repaired) if repaired else None
            more = {key: options[key] for key in ("anything", "environment") if key in options}
            yield Case(op, name, make, thread=thread, repaired=other, **more)
