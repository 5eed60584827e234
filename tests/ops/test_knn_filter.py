"""The CPU search's filter never loses a neighbour.

Many queries at once go through the filter. A few at a time get canonical scores of all rows. Both must give the same
bits, with data made to lie on the filter's bound.
"""

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dgcl_ops.ops import knn_topk

SEARCH = Path(__file__).resolve().parents[2] / "csrc" / "cpu" / "knn" / "search.cpp"
# Nothing is filtered for a class with at most this many queries.
FEW = int(re.search(r"kFewQueries = (\d+);", SEARCH.read_text())[1])
METRICS = ("cosine", "dot", "l2")


def assert_nothing_lost(queries, bank, k, metric):
    assert queries.shape[0] > FEW
    values, indices = knn_topk(queries, bank, k, metric=metric)
    parts = [knn_topk(part, bank, k, metric=metric) for part in queries.split(FEW)]
    assert torch.equal(indices, torch.cat([i for _, i in parts]))
    expected = torch.cat([v for v, _ in parts])
    assert torch.equal(values.view(torch.int32), expected.view(torch.int32))


# ---- rows that are hard for a filter ------------------------------------------------------------------


def one_row(rows, generator):
    """All rows are equal, so all scores are ties."""
    return rows[:1].expand_as(rows).contiguous()


def one_ulp(rows, generator):
    """Scores that differ in the last bit, or not at all."""
    base = rows[:1].expand_as(rows)
    up = torch.randint(-1, 2, rows.shape, generator=generator)
    return torch.where(
        up == 0, base, torch.nextafter(base, torch.where(up > 0, torch.inf, -torch.inf))
    )


def noise(rows, generator):
    return rows[:1] * (1 + 1e-7 * rows)


def huge_coordinate(rows, generator):
    """One coordinate sets the 8-bit scale, and the others round to 0."""
    rows[:, 0] *= 1e4
    return rows


def unequal_lengths(rows, generator):
    return rows * 10.0 ** torch.randint(-6, 7, (rows.shape[0], 1), generator=generator)


def far_from_origin(rows, generator):
    """A class with a radius of a thousandth of its mean's length."""
    return rows * 1e-3 + 10


def denormals(rows, generator):
    return rows * 1e-40


def overflowing(rows, generator):
    """Products that float32 cannot hold: infinite scores, and NaN where they cancel."""
    rows[::3] *= 1e25
    return rows


def broken_rows(rows, generator):
    rows[::5, 0] = torch.nan
    rows[1::7, -1] = torch.inf
    rows[2::7, -1] = -torch.inf
    rows[3::11] = 0
    return rows


def repeated(rows, generator):
    """A few different rows, many times each, and their opposites."""
    few = torch.cat([rows[:5], -rows[:5]])
    return few[torch.randint(0, len(few), (rows.shape[0],), generator=generator)]


def half_steps(rows, generator):
    """Whole numbers plus a half, and their opposites."""
    rows = torch.round(20 * rows) + 0.5
    sign = torch.randint(0, 2, (rows.shape[0], 1), generator=generator) * 2 - 1
    return rows * sign


def products_that_vanish(rows, generator):
    """Each product is near float32's smallest number."""
    return rows * 10.0 ** torch.randint(-24, -15, (rows.shape[0], 1), generator=generator)


SPOILED = (
    *(one_row, one_ulp, noise, huge_coordinate, unequal_lengths, far_from_origin, denormals),
    *(overflowing, broken_rows, repeated, half_steps, products_that_vanish),
)


