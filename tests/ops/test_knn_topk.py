"""knn_topk against float64 loops: values, order, ties, groups, layouts, edges."""

import math

import oracles
import pytest
import torch
from oracles import assert_close, integers, random_rows

METRICS = ("cosine", "dot", "l2")
INF, NAN = math.inf, math.nan


def check(implementation, queries, bank, k, **options):
    """Values are within tolerance, and the neighbours are the same, in the same order."""
    values, indices = implementation.knn_topk(queries, bank, k, **options)
    options = {n: v.cpu() if isinstance(v, torch.Tensor) else v for n, v in options.items()}
    want_values, want_indices = oracles.knn_topk(queries.cpu(), bank.cpu(), k, **options)
    both = (queries, bank)
    wide = torch.float64 if any(t.dtype == torch.float64 for t in both) else torch.float32
    assert values.dtype == wide
    assert indices.dtype == torch.int64
    finite = [t[t.isfinite()].double().abs().max().item() if t.numel() else 0.0 for t in both]
    terms = queries.shape[1] * finite[0] * finite[1]
    magnitude = {"cosine": 1.0, "dot": terms, "l2": max(finite) * math.sqrt(queries.shape[1])}
    assert_close(values, want_values, magnitude[options.get("metric", "cosine")])
    assert torch.equal(indices.cpu(), want_indices)
    return values, indices


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 63, 64, 65])
def test_bank_sizes(implementation, device, rows, metric):
    queries = random_rows(rows, 5, seed=1, device=device)
    check(implementation, queries, random_rows(rows, 5, seed=2, device=device), 8, metric=metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("columns", [1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 129])
def test_columns(implementation, device, columns, metric):
    queries = random_rows(5, columns, seed=1, device=device)
    check(
        implementation, queries, random_rows(40, columns, seed=2, device=device), 9, metric=metric
    )


@pytest.mark.parametrize("k", [*list(range(1, 41)), 300])
def test_k(implementation, device, k):
    bank = random_rows(33, 4, seed=2, device=device)
    values, _ = check(implementation, random_rows(4, 4, seed=1, device=device), bank, k)
    assert values.shape == (4, k)


def test_k_300_of_many_rows(implementation, device):
    queries = random_rows(3, 6, seed=1, device=device)
    check(implementation, queries, random_rows(700, 6, seed=2, device=device), 300, metric="l2")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "bank_dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16]
)
@pytest.mark.parametrize(
    "query_dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16]
)
def test_every_pair_of_dtypes(implementation, device, query_dtype, bank_dtype, metric):
    queries = random_rows(6, 17, dtype=query_dtype, seed=1, device=device)
    bank = random_rows(37, 17, dtype=bank_dtype, seed=2, device=device)
    check(implementation, queries, bank, 7, metric=metric)


def test_no_queries(implementation, device):
    queries = random_rows(0, 3, device=device)
    values, indices = implementation.knn_topk(queries, random_rows(5, 3, device=device), 4)
    assert values.shape == indices.shape == (0, 4)


@pytest.mark.parametrize("metric", METRICS)
def test_an_empty_bank_has_no_neighbours(implementation, device, metric):
    queries = random_rows(3, 2, device=device)
    empty = random_rows(0, 2, device=device)
    values, indices = implementation.knn_topk(queries, empty, 4, metric=metric)
    assert torch.equal(values.cpu(), torch.full((3, 4), -INF))
    assert torch.equal(indices.cpu(), torch.full((3, 4), -1))


def test_zero_rows_have_cosine_zero(implementation, device):
    queries = torch.tensor([[0.0, 0.0], [3.0, 4.0]], device=device)
    bank = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [3.0, 4.0]], device=device)
    values, indices = check(implementation, queries, bank, 3)
    assert values[0].tolist() == [0, 0, 0]
    assert indices[0].tolist() == [0, 1, 2]
    assert indices[1].tolist() == [2, 0, 1]


