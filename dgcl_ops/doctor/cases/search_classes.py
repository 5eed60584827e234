"""Cases of the nearest-neighbour operators: classes, memory far apart, the filter's bound, the exact path."""

from collections.abc import Iterator

import torch

from . import Case
from .search_builder import EXACT, Search, search_cases
from .tensors import BF16, F32, METRICS, NAN, integers, rows, vast_memory, whole_rows


def far_apart() -> Iterator[Search]:
    """Rows more than 2^31 elements from the first: offsets need 64 bits."""

    def narrow() -> tuple:
        bank = vast_memory().as_strided((5, 8), (2**30, 1))
        return rows(3, 8, seed=1), bank.copy_(rows(5, 8, dtype=BF16, seed=2))

    def wide() -> tuple:
        bank = (
            vast_memory().view(F32).as_strided((3, 8), (2**30, 1), 16)
        )  # not where narrow() writes
        return rows(3, 8, seed=1), bank.copy_(rows(3, 8, seed=3))

    for metric in ("cosine", "dot"):
        yield f"{metric} rows far apart", narrow, 3, {"metric": metric, "vast": True}
    yield "exact rows far apart", wide, 3, {"metric": "dot", "vast": True} | EXACT


def rounded_apart(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A query and rows A and B, [65] each, with equal products. float16 rounds down all that the query shares with A,
    and rounds up all that it shares with B. So the filter puts B ahead by as much as its bound allows."""
    half = 32
    down, up = 1 + 2**-11 * 0.98, 1 + 2**-11 * 1.02  # where float16 has steps of 2^-10
    generator = torch.Generator().manual_seed(seed)
    magnitudes = 2.0 ** torch.randint(-2, 3, (half,), generator=generator)
    query, row_a, row_b = torch.zeros(3, 2 * half + 1)
    query[:half] = row_a[:half] = down * magnitudes
    query[half:-1] = row_b[half:-1] = up * magnitudes
    query[-1] = 1
    row_b[-1] = query @ row_a - query @ row_b
    return query, row_a, row_b


def searches_on_the_bound() -> Iterator[Search]:
    """40 rows A, in truth slightly ahead of 60 rows B. The averaged rows have mean 0, so centring changes nothing."""
    query, row_a, row_b = rounded_apart(seed=1)
    near, far = (1 + 2**-18) * row_a, row_b
    for name, size, places in (
        # All rows are there when a list is first cut down.
        ("first cut", 256, lambda i: True),
        # A comes later, against the threshold that B has set. Every third row is left out of the 256 that are averaged.
        ("threshold", 384, lambda i: i % 3 == 2 and i >= 256),
    ):
        bank = torch.zeros(size, len(query))
        free = [i for i in range(size) if i % 3 != 2]
        late = [i for i in range(size) if places(i) and i not in free[:120]][:40]
        bank[free[:60]], bank[free[60:120]], bank[late] = far, -far, near
        if size == 256:
            bank[[i for i in range(size) if i not in free[:120] and i not in late][:40]] = -near
        yield f"rows on the bound: {name}", (query.repeat(3, 1), bank), 32, {"metric": "dot"}


def grouped_searches() -> Iterator[Search]:
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


def cut_searches() -> Iterator[Search]:
    """Blocks of the filter take equal runs of steps, which begin and end anywhere in a tile of queries."""
    queries, bank = rows(310, 6, seed=1), rows(4, 1300, 6, seed=2)
    queries[70, 3], queries[201, 0] = NAN, NAN
    options = {
        "offsets": integers([3, 100, 100, 230, 300]),
        "counts": integers([700, 600, 1300, 200]),
    }
    for metric in METRICS:
        options |= {"metric": metric, "exclude_self": metric == "l2", "thread": metric == "dot"}
        yield f"{metric} classes cut evenly", (queries, bank), 9, options.copy()
    bank = rows(1300, 6, seed=2)
    for name, equal in (
        ("first", slice(0, 500)),
        ("last", slice(800, 1300)),
        ("every", slice(0, 1300)),
    ):
        bank_of_ties = bank.clone()
        bank_of_ties[equal] = bank[0]
        pair = rows(100, 6, seed=1), bank_of_ties
        yield f"{name} part of equal rows", pair, 40, {"thread": name == "every"}
    # Whole tiles, of classes with different numbers of steps.
    pair = rows(310, 4, seed=1), rows(2, 1300, 4, seed=2)
    whole = {"offsets": integers([0, 150, 310]), "counts": integers([700, 1300])}
    yield "two classes of whole tiles", pair, 5, whole
    # Fewer tiles than the host expects.
    pair = rows(60, 4, seed=1), rows(5, 1300, 4, seed=2)
    yield "one class of five", pair, 5, {"offsets": integers([0, 0, 0, 60, 60, 60])}
    # More classes than a warp has lanes. Most of them have no queries.
    offsets = integers([0, *[2] * 33, 50, 50, 75])
    many = rows(80, 4, seed=1), rows(36, 600, 4, seed=2)
    yield "36 classes", many, 5, {"offsets": offsets}
    # Only the second class is left to the exact search: more equal rows than a candidate list holds.
    bank = rows(2, 150, 4, seed=2)
    bank[1] = bank[1, 0].clone()
    yield (
        "second class of equal rows",
        (rows(9, 4, seed=1), bank),
        5,
        {"offsets": integers([0, 5, 9])},
    )


def exact_searches() -> Iterator[Search]:
    """Without the tensor-core filter."""
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
    # The last tile fills the lists.
    full = rows(5, 8, seed=1), rows(128, 8, seed=2)
    yield "exact, cut down at the end", full, 16, EXACT | {"thread": True}
    grouped = {"offsets": integers([1, 40, 40, 75]), "counts": integers([60, 3, 17])}
    yield "exact classes", (rows(80, 8, seed=1), rows(3, 64, 8)), 5, grouped | EXACT
    # The first tile has no class. A class starts at another tile than its own number.
    late = {"offsets": integers([65, 85, 134])}
    pair = rows(140, 6, seed=1), rows(2, 33, 6)
    yield "exact, 65 queries of no class", pair, 4, late | EXACT
    # Three blocks run at a time, so each takes a second class.
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


def cases() -> Iterator[Case]:
    groups = (
        far_apart(),
        searches_on_the_bound(),
        grouped_searches(),
        cut_searches(),
        exact_searches(),
    )
    for searches in groups:
        yield from search_cases(searches)
