"""The tensor-core filter's bound as a theorem: its scores and the true scores never differ by more.

The emulator returns all scores of the filter, and the bound of each query. float64 has the true scores.
"""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from kernels.emulator import build

METRICS = ("cosine", "dot", "l2")
LARGEST_BOUND = 1e30  # kLargestBound: the filter leaves such queries to the exact path
DIMS = (1, 2, 3, 15, 16, 17, 33, 64, 255, 256, 257, 512)
QUERIES, ROWS = 6, 40


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """Divided by the length in float32, as the kernels do. A row with an infinity has no direction."""
    wide = rows.double()
    _, exponent = torch.frexp(wide.abs().amax(1, keepdim=True))
    length = torch.ldexp(wide, -exponent).norm(dim=1, keepdim=True)
    unit = torch.ldexp(wide, -exponent).float() / length.float()
    unit = torch.where(wide.abs().amax(1, keepdim=True) == 0, 0.0, unit)
    return torch.where(wide.isfinite().all(1, keepdim=True), unit, torch.nan)


def errors_and_bounds(queries, bank, metric) -> tuple[torch.Tensor, torch.Tensor]:
    """|filter score - true score| [queries, rows], and the bounds [queries]."""
    emulator = build.load("plain")
    numbers = [rows.flatten().tolist() for rows in (queries, bank)]
    found = emulator.filter_scores(*numbers, queries.shape[1], metric == "l2", metric == "cosine")
    scores, bounds, mean = (torch.tensor(part, dtype=torch.float64) for part in found)
    if metric == "cosine":
        queries, bank = unit_rows(queries), unit_rows(bank)
    queries, bank = queries.double(), bank.double()
    if metric == "l2":
        true = -(torch.cdist(queries, bank, compute_mode="donot_use_mm_for_euclid_dist") ** 2) / 2
        omitted = -((queries - mean) ** 2).sum(1) / 2
    else:
        true, omitted = queries @ bank.T, queries @ mean
    error = (scores.view(len(queries), len(bank)) - (true - omitted[:, None])).abs()
    return error, bounds


def assert_within_bound(queries, bank, metric) -> torch.Tensor:
    """Returns the errors, as parts of their bounds."""
    error, bounds = errors_and_bounds(queries, bank, metric)
    bounded = bounds < LARGEST_BOUND
    # Rows with a NaN are never neighbours, nor are rows without a direction.
    usable = bank.isfinite().all(1) if metric == "cosine" else ~bank.isnan().any(1)
    comparable = error[bounded][:, usable]
    assert not comparable.isnan().any()
    part = comparable / bounds[bounded, None]
    assert (comparable <= bounds[bounded, None]).all(), f"{part.max()} times the bound"
    return part


# ---- rows: (queries, bank) ----------------------------------------------------------------------------


def plain(dim, generator):
    rows = torch.randn(QUERIES + ROWS, dim, generator=generator)
    return rows[:QUERIES], rows[QUERIES:]


