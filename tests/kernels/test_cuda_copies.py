"""The CUDA kernels that copy rows, on the emulator: they give the CPU's bits, and clamp values that the CPU refuses."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import integers, random_rows

from dgcl_ops.ops import gather_rows

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
HUGE = 2**62


@pytest.fixture(scope="module")
def kernels():
    """The emulated kernels, by the operator's name; the compiled ones for the CPU are in torch.ops.dgcl_ops."""
    from kernels.emulator import replace

    return replace.operators()


def same(mine, theirs) -> bool:
    """Equal bits, except that all NaNs count as equal."""
    equal = (mine == theirs) | (mine.isnan() & theirs.isnan())
    return mine.dtype == theirs.dtype and mine.shape == theirs.shape and bool(equal.all())


# ---- memory_push ----------------------------------------------------------------------------------


def state(classes, capacity, dim, projected, dtypes, seed=0):
    counts = torch.arange(classes) % (capacity + 1)
    heads = (3 * torch.arange(classes)) % capacity
    return [
        random_rows(classes, capacity, dim, dtype=dtypes[0], seed=seed),
        random_rows(classes, capacity, projected, dtype=dtypes[1], seed=seed + 1),
        random_rows(classes, capacity, dtype=dtypes[2], seed=seed + 2),
        counts,
        heads,
    ]


def arriving(classes, number, dim, projected, dtypes, scale=1.0, seed=9):
    features = random_rows(classes, number, dim, dtype=torch.float64, seed=seed) * scale
    return [
        features.to(dtypes[0]),
        random_rows(classes, number, projected, dtype=dtypes[1], seed=seed + 1),
        random_rows(classes, number, dtype=dtypes[2], seed=seed + 2),
    ]


def push_both_ways(kernels, rings, rows, row_counts, normalize, cpu_rings=None, cpu_counts=None):
    """The CPU gets other numbers where it would refuse those of the GPU."""
    cpu = [t.clone() for t in cpu_rings or rings]
    cuda = [t.clone() for t in rings]
    counts = row_counts if cpu_counts is None else cpu_counts
    torch.ops.dgcl_ops.memory_push(*cpu, *rows, counts, normalize)
    kernels["memory_push"](*cuda, *rows, row_counts, normalize)
    for mine, theirs in zip(cuda, cpu, strict=True):
        assert same(mine, theirs)
    return cuda


@pytest.mark.parametrize("ring", DTYPES)
@pytest.mark.parametrize("new", DTYPES)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dim", [1, 33, 64])
def test_a_push_has_the_bits_of_the_cpu(kernels, ring, new, normalize, dim):
    """Lengths inside and outside the safe range of a sum of squares, zero rows and NaN. 64 columns use vectors."""
    for scale in (1.0, 1e-30, 1e30):
        rings = state(3, 5, dim, 16, (ring, new, ring))
        rows = arriving(3, 8, dim, 16, (new, new, new), scale)
        rows[0][0, 1] = 0
        rows[0][1, 2, 0] = math.nan
        push_both_ways(kernels, rings, rows, integers([8, 3, 0]), normalize)


