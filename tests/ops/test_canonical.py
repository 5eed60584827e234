"""Selections and scores equal the canonical ones (canonical.py) bit for bit."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from canonical import METRICS, as_numpy, canonical_scores, fma, round_to, unit_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import integers, random_rows

from dgcl_ops import ops


def check(queries, bank, k, metric):
    """Equal bits, ordered by descending score, then ascending index."""
    values, indices = ops.knn_topk(queries, bank, k, metric=metric)
    scores = canonical_scores(as_numpy(queries, bank), as_numpy(bank, queries), metric)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert values.cpu().numpy().dtype == scores.dtype
    assert np.array_equal(indices.cpu().numpy(), order)
    assert np.array_equal(values.cpu().numpy(), np.take_along_axis(scores, order, axis=1))


def test_fused_multiply_add_rounds_once():
    """Against exact fractions, on numbers for which two roundings would give a wrong result."""
    generator = np.random.default_rng(0)
    a = generator.standard_normal(2000).astype(np.float32)
    b = generator.standard_normal(2000).astype(np.float32)
    c = (-a * b * (1 + generator.integers(-2, 3, 2000) * 2.0**-23)).astype(np.float32)
    c[::3] = (generator.standard_normal(667) * 2.0**30).astype(np.float32)
    a[1::5], b[1::5] = np.float32(1 + 2**-23), np.float32(1 - 2**-24)
    got = fma(a, b, c)
    for x, y, z, value in zip(a, b, c, got, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        assert float(value) == round_to(exact, torch.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "columns", [1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 96, 100, 257]
)
def test_float32(device, columns, metric):
    queries = random_rows(7, columns, seed=1, device=device)
    check(queries, random_rows(70, columns, seed=2, device=device), 40, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_widened_first(device, dtype, metric):
    queries = random_rows(7, 77, dtype=dtype, seed=1, device=device)
    bank = random_rows(70, 77, dtype=dtype, seed=2, device=device)
    check(queries, bank, 20, metric)
    check(queries, random_rows(70, 77, seed=2, device=device), 20, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("columns", [1, 31, 33, 70])
def test_float64(device, columns, metric):
    queries = random_rows(3, columns, dtype=torch.float64, seed=1, device=device)
    check(queries, random_rows(20, columns, dtype=torch.float64, seed=2, device=device), 20, metric)
    check(queries, random_rows(20, columns, seed=2, device=device), 20, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("queries", "rows", "columns", "k"),
    [
        (900, 40, 5, 6),  # more queries than one work item takes
        (4, 1500, 20, 256),  # long lists
        (4, 1500, 20, 257),
        (4, 1500, 20, 1400),
        (30, 70, 1500, 9),  # wide rows
        (2, 50_000, 130, 32),  # a bank that is too large for a normalised copy (26 MB)
    ],
)
def test_sizes_that_change_the_plan(device, queries, rows, columns, k, metric):
    rows_of_queries = random_rows(queries, columns, seed=1, device=device)
    check(rows_of_queries, random_rows(rows, columns, seed=2, device=device), k, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-6, 3e-8])
def test_a_tight_class(device, spread, metric):
    """Scores of these rows are equal or one bit apart, so a filter that is off by one bit fails."""
    centre = random_rows(1, 96, seed=3)
    queries = (centre + spread * random_rows(12, 96, seed=1)).to(device)
    bank = (centre + spread * random_rows(900, 96, seed=2)).to(device)
    check(queries, bank, 33, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_one_huge_coordinate(device, metric):
    """All scores share a large part. Rows differ by about its rounding error."""
    queries, bank = random_rows(8, 40, seed=1), random_rows(500, 40, seed=2)
    queries[:, 11], bank[:, 11] = 3000.0, 2000.0
    check(queries.to(device), bank.to(device), 16, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_wide_range_of_lengths(device, metric):
    powers = 2.0 ** (torch.arange(300) % 60 - 30).float()
    bank = random_rows(300, 33, seed=2) * powers[:, None]
    check(random_rows(8, 33, seed=1).to(device), bank.to(device), 24, metric)


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_denormal_scores(device, metric):
    """Products below 2^-126 keep their denormal value. Nothing is flushed to zero."""
    queries = random_rows(6, 20, seed=1, device=device) * 2.0**-68
    check(queries, random_rows(80, 20, seed=2, device=device) * 2.0**-68, 10, metric)


@pytest.mark.parametrize("copies", [1, 700])
def test_rows_that_sit_on_the_bound(device, copies):
    """A is canonically best. In the filter's order of summation, all small products of A are absorbed, and all of B's
    are rounded up. So the filter puts B nearly two bounds above A."""
    for columns in (257, 1025, 4001):
        query = torch.full((1, columns), 2.0**-12)
        a = query * (1 - 2.0**-10)
        b = query * (1 + 2.0**-10)
        query[0, 0] = b[0, 0] = 1
        a[0, 0] = 1 + round(0.05 * (columns - 1)) * 2.0**-23
        bank = torch.cat([b.repeat(copies, 1), a])
        best = canonical_scores(query.numpy(), bank.numpy(), "dot").argmax()
        assert best == copies
        for rows in (bank, bank.flip(0)):
            check(query.to(device), rows.to(device), 1, "dot")


def test_overflowed_filter_scores_decide_nothing(device):
    """The filter's sums overflow where the canonical scores do not, or vice versa."""
    bank = torch.tensor([[2.0e19, 1.5e19], [1.8e19, 0.0]], device=device)
    values, indices = ops.knn_topk(
        torch.tensor([[2.4e19, 0.0]], device=device), bank, 1, metric="l2"
    )
    assert indices.tolist() == [[1]]
    assert torch.isfinite(values).all()
    query = torch.full((1, 64), 1e19, device=device)
    bank = torch.zeros(90, 64, device=device)
    bank[:, :2], bank[:, 16:18] = 3e19, -3e19
    bank[70] = torch.eye(64)[5]
    values, indices = ops.knn_topk(query, bank, 1, metric="dot")
    assert indices.tolist() == [[70]]
    assert values.item() == torch.tensor(1e19).item()


