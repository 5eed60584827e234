"""knn_density against float64 loops, and against knn_topk, which must imply it exactly."""

import math

import oracles
import pytest
import torch
from oracles import assert_close, integers, random_rows

METRICS = ("cosine", "dot", "l2")
INF, NAN = math.inf, math.nan


def check(implementation, queries, bank, scales, **options):
    for per_scale in (False, True):
        density = implementation.knn_density(queries, bank, scales, per_scale=per_scale, **options)
        moved = {n: v.cpu() if isinstance(v, torch.Tensor) else v for n, v in options.items()}
        want = oracles.knn_density(queries.cpu(), bank.cpu(), scales, per_scale=per_scale, **moved)
        wide = torch.float64 in (queries.dtype, bank.dtype)
        assert density.dtype == (torch.float64 if wide else torch.float32)
        finite = [
            t[t.isfinite()].double().abs().max().item() if t.numel() else 0.0
            for t in (queries, bank)
        ]
        magnitude = {"cosine": 1.0, "dot": queries.shape[1] * finite[0] * finite[1]}
        metric = options.get("metric", "cosine")
        assert_close(density, want, magnitude.get(metric, max(finite) * queries.shape[1] ** 0.5))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 63, 64, 65])
def test_bank_sizes(implementation, device, rows, metric):
    queries = random_rows(rows, 5, seed=1, device=device)
    bank = random_rows(rows, 5, seed=2, device=device)
    check(implementation, queries, bank, (8, 16, 32), metric=metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("columns", [1, 3, 33, 65])
def test_columns(implementation, device, columns, metric):
    queries = random_rows(5, columns, seed=1, device=device)
    check(
        implementation,
        queries,
        random_rows(40, columns, seed=2, device=device),
        (3, 9),
        metric=metric,
    )


@pytest.mark.parametrize(
    "scales", [(1,), (40,), (300,), (32, 8, 16), (5, 5), (1, 2, 3, 4, 5, 6, 7), (2, 300), [4, 9]]
)
def test_scales(implementation, device, scales):
    queries = random_rows(4, 6, seed=1, device=device)
    check(implementation, queries, random_rows(50, 6, seed=2, device=device), scales)


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
    check(implementation, queries, bank, (3, 8), metric=metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("counts", [None, [18, 9, 0, 5]])
def test_groups(implementation, device, metric, exclude_self, counts):
    """Queries outside the offsets have density 0, even with a NaN. So do those of a class without rows."""
    queries = random_rows(25, 7, seed=1, device=device)
    queries[0, 3] = queries[14, 0] = queries[24, 1] = NAN
    check(
        implementation,
        queries,
        random_rows(4, 18, 7, seed=2, device=device),
        (2, 6),
        metric=metric,
        exclude_self=exclude_self,
        query_offsets=integers([2, 12, 12, 17, 21], device),
        bank_counts=None if counts is None else integers(counts, device),
    )


def test_nothing_to_measure(implementation, device):
    none = implementation.knn_density(
        random_rows(0, 3, device=device), random_rows(5, 3, device=device)
    )
    assert none.shape == (0,)
    assert none.dtype == torch.float32
    queries = random_rows(2, 3, device=device)
    for metric in METRICS:
        empty = implementation.knn_density(queries, random_rows(0, 3, device=device), metric=metric)
        assert empty.tolist() == [0.0, 0.0]
    each = implementation.knn_density(
        queries, random_rows(0, 3, device=device), (1, 2, 3), per_scale=True
    )
    assert each.shape == (3, 2)
    assert not each.any()


@pytest.mark.parametrize("metric", METRICS)
def test_nan_and_infinite_rows(implementation, device, metric):
    bank = random_rows(70, 5, seed=2, device=device)
    bank[3, 0] = bank[64, 4] = NAN
    bank[8, 1] = -INF
    queries = random_rows(6, 5, seed=1, device=device)
    queries[2, 1] = NAN
    check(implementation, queries, bank, (4, 80), metric=metric)
    only_nan = torch.full((3, 5), NAN, device=device)
    density = implementation.knn_density(queries[[0, 2]], only_nan, (2,), metric=metric)
    assert density[0].item() == 0.0
    assert math.isnan(density[1].item())


def test_an_infinite_query(implementation, device):
    """Such a query has no direction, an infinite distance, and an infinite dot product or none."""
    queries = torch.tensor([[INF, 1.0]], device=device)
    bank = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], device=device)
    assert math.isnan(implementation.knn_density(queries, bank, (2,)).item())
    assert implementation.knn_density(queries, bank, (2,), metric="l2").item() == 0.0
    assert implementation.knn_density(queries, bank, (2,), metric="dot").item() == INF


