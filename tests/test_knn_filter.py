"""The CPU search's filter never loses a neighbour: many queries at once, which it filters, against few at a time,
which get canonical scores of everything. The same bits are asked for, with data made to sit on the filter's bound."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dgcl_ops.ops import knn_topk

FEW = 16  # queries of a class, up to which nothing is filtered (kFewQueries in csrc/cpu/knn_search.cpp)
METRICS = ("cosine", "dot", "l2")


def assert_nothing_lost(queries, bank, k, metric):
    assert queries.shape[0] > FEW
    values, indices = knn_topk(queries, bank, k, metric=metric)
    parts = [knn_topk(part, bank, k, metric=metric) for part in queries.split(FEW)]
    assert torch.equal(indices, torch.cat([i for _, i in parts]))
    expected = torch.cat([v for v, _ in parts])
    assert torch.equal(values.view(torch.int32), expected.view(torch.int32))


# ---- rows that make a filter's life hard --------------------------------------------------------------


def one_row(rows, generator):
    """All rows equal: every score a tie."""
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
    """The 8-bit scale is that of one coordinate; of the others nothing is left."""
    rows[:, 0] *= 1e4
    return rows


def unequal_lengths(rows, generator):
    return rows * 10.0 ** torch.randint(-6, 7, (rows.shape[0], 1), generator=generator)


def far_from_origin(rows, generator):
    """A class whose radius is a thousandth of its mean's length."""
    return rows * 1e-3 + 10


def denormals(rows, generator):
    return rows * 1e-40


def overflowing(rows, generator):
    """Products that float32 does not hold: infinite scores, and NaN where they cancel."""
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


SPOILED = (
    *(one_row, one_ulp, noise, huge_coordinate, unequal_lengths, far_from_origin, denormals),
    *(overflowing, broken_rows, repeated),
)


@settings(max_examples=60, deadline=None)
@given(
    spoil=st.sampled_from(SPOILED),
    metric=st.sampled_from(METRICS),
    bank_rows=st.sampled_from((1, 33, 64, 129, 700, 1500)),
    dim=st.sampled_from((1, 3, 4, 31, 64, 130)),
    k=st.sampled_from((1, 5, 32, 90)),
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


def on_the_bound(dim: int, wins: int, sigma: torch.Tensor, gap: float):
    """A query, and a bank in which the filter misjudges rows by just the error it allows for.

    Half of the query's coordinates lie half a quantisation step off, all in the direction of `sigma`, the others
    on a step. The bank's rows are multiples of `sigma` there, which 8 bits hold exactly: the error of their scores
    is what Cauchy-Schwarz allows. The first `wins` rows are the neighbours, by `gap`; the filter puts the next
    `wins` above them, by twice the error. The opposites of all make the mean 0.
    """
    half = dim // 2
    off = torch.tensor(0.498)  # of a step
    steps = torch.full((half,), 3.0)
    query = torch.cat([(steps + off) * sigma, torch.full((dim - half,), 127.0)])
    true = (query[:half] * sigma).sum()  # what sigma scores, and what the filter makes of it
    seen = (torch.round(query[:half]) * sigma).sum()
    error = (true - seen).item()
    assert error == pytest.approx(0.498 * half, rel=1e-5)
    # Rows (+sigma, lift) and (-sigma, more lift): equal true scores but for the gap.
    scale = 127.0 * (dim - half)
    low = torch.cat([sigma, torch.full((dim - half,), (gap - true.item()) / scale)])
    high = torch.cat([-sigma, torch.full((dim - half,), true.item() / scale)])
    bank = torch.cat([low.repeat(wins, 1), high.repeat(wins, 1)])
    return query, torch.cat([bank, -bank]), 2 * error


@settings(max_examples=60, deadline=None)
@given(
    dim=st.sampled_from((8, 16, 60, 128, 256, 500)),
    wins=st.integers(1, 40),
    gap=st.sampled_from((1e-3, 1e-2, 0.1)),
    exponent=st.integers(-20, 20),
    metric=st.sampled_from(("dot", "l2")),
    seed=st.integers(0, 2**31),
)
def test_no_neighbour_on_the_bound_is_lost(dim, wins, gap, exponent, metric, seed):
    generator = torch.Generator().manual_seed(seed)
    sigma = torch.randint(0, 2, (dim // 2,), generator=generator) * 2.0 - 1
    query, bank, lead = on_the_bound(dim, wins, sigma, gap)
    # Powers of two change no rounding: the bound has to hold at every size.
    queries = query * 2.0 ** torch.arange(-10, 10).unsqueeze(1)
    bank = bank * 2.0**exponent
    if (
        metric == "dot"
    ):  # with l2, by far the shortest distance is that to the rows of the query's own scale
        _, indices = knn_topk(queries, bank, wins, metric=metric)
        assert torch.equal(indices.sort(dim=1).values, torch.arange(wins).expand(20, wins))
        assert lead > gap  # else the filter would not have been wrong
    assert_nothing_lost(queries, bank, wins, metric)


# ---- many rows: thresholds that rise, buffers that fill -----------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 32, 256, 257, 1024])
@pytest.mark.parametrize("order", ["rising", "falling", "random"])
def test_order_of_the_bank(metric, k, order):
    """Rows that come by from worst to best raise the threshold all the time."""
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
    """Blocks that go through canonical tiles, in a call with blocks that do not; every query is answered once."""
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
