"""Cases of the nearest-neighbour operators: every width, many blocks, guarded rows, typical sizes."""

from collections.abc import Iterator

import torch

from . import Case
from .search_builder import Search, search_cases
from .tensors import (
    BF16,
    COLUMNS,
    F16,
    F32,
    F64,
    FLOATS,
    INF,
    METRICS,
    NAN,
    guarded,
    integers,
    rows,
    spaced,
    whole_rows,
)


def searches_of_all_widths() -> Iterator[Search]:
    """For every search operator, including the gradient."""
    for n, columns in enumerate(COLUMNS):
        metric, dtype = METRICS[n % 3], (F32, F64, F16, BF16)[n % 4]
        pair = rows(13, columns, seed=1), rows(67, columns, dtype=dtype, seed=2)
        yield f"{metric} {columns} columns, {dtype}", pair, 9, {"metric": metric}
    for metric in METRICS:
        for dtype in FLOATS:
            pair = guarded(rows(21, 37, dtype=dtype, seed=1)), guarded(rows(70, 37, dtype=dtype))
            for unit in (False, True):
                options = {"metric": metric, "unit_bank": unit}
                yield f"{metric} guarded {dtype}, unit {unit}", pair, 90, options
        # A block for every thread, and more survivors than buffers hold.
        pair = rows(900, 5, seed=1), rows(700, 5, dtype=F16, seed=2)
        yield f"{metric} many", pair, 7, {"metric": metric, "parallel": True}
        pair = whole_rows(90, 3, seed=1), whole_rows(700, 3).double()
        yield f"{metric} many ties", pair, 60, {"metric": metric, "parallel": metric == "l2"}
        far = rows(40, 9, seed=1) * 1e30, rows(150, 9, seed=2) * 1e30
        far[1][3, 4], far[1][7, 0], far[1][11], far[0][5, 8] = NAN, INF, 0, -INF
        yield f"{metric} scores that overflow", far, 30, {"metric": metric, "float32_only": True}
        bank = rows(4, 130, 33, seed=2)
        grouped = {"offsets": integers([3, 90, 90, 205, 400]), "counts": integers([130, 9, 0, 77])}
        for itself in (False, True):
            options = grouped | {"metric": metric, "exclude_self": itself, "parallel": not itself}
            name = f"{metric} groups{', not itself' if itself else ''}"
            yield name, (rows(410, 33, seed=1), bank), 11, options
    # A bank too large to be copied is widened row by row: 12 MB hold 1536 rows of 2048.
    large = rows(5, 2048, seed=1), rows(1600, 2048, dtype=BF16)
    yield "large bank", large, 5, {"parallel": True}
    for queries, bank in ((0, 0), (0, 5), (5, 0)):
        yield f"{queries} x {bank}", (rows(queries, 4), rows(bank, 4)), 3, {}
    yield "no query, huge k", (rows(0, 4), rows(5, 4)), 2**31 - 1, {}
    none = {"offsets": integers([0]), "counts": integers([])}
    yield "no group", (rows(6, 4), rows(0, 8, 4)), 3, none


def with_holes(t: torch.Tensor) -> torch.Tensor:
    """Zero rows, rows that cannot be neighbours, and rows near the ends of float32's range."""
    t = t.clone()
    t[3] = t[64] = 0
    t[7, 2] = t[-1] = NAN
    t[11] *= 2.0**100
    t[12] *= 2.0**-100
    return t


def four_classes() -> tuple[tuple, dict]:
    """One class has no queries, one has no rows. Some queries are before the first class or after the last."""
    pair = rows(230, 40, seed=1), rows(4, 150, 40, seed=2)
    return pair, {
        "offsets": integers([2, 140, 140, 205, 228]),
        "counts": integers([150, 90, 0, 37]),
    }


def searches_of_everyday_sizes() -> Iterator[Search]:
    """Several tiles of 64 queries and 128 rows, several parts of 512 rows and more."""
    for metric in METRICS:
        pair = rows(150, 67, seed=1), rows(700, 67, seed=2)
        yield metric, pair, 33, {"metric": metric}
        yield f"{metric} spaced rows", tuple(map(spaced, pair)), 33, {"metric": metric}
        ties = whole_rows(70, 5, seed=1), whole_rows(400, 5, seed=2)
        yield f"{metric} with ties", ties, 40, {"metric": metric}
        pair, classes = four_classes()
        yield f"{metric} grouped", pair, 9, classes | {"metric": metric}
        own = classes | {"metric": metric, "exclude_self": True}
        yield f"{metric} without self", pair, 32, own
    for k in (256, 300):
        yield f"k {k}", (rows(70, 33, seed=1), rows(600, 33, seed=2)), k, {}
    yield "k beyond the bank", (rows(9, 3, seed=1), rows(20, 3, seed=2)), 32, {}
    yield "parts", (rows(3, 128, seed=1), rows(3000, 128, seed=2)), 16, {}
    # So close to each other that the filter cannot separate them.
    near = rows(1, 64, seed=1) + 1e-3 * rows(970, 64, seed=2)
    yield "near-equal rows", (near[900:], near[:900]), 32, {}
    unit = torch.nn.functional.normalize(rows(500, 96, dtype=F64, seed=2), dim=1).float()
    yield "unit bank", (rows(90, 96, seed=1), unit), 32, {"unit_bank": True}
    holes = with_holes(rows(80, 40, seed=1)), with_holes(rows(300, 40, seed=2))
    yield "zero, NaN and extreme rows", holes, 32, {}
    for queries, bank in ((F16, F16), (BF16, BF16), (BF16, F32), (F64, F32)):
        pair = rows(70, 72, dtype=queries, seed=1), rows(400, 72, dtype=bank, seed=2)
        yield f"{queries} in {bank}".replace("torch.", ""), pair, 20, {}


def cases() -> Iterator[Case]:
    for name, pair, k, options in searches_of_all_widths():
        more = {"scales": [1, max(1, k // 2), k], "backward": True, "bulk": True}
        yield from search_cases([(name, pair, k, options | more)])
    for name, pair, k, options in searches_of_everyday_sizes():
        yield from search_cases([(name, pair, k, options | {"bulk": True})])