@settings(deadline=None)
@given(
    spoil=st.sampled_from(SPOILED),
    metric=st.sampled_from(METRICS),
    bank_rows=st.sampled_from((1, 33, 64, 129, 700, 1500)),
    dim=st.sampled_from((1, 3, 4, 31, 64, 130)),
    k=st.sampled_from((1, 5, 32, 90, 400)),
    seed=st.integers(0, 2**31),
)
@example(spoil=one_row, metric="cosine", bank_rows=1500, dim=64, k=32, seed=0)
@example(spoil=one_ulp, metric="l2", bank_rows=1500, dim=64, k=32, seed=0)
@example(spoil=broken_rows, metric="dot", bank_rows=1500, dim=31, k=32, seed=0)
@example(spoil=overflowing, metric="l2", bank_rows=1500, dim=4, k=32, seed=0)
def test_no_neighbour_is_lost_in_bad_data(spoil, metric, bank_rows, dim, k, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = spoil(torch.randn(bank_rows + 40, dim, generator=generator), generator)
    assert_nothing_lost(rows[bank_rows:], rows[:bank_rows], k, metric)


# ---- rows on the bound itself -------------------------------------------------------------------------


def on_the_bound(half: int, wins: int, sigma: torch.Tensor, blurred: str):
    """A query, and a bank on which the filter errs by almost as much as its bound allows.

    On the first `half` coordinates, rows are parallel to the query or to its opposite, where Cauchy-Schwarz is an
    equality. There the `blurred` side is 0.498 of a quantisation step off, always towards 0. Everything else lies on
    steps. The first `wins` rows are the neighbours, by less than one unit. The filter puts the next `wins` rows above
    them, by nearly twice the error. The opposites of all rows make the mean 0. The last rows are zeros and have no
    error.
    """
    lifts, lose = half // 16, 1 + half // 200  # of a lift, so that the first rows stay ahead
    rise, scale = (
        torch.full((lifts,), 56.0),
        torch.full((1,), 127.0),
    )  # the last coordinate lets the opposites lose
    if blurred == "query":
        query = torch.cat([3.498 * sigma, scale.expand(lifts + 1)])
        low, high = torch.cat([127 * sigma, -rise, scale]), torch.cat([-127 * sigma, rise, scale])
    else:
        query = torch.cat([127 * sigma, scale.expand(lifts + 1)])
        low, high = (
            torch.cat([3.498 * sigma, -rise, scale]),
            torch.cat([-3.498 * sigma, rise, scale]),
        )
    high[half] -= lose
    close = (
        high.clone()
    )  # next in the filter's order, so that its estimate of the k-th score is barely lower
    close[half] -= 1
    bank = torch.cat([row.repeat(wins, 1) for row in (low, high, close)])
    return query, torch.cat([bank, -bank, torch.zeros(200, low.shape[0])])


@settings(deadline=None)
@given(
    half=st.sampled_from((16, 48, 128, 240)),
    wins=st.integers(1, 40),
    exponent=st.integers(-20, 20),
    blurred=st.sampled_from(("query", "bank")),
    seed=st.integers(0, 2**31),
)
def test_no_neighbour_on_the_bound_is_lost(half, wins, exponent, blurred, seed):
    generator = torch.Generator().manual_seed(seed)
    sigma = torch.randint(0, 2, (half,), generator=generator) * 2.0 - 1
    query, bank = on_the_bound(half, wins, sigma, blurred)
    exact, rounded = bank @ query, bank.round() @ query.round()
    assert exact[0] > exact[wins], "the first rows are the neighbours"
    assert rounded[0] < rounded[wins], "and in whole steps the next ones would be"
    # Powers of two change no rounding, so the bound must hold at every scale.
    queries = query * 2.0 ** torch.arange(-20, 20).unsqueeze(1)
    bank = bank * 2.0**exponent
    _, indices = knn_topk(queries, bank, wins, metric="dot")
    assert torch.equal(indices.sort(dim=1).values, torch.arange(wins).expand(40, wins))
    assert_nothing_lost(queries, bank, wins, "dot")


def test_rows_too_small_for_a_scale():
    """Such rows are 0 in 8 bits, with an error of their own length. Here they are the neighbours."""
    queries = torch.ones(40, 40) * 2.0 ** torch.arange(-20, 20).unsqueeze(1)
    small = torch.full((30, 40), 0.9e-30)
    large = 2e-30 * torch.tensor([1.0] * 21 + [-1.0] * 19).expand(30, 40)
    bank = torch.cat([large, small, -large, -small])
    _, indices = knn_topk(queries, bank, 30, metric="dot")
    assert torch.equal(indices, torch.arange(30, 60).expand(40, 30))
    assert_nothing_lost(queries, bank, 30, "dot")


# ---- many rows: thresholds that rise, buffers that fill -----------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 32, 256, 257, 1024])
@pytest.mark.parametrize("order", ["rising", "falling", "random"])
def test_order_of_the_bank(metric, k, order):
    """Rows sorted from worst to best raise the threshold all the time."""
    generator = torch.Generator().manual_seed(3)
    bank = torch.randn(5_000, 24, generator=generator)
    queries = torch.randn(1, 24, generator=generator) + 0.1 * torch.randn(
        40, 24, generator=generator
    )
    if order != "random":
        scores = torch.nn.functional.cosine_similarity(bank, queries[:1])
        bank = bank[scores.argsort(descending=order == "falling")]
    assert_nothing_lost(queries, bank, k, metric)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", METRICS)
def test_half_precision_rows(metric, dtype):
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(1_100, 96, generator=generator).to(dtype)
    assert_nothing_lost(rows[1_000:], rows[:1_000], 32, metric)


def test_a_class_that_the_filter_gives_up_beside_others():
    """One call has blocks that use canonical tiles and blocks that do not. Every query gets one result."""
    generator = torch.Generator().manual_seed(5)
    bank = torch.randn(3, 2_000, 40, generator=generator)
    bank[1] = bank[1, :1]
    offsets = torch.tensor([0, 700, 2_100, 2_600])
    queries = torch.randn(2_600, 40, generator=generator)
    values, indices = knn_topk(queries, bank, 20, query_offsets=offsets)
    for c in range(3):
        begin, end = offsets[c], offsets[c + 1]
        for first in range(begin, end, 300):
            part = slice(first, min(first + FEW, int(end)))
            alone_values, alone_indices = knn_topk(queries[part], bank[c], 20)
            assert torch.equal(values[part], alone_values)
            assert torch.equal(indices[part], alone_indices)
    assert torch.equal(indices[700:2_100], torch.arange(20).expand(1_400, 20))
    assert math.isfinite(values.sum().item())


def test_more_classes_than_are_prepared_together():
    """14 MB of 8-bit rows are prepared in two parts, from banks with unused rows."""
    generator = torch.Generator().manual_seed(7)
    counts = torch.tensor([4_000, 3_000, 0, 4_000, 63, 4_000, 3_999, 4_000, 4_000])
    bank = torch.randn(9, 4_000, 512, generator=generator)
    queries = torch.randn(9 * 40, 512, generator=generator)
    offsets = torch.arange(10) * 40
    values, indices = knn_topk(queries, bank, 20, query_offsets=offsets, bank_counts=counts)
    for c, count in enumerate(counts):
        part = slice(40 * c, 40 * c + FEW)
        if count == 0:
            assert (indices[part] == -1).all()
            continue
        alone_values, alone_indices = knn_topk(queries[part], bank[c, :count], 20)
        assert torch.equal(values[part], alone_values)
        assert torch.equal(indices[part], alone_indices)