@pytest.mark.parametrize("metric", METRICS)
def test_nan_rows_are_never_neighbours(implementation, device, metric):
    bank = random_rows(70, 5, seed=2, device=device)
    bank[3, 0] = bank[64, 4] = NAN
    bank[7] = NAN
    queries = random_rows(4, 5, seed=1, device=device)
    _, indices = check(implementation, queries, bank, 70, metric=metric)
    for row in (3, 7, 64):
        assert not (indices == row).any()
    assert bool((indices[:, -3:] == -1).all())


@pytest.mark.parametrize("metric", METRICS)
def test_a_nan_query_has_no_neighbours_and_changes_no_other(implementation, device, metric):
    bank = random_rows(40, 5, seed=2, device=device)
    queries = random_rows(6, 5, seed=1, device=device)
    calm = implementation.knn_topk(queries[[0, 1, 3, 4, 5]], bank, 6, metric=metric)
    queries[2, 1] = NAN
    values, indices = check(implementation, queries, bank, 6, metric=metric)
    assert values[2].tolist() == [-INF] * 6
    assert indices[2].tolist() == [-1] * 6
    assert torch.equal(indices[[0, 1, 3, 4, 5]], calm[1])


@pytest.mark.parametrize("metric", METRICS)
def test_infinities(implementation, device, metric):
    """With dot, +inf is the best score; -inf and NaN never count. With cosine and l2, infinite rows never count."""
    bank = torch.tensor(
        [[1.0, 1.0], [INF, 1.0], [-INF, 1.0], [INF, -INF], [2.0, -1.0]], device=device
    )
    queries = torch.tensor([[1.0, 2.0], [INF, 1.0], [1.0, 0.0], [-1.0, -INF]], device=device)
    _, indices = check(implementation, queries, bank, 5, metric=metric)
    if metric == "dot":
        assert indices[0].tolist() == [1, 0, 4, -1, -1]
    else:
        assert sorted(indices[0].tolist()) == [-1, -1, -1, 0, 4]


def test_rows_near_the_ends_of_the_float_range_have_a_direction(implementation, device):
    ordinary = random_rows(30, 5, seed=2, device=device)
    queries = random_rows(3, 5, seed=1, device=device)
    want = implementation.knn_topk(queries, ordinary, 7)
    for power in (-100, -70, 70, 120):
        got = implementation.knn_topk(queries * 2.0**power, ordinary * 2.0**-power, 7)
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])


def test_denormal_rows(implementation, device):
    smallest = 2.0**-149
    bank = torch.tensor([[3 * smallest, 4 * smallest], [-smallest, 0.0]], device=device)
    queries = torch.tensor([[3.0, 4.0]], device=device)
    check(implementation, queries, bank, 2)
    check(implementation, bank, queries, 1)


# ---- ties: always the lowest indices --------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rows", [5, 33, 64, 200, 1000])
def test_equal_rows(implementation, device, rows, metric):
    bank = torch.tensor([[0.0, 2.0]], device=device).repeat(rows, 1)
    queries = torch.tensor([[0.0, 1.0], [1.0, 1.0], [-1.0, -3.0]], device=device)
    values, indices = implementation.knn_topk(queries, bank, 20, metric=metric)
    neighbours = min(rows, 20)
    assert indices.tolist() == [list(range(neighbours)) + [-1] * (20 - neighbours)] * 3
    assert bool((values[:, :neighbours] == values[:, :1]).all())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_ties_among_few_values(implementation, device, metric, dtype):
    """Coordinates are -2..2, so scores are exact with dot and l2, and dozens of rows share each score."""
    generator = torch.Generator().manual_seed(3)
    bank = torch.randint(-2, 3, (300, 3), generator=generator).to(dtype).to(device)
    queries = torch.randint(-2, 3, (8, 3), generator=generator).to(dtype).to(device)
    if metric == "cosine":  # powers of two along the axes: exact as well
        bank = torch.zeros_like(bank).scatter_(1, bank[:, :1].long() % 3, 2.0 ** bank[:, 1:2])
    check(implementation, queries, bank, 40, metric=metric)