def test_denormal_rows_with_long_queries(device):
    """gamma |b| underflows, but gamma |q| |b| does not."""
    row = random_rows(1, 8, seed=1)[0]
    order = torch.stack(
        [torch.randperm(8, generator=torch.Generator().manual_seed(i)) for i in range(600)]
    )
    for power in (-132, -138, -142):
        bank = (row * 2.0**power)[order]
        queries = torch.full((3, 8), 1.1 * 2.0**120)
        check(queries.to(device), bank.to(device), 20, "dot")


# Rows with scores that crowd together, or leave the range where a filter's error bound is simple.
HARD = {
    "grid": lambda draw, n, d: torch.randint(-2, 3, (n, d), generator=draw).float(),
    "all equal": lambda draw, n, d: torch.randn(1, d, generator=draw).repeat(n, 1),
    "one bit apart": lambda draw, n, d: flip_last_bits(
        torch.randn(1, d, generator=draw).repeat(n, 1), draw
    ),
    "huge coordinate": lambda draw, n, d: (
        torch.randn(n, d, generator=draw) + 1e6 * (torch.arange(d) == d // 2)
    ),
    "denormal": lambda draw, n, d: torch.randn(n, d, generator=draw) * 2.0**-140,
    "huge": lambda draw, n, d: torch.randn(n, d, generator=draw) * 2.0**60,
    "some zero": lambda draw, n, d: (
        torch.randn(n, d, generator=draw) * torch.randint(0, 2, (n, 1), generator=draw)
    ),
    "two clusters": lambda draw, n, d: (
        1e-5 * torch.randn(n, d, generator=draw) + torch.randint(0, 2, (n, 1), generator=draw)
    ),
}


def flip_last_bits(rows, draw):
    flips = torch.randint(-1, 2, rows.shape, generator=draw, dtype=torch.int32)
    return (rows.view(torch.int32) + flips).view(torch.float32)


@given(
    kind=st.sampled_from(sorted(HARD)),
    metric=st.sampled_from(METRICS),
    rows=st.integers(1, 400),
    columns=st.integers(1, 40),
    k=st.integers(1, 50),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=150)
def test_no_neighbour_is_missed(kind, metric, rows, columns, k, seed):
    draw = torch.Generator().manual_seed(seed)
    drawn = HARD[kind](draw, rows + 3, columns)
    check(drawn[:3], drawn[3:], min(k, rows), metric)


@pytest.mark.parametrize("metric", METRICS)
def test_groups_score_alike(device, metric):
    queries = random_rows(10, 50, seed=1, device=device)
    bank = random_rows(2, 90, 50, seed=2, device=device)
    values, indices = ops.knn_topk(
        queries,
        bank,
        8,
        metric=metric,
        query_offsets=integers([1, 4, 10], device),
        bank_counts=integers([90, 65], device),
    )
    for begin, end, rows in ((1, 4, bank[0]), (4, 10, bank[1, :65])):
        scores = canonical_scores(as_numpy(queries[begin:end]), as_numpy(rows), metric)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :8]
        assert np.array_equal(indices[begin:end].cpu().numpy(), order)
        best = np.take_along_axis(scores, order, axis=1)
        assert np.array_equal(values[begin:end].cpu().numpy(), best)


def test_rows_stored_as_unit_rows_score_as_if_normalised_now(device):
    """memory_push(normalize=True) into float32 stores exactly the bits that knn would compute."""
    rows, queries = (
        random_rows(1, 60, 45, seed=2, device=device),
        random_rows(5, 45, seed=1, device=device),
    )
    ring = torch.zeros(1, 60, 45, device=device)
    side = [torch.zeros(1, 60, 1, device=device), torch.zeros(1, 60, device=device)]
    state = [integers([0], device), integers([0], device)]
    count = integers([60], device)
    given = [tensor.clone() for tensor in side]
    ops.memory_push(ring, *side, *state, rows, *given, count, normalize=True)
    assert np.array_equal(ring[0].cpu().numpy(), unit_rows(as_numpy(rows[0])))
    stored = ops.knn_topk(queries, ring[0], 12, unit_bank=True)
    fresh = ops.knn_topk(queries, rows[0], 12)
    assert torch.equal(stored[0], fresh[0])
    assert torch.equal(stored[1], fresh[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scales", [(8, 16, 32), (5,), (3, 3, 50)])
def test_density_is_the_weighted_sum_of_topk(device, dtype, metric, scales):
    """Bit for bit: float64 weights are rounded once. Terms are added in rank order, with one rounding each."""
    queries = random_rows(7, 11, dtype=dtype, seed=1, device=device)
    bank = random_rows(40, 11, dtype=dtype, seed=2, device=device)
    values, indices = ops.knn_topk(queries, bank, max(scales), metric=metric)
    density = ops.knn_density(queries, bank, scales, metric=metric)
    for m in range(7):
        scores = values[m][indices[m] >= 0].tolist()
        total = 0.0
        for r, score in enumerate(scores, start=1):
            used = [min(k, len(scores)) for k in scales]
            weight = sum(1.0 / k for k in used if k >= r) / len(scales)
            weight = torch.tensor(weight, dtype=torch.float64).to(dtype).item()
            exact = Fraction(weight) * Fraction(score) + Fraction(total)
            total = round_to(exact, dtype)
        assert density[m].item() == total
