"""The CUDA search, run by the emulator, gives the same bits as the CPU operator, for any path, order and size.

Every comparison is `==`, because both guarantee the canonical score and the lower index (csrc/math/canonical.h).
"""

import itertools
import os
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import integers, random_rows

from dgcl_ops.doctor.cases.search_classes import rounded_apart
from kernels.emulator import build, replace

METRICS = ("cosine", "dot", "l2")
NAN, INF = float("nan"), float("inf")


def search_path(name: str):
    """auto: tensor cores filter, and what they cannot resolve goes to canonical tiles. exact: only canonical tiles."""
    return mock.patch.dict(os.environ, DGCL_OPS_CUDA_SEARCH=name)


@pytest.fixture(params=["auto", "exact"])
def path(request):
    with search_path(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def emulator(request):
    module = build.load("plain")
    module.reset()
    module.configure("random", len(request.node.name))
    return module


@pytest.fixture(params=["narrow steps", "wide steps", "exact"])
def width(request, emulator):
    """The paths, and the filter with narrow and wide steps. float32 rows take wide steps on large devices."""
    shared = 228 if request.param == "wide steps" else 100
    emulator.configure("random", len(request.node.name), shared_kilobytes=shared)
    with search_path("exact" if request.param == "exact" else "auto"):
        yield


def compare(queries, bank, k, metric="cosine", offsets=None, counts=None, **flags):
    """Compares knn_topk and knn_density on both. Returns the CPU's indices."""
    kernels = replace.operators()
    exclude_self, unit_bank = flags.get("exclude_self", False), flags.get("unit_bank", False)
    arguments = (queries, bank, k, metric, offsets, counts, exclude_self, unit_bank)
    values, indices = torch.ops.dgcl_ops.knn_topk(*arguments)
    cuda_values, cuda_indices = kernels["knn_topk"](*arguments)
    assert torch.equal(cuda_indices, indices)
    assert torch.equal(cuda_values, values)
    scales = sorted({max(1, k // 3), k})
    for per_scale in (False, True):
        arguments = (
            queries,
            bank,
            scales,
            metric,
            offsets,
            counts,
            exclude_self,
            per_scale,
            unit_bank,
        )
        density = torch.ops.dgcl_ops.knn_density(*arguments)
        cuda_density = kernels["knn_density"](*arguments)
        assert torch.equal(density.isnan(), cuda_density.isnan())
        assert torch.equal(density.nan_to_num(0.0), cuda_density.nan_to_num(0.0))
    return indices


# Around every tile: 8 pairs, 16 and 32 rows of the exact tile, 64 queries of an item, 128 rows of the filter's tile.
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 31, 32, 33, 127, 128, 129, 257])
@pytest.mark.parametrize("queries", [1, 7, 8, 9, 31, 32, 33, 63, 64, 65])
def test_numbers_of_rows(path, queries, rows):
    compare(random_rows(queries, 24, seed=1), random_rows(rows, 24, seed=2), 5)


# Around the steps over columns: 32 lanes, 16 of an mma, 32 or 64 of the bank in shared memory, and 256 of the queries
# (128 in float64).
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("columns", [1, 2, 8, 15, 16, 17, 31, 33, 64, 65, 255, 256, 257, 300, 513])
def test_numbers_of_columns(width, columns, metric):
    compare(random_rows(9, columns, seed=1), random_rows(150, columns, seed=2), 20, metric)


@pytest.mark.parametrize("k", [1, 2, 31, 32, 33, 64, 128, 255, 256, 257, 400, 700])
def test_numbers_of_neighbours(path, k):
    compare(random_rows(5, 12, seed=1), random_rows(600, 12, seed=2), k)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("query_dtype", "bank_dtype"),
    list(
        itertools.product([torch.float64, torch.float32, torch.float16, torch.bfloat16], repeat=2)
    ),
)
def test_dtypes(width, query_dtype, bank_dtype, metric):
    queries = random_rows(6, 41, dtype=query_dtype, seed=1)
    compare(queries, random_rows(140, 41, dtype=bank_dtype, seed=2), 7, metric)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("shift", [0, 1, 4])
def test_rows_that_are_views(width, shift, dtype):
    """Other strides, and rows that do not start at a multiple of 16 bytes."""
    wide = random_rows(3, 140, 80, dtype=dtype, seed=2)
    bank = wide[:, :, shift : shift + 40]
    queries = random_rows(30, 96, dtype=dtype, seed=1)[:, 3:43]
    compare(queries, bank[0], 9, unit_bank=True)
    compare(queries, bank, 9, "dot", integers([0, 10, 20, 30]))
    compare(queries, bank.transpose(1, 2)[:, :40, :40], 9, "dot", integers([0, 10, 20, 30]))


@pytest.mark.parametrize("metric", METRICS)
def test_classes(path, metric):
    """Classes of unequal size, empty ones, and ones without bank rows; queries before, between and after them."""
    offsets, counts = integers([3, 3, 70, 70, 135, 199]), integers([20, 200, 5, 0, 131])
    compare(
        random_rows(230, 19, seed=1), random_rows(5, 200, 19, seed=2), 12, metric, offsets, counts
    )


def test_a_class_for_every_query(path):
    compare(random_rows(70, 8, seed=1), random_rows(70, 5, 8, seed=2), 3, offsets=torch.arange(71))


@pytest.mark.parametrize("metric", METRICS)
def test_not_its_own_neighbour(path, metric):
    rows = random_rows(150, 10, seed=1)
    compare(rows, rows, 9, metric, exclude_self=True)
    bank = random_rows(2, 60, 10, seed=2)
    queries = torch.cat([bank[0], bank[1], random_rows(10, 10, seed=3)])
    compare(
        queries, bank, 59, metric, integers([0, 60, 130]), integers([60, 41]), exclude_self=True
    )


@pytest.mark.parametrize("metric", METRICS)
def test_odd_rows(path, metric):
    """NaN, infinite, zero, huge, tiny and near-denormal rows among queries and bank."""
    bank, queries = random_rows(300, 16, seed=2), random_rows(40, 16, seed=1)
    bank[5, 3], bank[11, 0], bank[9] = NAN, INF, 0
    queries[2, 0], queries[3], queries[4, 7] = NAN, 0, -INF
    compare(queries, bank, 300, metric)
    compare(queries, bank, 20, metric)
    for scale in (1e-20, 1e-30, 1e-38, 1e-44, 1e15, 1e25, 1e37):
        one_bank, all_bank = bank.clone(), bank * scale
        one_bank[12] *= scale
        one_queries = queries.clone()
        one_queries[5] *= scale
        compare(one_queries, one_bank, 20, metric)
        compare(queries * scale, all_bank, 20, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("distinct", [1, 2, 40])
def test_ties(path, distinct, metric):
    """Equal rows over several tiles and parts. The filter cannot separate them, and the lowest indices win."""
    bank = random_rows(distinct, 20, seed=2).repeat(800 // distinct, 1)
    indices = compare(random_rows(3, 20, seed=1), bank, 33, metric)
    if distinct == 1:
        assert torch.equal(indices, torch.arange(33).expand(3, -1))


@pytest.mark.parametrize("spread", [1.0, 0.1, 0.01, 1e-3, 1e-5])
def test_compact_classes(width, spread):
    """A class around a far mean. The tighter it is, the fewer items the filter resolves."""
    mean = random_rows(1, 32, seed=3)
    bank = mean + spread * random_rows(700, 32, seed=2)
    compare(mean + spread * random_rows(70, 32, seed=1), bank, 32)


@pytest.mark.parametrize("multiprocessors", [1, 2, 40])
def test_parts_of_the_bank(path, emulator, multiprocessors):
    """With few queries on a large device, the bank is split over blocks and the lists are merged."""
    emulator.configure("random", 5, multiprocessors)
    bank = random_rows(2, 2100, 8, seed=2)
    bank[:, 1000:1500] = bank[:, 200:700]  # ties across parts
    compare(
        random_rows(11, 8, seed=1), bank, 40, "dot", integers([0, 4, 11]), integers([2100, 700])
    )
    compare(random_rows(3, 8, seed=1), bank[0], 600)


def test_more_parts_than_a_warp_has_lanes(path, emulator):
    """The plan stops at 32 parts, even if device and bank would allow more."""
    emulator.configure("random", 3, 80)
    compare(random_rows(2, 2, seed=1), random_rows(17500, 2, seed=2), 40, "dot")


def work_of_the_exact_search(emulator, queries, bank, k):
    emulator.reset()
    compare(queries, bank, k, "dot")
    return emulator.passed_barriers()["(knn_exact_kernel<T, false>)"]


def test_the_filter_settles_what_it_can(emulator):
    """Both paths give the same bits. Only the work left to the exact path shows that the filter works."""
    queries, bank = random_rows(70, 40, seed=1), random_rows(400, 40, seed=2)
    with search_path("exact"):
        assert work_of_the_exact_search(emulator, queries, bank, 32) > 0
    with search_path("auto"):
        assert work_of_the_exact_search(emulator, queries, bank, 32) == 0
        bank[7, 3] = NAN
        assert work_of_the_exact_search(emulator, queries, bank, 32) == 0
        assert work_of_the_exact_search(emulator, queries, bank[:1].expand(400, 40), 32) > 0


@pytest.mark.parametrize("schedule", ["sequential", "reverse", "random"])
def test_no_schedule_changes_a_bit(path, emulator, schedule):
    for seed in (1, 2, 3):
        emulator.configure(schedule, seed, seed)
        compare(random_rows(70, 40, seed=1), random_rows(400, 40, seed=2), 32)


@pytest.mark.parametrize(
    ("offsets", "counts"),
    [
        ([-5, 20, 40], [10, 10]),
        ([0, 20, 99], [10, 10]),
        ([30, 10, 20], [10, 10]),
        ([0, 20, 40], [-3, 99]),
        ([2**62, -(2**62), 2**62], [2**62, -(2**62)]),
    ],
)
def test_bad_offsets_and_counts_reach_nothing_outside(path, offsets, counts):
    """CUDA clamps what it could not refuse without a sync. Runs under sanitizers see out-of-bounds accesses."""
    kernels = replace.operators()
    queries, bank = random_rows(40, 8, seed=1), random_rows(2, 30, 8, seed=2)
    values, indices = kernels["knn_topk"](
        queries, bank, 4, "dot", integers(offsets), integers(counts), False, False
    )
    assert int(indices.max()) < 30
    assert int(indices.min()) >= -1
    assert not values.isnan().any()


def test_the_path_must_be_known():
    kernels = replace.operators()
    rows = random_rows(3, 4)
    with (
        search_path("fastest"),
        pytest.raises(
            RuntimeError, match="DGCL_OPS_CUDA_SEARCH must be auto or exact, got fastest"
        ),
    ):
        kernels["knn_topk"](rows, rows, 1, "dot", None, None, False, False)


@st.composite
def problems(draw):
    """Small numbers, many of them equal, at a common offset: scores are equal or an ulp apart, around the bound."""
    columns, rows = draw(st.integers(1, 40)), draw(st.integers(1, 200))
    seed, levels = draw(st.integers(0, 2**31)), draw(st.sampled_from([1, 2, 5, 1000]))
    offset = draw(st.sampled_from([0.0, 1.0, 100.0]))
    generator = torch.Generator().manual_seed(seed)

    def make(n):
        steps = torch.randint(-levels, levels + 1, (n, columns), generator=generator)
        return offset + steps.float() / levels

    return make(draw(st.integers(1, 10))), make(rows), draw(st.integers(1, 70))


@given(problems(), st.sampled_from(METRICS), st.sampled_from(["auto", "exact"]))
def test_no_neighbour_is_ever_missed(problem, metric, name):
    with search_path(name):
        compare(*problem, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(4))
def test_rows_that_sit_on_the_bound(emulator, metric, seed):
    """The filter ranks B above A although A is nearer, and errs by as much as its bound allows."""
    emulator.configure("random", seed)
    k = 32
    query, kind_a, kind_b = rounded_apart(seed)
    # 40 rows A, slightly ahead, 60 rows B, and their opposites. Their mean (256 are averaged) is 0, so centring changes
    # nothing. More rows would not fit into the list of candidates, and the item would go to canonical tiles.
    rows = [(1 + 2**-18) * kind_a] * 40 + [kind_b] * 60
    rows = torch.stack([*rows, *(-row for row in rows), *torch.zeros(56, len(query))])
    order = torch.randperm(256, generator=torch.Generator().manual_seed(seed))
    bank = rows[order]
    with search_path("auto"):
        indices = compare(query.repeat(3, 1), bank, k, metric)
    if metric == "dot":
        assert indices[0].tolist() == (order < 40).nonzero().flatten()[:k].tolist()