def test_both_zeros_are_one_score(implementation, device):
    bank = torch.tensor([[-0.0, 1.0], [0.0, -1.0], [0.0, 2.0]], device=device)
    queries = torch.tensor([[-3.0, 0.0], [3.0, -0.0]], device=device)
    _, indices = implementation.knn_topk(queries, bank, 3, metric="dot")
    assert indices.tolist() == [[0, 1, 2]] * 2


# ---- groups and self-exclusion --------------------------------------------------------------------


def grouped(device, dtype=torch.float32):
    """Four classes, with queries before the first and after the last. One class has no queries, one has no rows."""
    return {
        "queries": random_rows(25, 7, dtype=dtype, seed=1, device=device),
        "bank": random_rows(4, 18, 7, dtype=dtype, seed=2, device=device),
        "query_offsets": integers([2, 12, 12, 17, 21], device),
        "bank_counts": integers([18, 9, 0, 5], device),
    }


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("counted", [False, True])
def test_groups(implementation, device, metric, exclude_self, counted):
    case = grouped(device)
    queries, bank = case.pop("queries"), case.pop("bank")
    if not counted:
        del case["bank_counts"]
    _, indices = check(
        implementation, queries, bank, 6, metric=metric, exclude_self=exclude_self, **case
    )
    outside = [0, 1, 21, 22, 23, 24]
    assert bool((indices[outside] == -1).all())


def test_one_class_equals_a_plain_bank(implementation, device):
    queries = random_rows(9, 5, seed=1, device=device)
    bank = random_rows(30, 5, seed=2, device=device)
    plain = implementation.knn_topk(queries, bank, 4)
    one = implementation.knn_topk(queries, bank[None], 4, query_offsets=integers([0, 9], device))
    assert torch.equal(plain[0], one[0])
    assert torch.equal(plain[1], one[1])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rows", [1, 2, 33, 65])
def test_exclude_self(implementation, device, metric, rows):
    bank = random_rows(rows, 4, seed=2, device=device)
    _, indices = check(implementation, bank, bank, 5, metric=metric, exclude_self=True)
    own = torch.arange(rows, device=device)
    assert not (indices == own[:, None]).any()


def test_exclude_self_beyond_the_bank_has_no_neighbours(implementation, device):
    queries = random_rows(8, 4, seed=1, device=device)
    bank = random_rows(5, 4, seed=2, device=device)
    _, indices = check(implementation, queries, bank, 3, exclude_self=True)
    assert bool((indices[5:] == -1).all())
    assert bool((indices[:5] >= 0).all())


def test_exclude_self_keeps_equal_rows(implementation, device):
    bank = torch.ones(4, 3, device=device)
    _, indices = implementation.knn_topk(bank, bank, 4, exclude_self=True)
    assert indices.tolist() == [[1, 2, 3, -1], [0, 2, 3, -1], [0, 1, 3, -1], [0, 1, 2, -1]]


def test_unit_bank_skips_the_normalisation(implementation, device):
    queries = random_rows(6, 5, seed=1, device=device)
    bank = random_rows(20, 5, seed=2, device=device)
    check(implementation, queries, bank, 4, unit_bank=True)
    unit = torch.tensor([[0.0, 1.0], [0.6, 0.8]], device=device)
    check(implementation, queries[:, :2], unit, 2, unit_bank=True)
    for metric in ("dot", "l2"):  # the flag is ignored
        plain = implementation.knn_topk(queries, bank, 4, metric=metric)
        flagged = implementation.knn_topk(queries, bank, 4, metric=metric, unit_bank=True)
        assert torch.equal(plain[0], flagged[0])
        assert torch.equal(plain[1], flagged[1])