def test_by_hand(implementation, device):
    """Scores 1, 0.6, 0, -1: means 1, 0.8 and (1.6 - 1) / 4 over k = 1, 2, 4."""
    bank = torch.tensor([[0.0, 2.0], [-3.0, 0.0], [5.0, 0.0], [0.3, 0.4]], device=device)
    query = torch.tensor([[7.0, 0.0]], device=device)
    each = implementation.knn_density(query, bank, (1, 2, 4), per_scale=True)
    assert_close(each, torch.tensor([[1.0], [0.8], [0.15]], dtype=torch.float64))
    assert_close(
        implementation.knn_density(query, bank, (1, 2, 4)), torch.tensor([1.95 / 3]).double()
    )


def test_default_scales_are_the_published_ones(implementation):
    queries, bank = random_rows(3, 4, seed=1), random_rows(50, 4, seed=2)
    default = implementation.knn_density(queries, bank)
    assert torch.equal(default, implementation.knn_density(queries, bank, (8, 16, 32)))
    assert not torch.equal(default, implementation.knn_density(queries, bank, (8, 16)))


def test_exclude_self_of_a_tight_cluster(implementation, device):
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]], device=device)
    assert implementation.knn_density(bank, bank, (1,)).tolist() == [1.0, 1.0]
    assert implementation.knn_density(bank, bank, (1,), exclude_self=True).tolist() == [0.0, 0.0]
    third = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], device=device)
    density = implementation.knn_density(third, bank, (1,), exclude_self=True)
    assert density[2].item() == 0.0


def test_unit_bank(implementation, device):
    queries = random_rows(6, 5, seed=1, device=device)
    bank = random_rows(20, 5, seed=2, device=device)
    check(implementation, queries, bank, (4,), unit_bank=True)
    assert not torch.equal(
        implementation.knn_density(queries, bank, (4,), unit_bank=True),
        implementation.knn_density(queries, bank, (4,)),
    )


def test_strided_inputs(implementation, device):
    wide = random_rows(80, 9, seed=2, device=device)
    queries, bank = wide[1:20:3, 2:7], wide[::2, 2:7]
    want = implementation.knn_density(queries.contiguous(), bank.contiguous(), (3, 5))
    assert_close(implementation.knn_density(queries, bank, (3, 5)), want.double())
    turned = wide[:40].T  # [9, 40]: columns are far apart
    want = implementation.knn_density(turned.contiguous()[:4], turned.contiguous(), (3, 5))
    assert_close(implementation.knn_density(turned[:4], turned, (3, 5)), want.double())


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"scales": (0,)}, ValueError, "knn_density: scales must be positive integers, got (0,)"),
        (
            {"scales": (4, -1)},
            ValueError,
            "knn_density: scales must be positive integers, got (4, -1)",
        ),
        ({"scales": ()}, ValueError, "knn_density: scales must be positive integers, got ()"),
        (
            {"scales": 8},
            TypeError,
            "knn_density: scales must be a tuple or list of integers, got 8",
        ),
        ({"scales": (1.5,)}, TypeError, "knn_density: each of scales must be an integer, got 1.5"),
        (
            {"metric": "L2"},
            ValueError,
            "knn_density: metric must be one of cosine, dot, l2, got 'L2'",
        ),
        ({"queries": 3}, TypeError, "knn_density: queries must be a torch.Tensor, got int"),
    ],
)
def test_bad_hyper_parameters(change, error, text):
    from dgcl_ops import ops

    arguments = {"queries": torch.ones(2, 3), "bank": torch.ones(4, 3)} | change
    with pytest.raises(error) as caught:
        ops.knn_density(**arguments)
    assert str(caught.value) == text
