"""silhouette_sums against a loop over pairs."""

import itertools
import math
import os
import subprocess
import sys

import oracles
import pytest
import torch
from builds import needs_extension
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_close, integers, random_rows

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def sums_and_check(implementation, features, offsets, rows=None):
    """Compares with the oracle. A result sums a few hundred roots of sums of at most 300 squares; nothing cancels."""
    options = {} if rows is None else {"rows": rows}
    got = implementation.silhouette_sums(features, offsets, **options)
    assert got.dtype == torch.float64
    assert got.device == features.device
    on_cpu = None if rows is None else rows.cpu()
    assert_close(got, oracles.silhouette_sums(features.cpu(), offsets.cpu(), on_cpu), 0.0)
    return got


def spread_offsets(rows: int, classes: int, device="cpu"):
    return integers([c * rows // classes for c in range(classes + 1)], device)


@pytest.mark.parametrize("dim", [1, 2, 15, 16, 17, 33, 256])
@pytest.mark.parametrize(
    ("rows", "classes"), [(1, 1), (2, 1), (15, 4), (63, 2), (64, 3), (65, 1), (129, 70), (200, 5)]
)
def test_equals_a_loop(implementation, device, rows, classes, dim):
    if rows * rows * dim > 2**20:
        dim = 3  # limits the time of the loop
    features = random_rows(rows, dim, seed=rows + dim, device=device)
    sums_and_check(implementation, features, spread_offsets(rows, classes, device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows_dtype", [None, *DTYPES])
def test_any_float_dtype_is_widened(implementation, device, dtype, rows_dtype):
    features = random_rows(40, 7, dtype=dtype, seed=1, device=device)
    rows = None
    if rows_dtype:
        rows = random_rows(9, 7, dtype=rows_dtype, seed=2, device=device)
    sums_and_check(implementation, features, integers([0, 13, 13, 40], device), rows)


@pytest.mark.parametrize("number", [0, 1, 16, 64, 65, 131])
def test_rows_of_their_own(implementation, device, number):
    features = random_rows(70, 6, seed=1, device=device)
    rows = random_rows(number, 6, seed=2, device=device)
    sums_and_check(implementation, features, integers([2, 30, 69], device), rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("number", "dim"), [(9000, 3), (700, 300)])
def test_blocks_of_many_rows_and_columns_in_stretches(number, dim, dtype):
    """At sizes that are too slow for a loop, compares some rows with whole matrices of differences."""
    from dgcl_ops import ops

    features = random_rows(number, dim, dtype=dtype, seed=number)
    offsets = integers([5, 5, number // 3, number // 2, number - 300, number - 299, number - 7])
    chosen = torch.cat([torch.arange(0, number, number // 40), torch.arange(number - 12, number)])
    wide = features.double()
    distances = torch.stack([(wide - row).square().sum(1).sqrt() for row in wide[chosen]])
    spans = itertools.pairwise(offsets.tolist())
    want = torch.stack([distances[:, a:b].sum(1) for a, b in spans], dim=1)
    assert_close(ops.silhouette_sums(features, offsets)[chosen], want, 0.0)
    assert_close(ops.silhouette_sums(features, offsets, features[chosen]), want, 0.0)


def test_the_features_as_rows_change_nothing_but_the_order_of_summation(implementation, device):
    features = random_rows(150, 5, seed=3, device=device)
    offsets = integers([0, 90, 150], device)
    alone = implementation.silhouette_sums(features, offsets)
    assert_close(implementation.silhouette_sums(features, offsets, features), alone, 0.0)


def test_rows_outside_the_offsets_belong_to_no_class(implementation, device):
    """Rows outside the offsets have sums, but no sum includes them."""
    features = random_rows(100, 4, seed=4, device=device)
    got = sums_and_check(implementation, features, integers([20, 70, 80], device))
    inside = implementation.silhouette_sums(features[20:80], integers([0, 50, 60], device))
    assert_close(got[20:80], inside, 0.0)
    assert bool((got[:20] > 0).all())


def test_empty_things(implementation, device):
    features = random_rows(5, 3, device=device)
    assert implementation.silhouette_sums(features, integers([2], device)).shape == (5, 0)
    assert not implementation.silhouette_sums(features, integers([3, 3, 3], device)).any()
    got = implementation.silhouette_sums(features[:0], integers([0, 0], device))
    assert got.shape == (0, 1)
    got = implementation.silhouette_sums(features[:0], integers([0, 0], device), features)
    assert got.tolist() == [[0.0]] * 5
    assert not implementation.silhouette_sums(features[:, :0], integers([0, 5], device)).any()


def test_strided_rows(implementation, device):
    wide = random_rows(60, 20, seed=5, device=device)
    offsets = integers([0, 11, 30], device)
    sums_and_check(implementation, wide[::2, 3:10], offsets, wide[1::2, 4:11])
    sums_and_check(implementation, wide.T[:20, ::2], integers([0, 20], device))


def test_nothing_cancels(implementation, device):
    """Close pairs far from the origin, and equal rows. The difference comes first, and is exact."""
    features = random_rows(30, 4, dtype=torch.float64, seed=6, device=device)
    grid = (features * 2**20).round() / 2**20
    offsets = integers([0, 12, 30], device)
    near = implementation.silhouette_sums(grid, offsets)
    assert torch.equal(implementation.silhouette_sums(grid + 2.0**30, offsets), near)
    assert torch.equal(implementation.silhouette_sums(grid * 2.0**-300, offsets), near * 2.0**-300)
    same = torch.full((70, 3), 0.1, dtype=torch.float64, device=device)
    assert not implementation.silhouette_sums(same, integers([0, 70], device)).any()


def test_rows_that_are_not_finite(implementation, device):
    """NaN and infinity stay with the row and with the class that holds it."""
    features = random_rows(6, 3, seed=7, device=device)
    features[1, 0], features[4, 1] = math.nan, math.inf
    got = implementation.silhouette_sums(features, integers([0, 3, 6], device)).cpu()
    finite = [0, 2, 3, 5]
    assert got[:, 0].isnan().all()
    assert got[1].isnan().all()
    assert got[finite, 1].tolist() == [math.inf] * 4
    assert got[4, 1].isnan()  # inf - inf: a row's distance to itself
    got = implementation.silhouette_sums(features, integers([2, 4, 4], device))
    assert got[finite, 0].isfinite().all()


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8),
    skipped=st.integers(0, 9),
    dim=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
def test_relations(implementation, sizes, skipped, dim, seed):
    """Sums are symmetric in pairs of classes. Row order within a class, a shift and a scale do not matter."""
    offsets = integers([skipped, *(skipped + s for s in itertools.accumulate(sizes))])
    rows = int(offsets[-1]) + 3
    features = random_rows(rows, dim, dtype=torch.float64, seed=seed)
    sums = implementation.silhouette_sums(features, offsets)
    spans = list(itertools.pairwise(offsets.tolist()))
    between = torch.stack([sums[a:b].sum(0) for a, b in spans])
    assert_close(between, between.T, 1.0)
    generator = torch.Generator().manual_seed(seed)
    order = torch.arange(rows)
    for a, b in spans:
        order[a:b] = a + torch.randperm(b - a, generator=generator)
    moved = implementation.silhouette_sums(features[order] * 4.0 + 1.0, offsets)
    assert_close(moved, sums[order] * 4.0, 1.0 + rows)
    part = spans[len(spans) // 2]
    alone = implementation.silhouette_sums(features, integers(part))
    assert_close(alone[:, 0], sums[:, len(spans) // 2], 0.0)


@pytest.mark.parametrize("rows", [None, 500])
def test_threads_change_no_bit(rows):
    from dgcl_ops import ops

    features = random_rows(777, 64, seed=8)
    queries = None if rows is None else random_rows(rows, 64, seed=9)
    offsets = spread_offsets(
        777, 2
    )  # few classes, so that another order of summation shows in most sums
    want = ops.silhouette_sums(features, offsets, queries)
    threads = torch.get_num_threads()
    try:
        for number in (2, 3, 7):
            torch.set_num_threads(number)
            for _ in range(25):  # a missing wait shows in one call of twenty or so
                assert torch.equal(ops.silhouette_sums(features, offsets, queries), want)
    finally:
        torch.set_num_threads(threads)


DIGEST = """
import torch
from dgcl_ops import backend_info
from dgcl_ops.ops import silhouette_sums
generator = torch.Generator().manual_seed(0)
sums = []
for rows, dim in ((67, 31), (130, 32), (301, 100), (600, 150)):
    features = torch.randn(rows, dim, generator=generator)
    offsets = torch.tensor([0, 20, 20, rows])
    sums += [silhouette_sums(features, offsets), silhouette_sums(features, offsets, features[:50])]
bits = [hash(tuple(s.view(torch.int64).flatten().tolist())) for s in sums]
print(backend_info()["cpu_capability"], hash(tuple(bits)))
"""


@pytest.mark.long
@needs_extension
def test_instruction_sets_agree_bit_for_bit():
    from dgcl_ops import backend_info

    levels = oracles.LEVELS
    digests = {}
    for level in levels[: levels.index(backend_info()["cpu_capability"]) + 1]:
        env = {**os.environ, "DGCL_OPS_CPU_CAPABILITY": level}
        command = [sys.executable, "-c", DIGEST]
        result = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        used, digests[level] = result.stdout.split()
        assert used == level
    assert len(set(digests.values())) == 1, digests


def test_no_gradient_flows():
    from dgcl_ops import ops

    features = random_rows(8, 3).requires_grad_()
    assert not ops.silhouette_sums(features, integers([0, 8])).requires_grad
    assert not ops.silhouette_sums(features, integers([0, 8]), features).requires_grad


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"features": [[1.0]]}, "features must be a torch.Tensor, got list"),
        ({"rows": [[1.0]]}, "rows must be a torch.Tensor, got list"),
    ],
)
def test_arguments_that_are_no_tensors(change, text):
    from dgcl_ops import ops

    arguments = {"features": torch.zeros(5, 3), "offsets": integers([0, 2, 5])} | change
    with pytest.raises(TypeError) as caught:
        ops.silhouette_sums(**arguments)
    assert str(caught.value).startswith(f"silhouette_sums: {text}"), str(caught.value)