@pytest.mark.parametrize("skip", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_not_aligned_are_pushed_all_the_same(kernels, dtype, skip):
    """Views that begin `skip` elements into a wider row. Some are aligned for 16-byte vectors, some are not."""
    rings = state(2, 7, 24, 8, (dtype,) * 3)
    wide = arriving(2, 9, 24 + skip, 8 + 2 * skip, (dtype,) * 3)
    rows = [wide[0][:, ::2, skip:], wide[1][:, 1:6, skip : skip + 8], wide[2][:, ::2]]
    push_both_ways(kernels, rings, rows, integers([5, 2]), False)


@given(
    st.lists(st.sampled_from([-HUGE, -1, 0, 3, 4, 5, 6, HUGE]), min_size=3, max_size=3),
    st.lists(st.sampled_from([-HUGE, -1, 0, 2, 4, 5, 6, HUGE]), min_size=3, max_size=3),
    st.lists(st.sampled_from([-HUGE, -1, 0, 2, 7, 8, HUGE]), min_size=3, max_size=3),
)
def test_counts_and_heads_out_of_range_are_clamped(kernels, counts, heads, row_counts):
    """As documented: row_counts to [0, P], counts to [0, capacity], heads to [0, capacity - 1]."""
    capacity, number = 5, 7
    rings = state(3, capacity, 6, 4, (torch.float32,) * 3)
    rings[3:] = integers(counts), integers(heads)
    clamped = [*rings[:3], rings[3].clamp(0, capacity), rings[4].clamp(0, capacity - 1)]
    wanted = integers(row_counts)
    rows = arriving(3, number, 6, 4, (torch.float32,) * 3)
    push_both_ways(kernels, rings, rows, wanted, True, clamped, wanted.clamp(0, number))


# ---- gather_rows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 8, 31, 32, 70])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_stray_pixel_gives_a_row_of_nan(kernels, dtype, dim, channels_last):
    maps = random_rows(2, dim, 3, 15, dtype=dtype)
    if channels_last:
        maps = maps.contiguous(memory_format=torch.channels_last)
    pixels = torch.randint(90, (67,))
    strays = torch.rand(67) < 0.3
    pixels[strays] = integers([-1, 90, HUGE, -HUGE])[torch.randint(4, (int(strays.sum()),))]
    got = kernels["gather_rows"](maps, pixels)
    assert bool(got[strays].isnan().all())
    assert torch.equal(got[~strays], gather_rows(maps, pixels[~strays]))


def test_pixels_of_maps_without_any(kernels):
    got = kernels["gather_rows"](torch.zeros(0, 3, 4, 5), integers([0, 7]))
    assert got.shape == (2, 3)
    assert bool(got.isnan().all())


@given(st.lists(st.sampled_from([-HUGE, -1, 0, 3, 3, 5, 19, 20, HUGE]), min_size=1, max_size=40))
def test_a_stray_pixel_passes_no_gradient_on(kernels, pixels):
    """As if its row were missing, even if it holds NaN."""
    pixels = integers(pixels)
    inside = (pixels >= 0) & (pixels < 20)
    gradient = random_rows(len(pixels), 2).masked_fill(~inside[:, None], math.nan)
    got = kernels["gather_rows_backward"](gradient, pixels, (1, 2, 4, 5))
    kept = gradient[inside], pixels[inside]
    assert torch.equal(got, torch.ops.dgcl_ops.gather_rows_backward(*kept, (1, 2, 4, 5)))


def test_a_stray_pixel_has_no_second_derivative():
    """The part of the derivative that the CPU does not have, because it refuses stray pixels."""
    from dgcl_ops.ops.gather_rows import _without_strays

    pixels, rows = integers([3, -1, 0, 20, 19]), random_rows(5, 2)
    rows[[1, 3]] = math.nan
    kept = _without_strays(rows, pixels, 20)
    assert not kept[[1, 3]].any()
    assert torch.equal(kept[[0, 2, 4]], rows[[0, 2, 4]])


def test_the_gradient_of_maps_without_pixels(kernels):
    got = kernels["gather_rows_backward"](torch.ones(2, 3), integers([0, 7]), (0, 3, 4, 5))
    assert got.shape == (0, 3, 4, 5)


# ---- silhouette_sums ------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([-HUGE, -1, 0, 2, 30, 66, 70, 71, HUGE]), min_size=1, max_size=6))
def test_offsets_out_of_range_or_order_are_clamped(kernels, offsets):
    """Class c has the features from one clamped offset to the next, and none if offsets decrease."""
    features = random_rows(70, 3)
    got = kernels["silhouette_sums"](features, integers(offsets), None)
    inside = [min(max(o, 0), 70) for o in offsets]
    for c, (begin, end) in enumerate(itertools.pairwise(inside)):
        part = integers([begin, max(begin, end)])
        want = torch.ops.dgcl_ops.silhouette_sums(features, part, features)
        # The same distances within a rounding, summed in another order: 70 roundings of 2^-53.
        torch.testing.assert_close(got[:, c], want[:, 0], rtol=2.0**-46, atol=0)