def midpoints(dim, generator):
    """All rows are parallel, where Cauchy-Schwarz is an equality, and float16 rounds each element by almost half a
    step in the same direction. Opposite rows make the mean 0, so centring changes nothing."""
    side = 1 - 2 * int(torch.randint(0, 2, (), generator=generator))
    element = 1 + 2**-11 * (1 - 0.02 * side)
    row = element * 2.0 ** torch.randint(-2, 3, (dim,), generator=generator)
    row = row * (1 - 2 * torch.randint(0, 2, (dim,), generator=generator))
    half = row * 2.0 ** torch.randint(-3, 1, (ROWS // 2, 1), generator=generator)
    return row * 2.0 ** torch.arange(QUERIES)[:, None], torch.cat([half, -half])


def float16_denormals(dim, generator):
    """One large element sets the scale. Beside it, most others are denormal in float16 or vanish."""
    rows = torch.randn(QUERIES + ROWS, dim, generator=generator)
    rows *= 2.0 ** torch.randint(-45, -20, rows.shape, generator=generator)
    rows[:, int(torch.randint(0, dim, (), generator=generator))] = 1 - 2**-24
    rows[1::2] *= -1
    return rows[:QUERIES], rows[QUERIES:]


def one_element(dim, generator):
    """The whole length in one element, just below a power of two: the largest that the scale lets through."""
    rows = torch.zeros(QUERIES + ROWS, dim)
    place = torch.randint(0, dim, (len(rows),), generator=generator)
    rows[torch.arange(len(rows)), place] = 2 - 2**-23
    rows[1::2] *= -1
    return rows[:QUERIES], rows[QUERIES:]


def compact(dim, generator):
    """Around a far mean, down to a spread that float32 cannot hold."""
    spread = 2.0 ** -int(torch.randint(0, 30, (), generator=generator))
    rows = 10 + spread * torch.randn(QUERIES + ROWS, dim, generator=generator)
    return rows[:QUERIES], rows[QUERIES:]


def mixed_lengths(dim, generator):
    rows = torch.randn(QUERIES + ROWS, dim, generator=generator)
    rows *= 10.0 ** torch.randint(-12, 13, (len(rows), 1), generator=generator)
    return rows[:QUERIES], rows[QUERIES:]


def broken(dim, generator):
    queries, bank = plain(dim, generator)
    queries[1, 0], bank[3, -1], bank[4] = torch.nan, torch.nan, 0
    queries[2] = 0
    if torch.randint(0, 2, (), generator=generator):
        bank[5, 0], queries[3, 0] = torch.inf, -torch.inf
    return queries, bank


@given(
    make=st.sampled_from(
        (plain, midpoints, float16_denormals, one_element, compact, mixed_lengths, broken)
    ),
    metric=st.sampled_from(METRICS),
    dim=st.sampled_from(DIMS),
    query_exponent=st.integers(-149, 127),
    bank_exponent=st.integers(-149, 127),
    schedule=st.sampled_from(build.SCHEDULES),
    seed=st.integers(0, 2**31),
)
@example(midpoints, "dot", 16, 0, 0, "sequential", 0)
@example(float16_denormals, "dot", 512, 0, 0, "random", 1)
@example(one_element, "dot", 17, -60, 40, "random", 2)
@example(one_element, "l2", 1, -126, -126, "random", 3)
@example(plain, "dot", 512, -149, 127, "random", 4)
@example(compact, "cosine", 257, 0, 0, "reverse", 5)
def test_no_score_is_further_off(make, metric, dim, query_exponent, bank_exponent, schedule, seed):
    build.load("plain").configure(schedule, seed)
    queries, bank = make(dim, torch.Generator().manual_seed(seed))
    queries = torch.ldexp(queries, torch.tensor(query_exponent))
    assert_within_bound(queries, torch.ldexp(bank, torch.tensor(bank_exponent)), metric)


def shifted(rows, exponents):
    return [
        torch.ldexp(each, torch.tensor(exponent))
        for each, exponent in zip(rows, exponents, strict=True)
    ]


@pytest.mark.parametrize("exponents", [(0, 0), (-60, 40), (50, -30)])
def test_half_the_bound_would_be_too_low(exponents):
    """So the test above sees a bound that is too low."""
    build.load("plain").configure("sequential", 1)
    for seed in range(4):
        rows = midpoints(16, torch.Generator().manual_seed(seed))
        assert assert_within_bound(*shifted(rows, exponents), "dot").max() > 0.5


@pytest.mark.parametrize("exponent", [-40, 1, 45])
@pytest.mark.parametrize("make", [plain, midpoints, float16_denormals])
def test_powers_of_two_change_no_bit(make, exponent):
    """The filter's scores of scaled rows are the same numbers, scaled."""
    emulator = build.load("plain")
    emulator.configure("sequential", 1)
    rows = make(33, torch.Generator().manual_seed(5))

    def scores(queries, bank):
        found = emulator.filter_scores(
            queries.flatten().tolist(), bank.flatten().tolist(), 33, False, False
        )
        return torch.tensor(found[0], dtype=torch.float64)

    moved = torch.ldexp(scores(*rows), torch.tensor(2 * exponent))
    assert torch.equal(scores(*shifted(rows, (exponent, exponent))), moved)
