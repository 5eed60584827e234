"""gather_rows_backward: each pixel gets the sum of the rows that chose it, in the order of the rows."""

import pytest
import torch
from builds import needs_extension
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_close, integers, random_rows
from torch.utils._python_dispatch import TorchDispatchMode

from dgcl_ops.ops import gather_rows
from dgcl_ops.reference import backward as reference_backward

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SIZES = [(1, 1, 1, 1), (2, 5, 3, 7), (3, 33, 13, 17), (1, 257, 4, 4)]


def compiled(*arguments):
    return torch.ops.dgcl_ops.gather_rows_backward(*arguments)


def emulated(*arguments):
    from kernels.emulator import replace

    return replace.operators()["gather_rows_backward"](*arguments)


on_emulator = pytest.param(emulated, marks=pytest.mark.kernels)
each_implementation = pytest.mark.parametrize(
    "scatter", [compiled, reference_backward.gather_rows_backward, on_emulator]
)


def by_loop(dL_drows, indices, shape, dtype):
    """Adds row after row in `dtype`, starting with the first row of a pixel, and rounds once."""
    images, dim, height, width = shape
    sums = {}
    for row, pixel in zip(
        dL_drows.reshape(-1, dim).to(dtype), indices.flatten().tolist(), strict=True
    ):
        sums[pixel] = sums[pixel] + row if pixel in sums else row
    out = torch.zeros(images * height * width, dim, dtype=dtype)
    for pixel, row in sums.items():
        out[pixel] = row
    return out.view(images, height, width, dim).permute(0, 3, 1, 2).to(dL_drows.dtype)


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def some_pixels(count, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(shape[0] * shape[2] * shape[3], (count,), generator=generator)


@each_implementation
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SIZES)
def test_has_the_bits_of_a_loop_in_the_order_of_the_rows(scatter, dtype, shape):
    for count in (1, 36, 200):
        rows = random_rows(count, shape[1], dtype=dtype, seed=count)
        for indices in (some_pixels(count, shape), torch.zeros(count, dtype=torch.int64)):
            got = scatter(rows, indices, shape)
            assert torch.equal(got, by_loop(rows, indices, shape, wide(dtype)))
            assert got.is_contiguous()
            exact = by_loop(rows.double(), indices, shape, torch.float64)
            size = by_loop(rows.double().abs(), indices, shape, torch.float64).max()
            # sums of at most 200 terms, each rounded to the compute type
            assert_close(got, exact, 4 * float(size))


def test_on_each_device(device):
    shape = (2, 40, 9, 11)
    rows, indices = random_rows(5, 50, 40, seed=1), some_pixels(250, shape).view(5, 50)
    got = compiled(rows.to(device), indices.to(device), shape)
    assert torch.equal(got.cpu(), by_loop(rows, indices, shape, torch.float32))


@needs_extension
@pytest.mark.parametrize("scatter", [compiled, on_emulator])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_single_row_keeps_its_bits(scatter, dtype):
    """All numbers of 16 bits: -0, subnormal numbers, infinities, NaN."""
    words = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(256, 256)
    got = scatter(words.view(dtype), torch.arange(256).flip(0), (1, 256, 16, 16))
    assert torch.equal(got.view(torch.int16).view(256, 256).T.flip(0), words)


@each_implementation
def test_sums_are_rounded_once(scatter):
    """bfloat16 has 8 bits: 256 + 1 is 256, but 256 + 1 + 1 is 258."""
    rows = torch.tensor([[256.0], [1.0], [1.0]]).bfloat16()
    assert scatter(rows, integers([2, 2, 2]), (1, 1, 1, 3)).tolist() == [[[[0.0, 0.0, 258.0]]]]


@each_implementation
def test_an_order_that_float32_sees(scatter):
    rows = torch.tensor([[1e8], [1.0], [-1e8]])
    for order, total in (([0, 1, 2], 0.0), ([0, 2, 1], 1.0)):
        assert scatter(rows[order], integers([0, 0, 0]), (1, 1, 1, 1)).item() == total


@each_implementation
def test_layouts(scatter):
    shape = (2, 6, 4, 5)
    indices = some_pixels(21, shape).view(7, 3)
    for rows in (
        random_rows(6).expand(7, 3, 6),
        random_rows(1).expand(7, 3, 6),
        random_rows(6, 3, 7).permute(2, 1, 0),
        random_rows(7, 3, 12)[..., ::2],
    ):
        for turned in (indices, indices.mT.contiguous().mT):
            got = scatter(rows, turned, shape)
            assert torch.equal(got, by_loop(rows.contiguous(), indices, shape, torch.float32))


@each_implementation
@pytest.mark.parametrize(
    ("count", "shape"), [(0, (2, 3, 4, 5)), (3, (2, 0, 4, 5)), (0, (0, 3, 4, 5)), (0, (2, 3, 4, 0))]
)
def test_nothing_to_add(scatter, count, shape):
    got = scatter(torch.ones(count, shape[1]), integers([7] * count), shape)
    assert got.shape == shape
    assert not got.any()


def test_maps_of_several_tiles():
    """More pixels than a tile of the CPU kernel has, and no multiple of them."""
    shape = (2, 17, 211, 317)
    rows, indices = random_rows(900, 17), some_pixels(900, shape)
    indices[:4] = integers([0, 33443, 33444, 2 * 211 * 317 - 1])
    assert torch.equal(compiled(rows, indices, shape), by_loop(rows, indices, shape, torch.float32))


def test_threads_change_no_bit():
    shape = (3, 40, 61, 67)
    rows, indices = random_rows(2000, 40), some_pixels(2000, (1, 1, 10, 10))
    before = torch.get_num_threads()
    try:
        results = []
        for number in (1, 3):
            torch.set_num_threads(number)
            results.append(compiled(rows, indices, shape))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


# ---- relations -----------------------------------------------------------------------------------------

SHAPE = (2, 3, 4, 5)


@each_implementation
@given(st.permutations(range(12)), st.permutations(range(40)))
def test_the_order_of_distinct_rows_does_not_matter(scatter, order, pixels):
    rows, indices = random_rows(12, 3), integers(pixels[:12])
    got = scatter(rows[list(order)], indices[list(order)], SHAPE)
    assert torch.equal(got, scatter(rows, indices, SHAPE))


@each_implementation
@given(st.lists(st.integers(0, 39), max_size=50))
def test_a_batch_is_its_images(scatter, pixels):
    rows, indices = random_rows(len(pixels), 3), integers(pixels)
    parts = []
    for image in range(2):
        own = indices // 20 == image
        parts.append(scatter(rows[own], indices[own] % 20, (1, *SHAPE[1:])))
    assert torch.equal(scatter(rows, indices, SHAPE), torch.cat(parts))


@each_implementation
@given(st.lists(st.integers(0, 9), min_size=1, max_size=50), st.integers(0, 50), st.integers(0, 39))
def test_a_row_of_zeros_changes_nothing(scatter, pixels, place, pixel):
    rows, indices = random_rows(len(pixels), 3), integers(pixels)
    more = torch.cat([rows[:place], torch.zeros(1, 3), rows[place:]])
    among = torch.cat([indices[:place], integers([pixel]), indices[place:]])
    assert torch.equal(scatter(more, among, SHAPE), scatter(rows, indices, SHAPE))


# ---- derivatives ---------------------------------------------------------------------------------------


def test_second_derivatives():
    pixels = integers([[0, 39, 39], [7, 0, 21]])
    rows = random_rows(2, 3, 3, dtype=torch.float64).requires_grad_()
    maps = random_rows(*SHAPE, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: compiled(g, pixels, SHAPE), rows)
    assert torch.autograd.gradgradcheck(lambda g: compiled(g, pixels, SHAPE).sin(), rows)
    assert torch.autograd.gradgradcheck(lambda m: gather_rows(m, pixels).sin(), maps)


def test_a_third_derivative():
    """d^3 (x^4) = 24 x for each time that a pixel is chosen."""
    maps = random_rows(*SHAPE, dtype=torch.float64).requires_grad_()
    derivative = (gather_rows(maps, integers([5, 5, 8])) ** 4).sum()
    for _ in range(3):
        (derivative,) = torch.autograd.grad(derivative.sum(), maps, create_graph=True)
    times = torch.zeros(2, 20, dtype=torch.float64)
    times[0, 5], times[0, 8] = 2, 1
    torch.testing.assert_close(derivative, 24 * maps * times.view(2, 1, 4, 5))


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@needs_extension
def test_the_gradient_is_one_call():
    """No sort, no copy of the maps."""
    maps = random_rows(*SHAPE).requires_grad_()
    rows = gather_rows(maps, integers([3, 3, 5]))
    with Calls() as calls:
        torch.autograd.grad(rows, maps, torch.ones_like(rows))
    ours = [name for name in calls.names if "ones_like" not in name]
    assert [name for name in ours if name != "aten.detach.default"] == [
        "dgcl_ops.gather_rows_backward.default"
    ]


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_gradients_equal_eager_ones(dynamic):
    torch._dynamo.reset()

    def step(maps, indices):
        return (gather_rows(maps * 2, indices) ** 2).sum()

    one_graph = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for images in (2, 3):
        maps, indices = random_rows(images, 3, 4, 5), integers([0, 39, 7, 7])
        both = [
            torch.autograd.grad(run(leaf, indices), leaf)[0]
            for run in (step, one_graph)
            for leaf in [maps.clone().requires_grad_()]
        ]
        assert torch.equal(*both)
        assert both[0].any()


# ---- vmap ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (1, 0)])
def test_vmap_equals_the_loop(in_dims):
    rows, indices = random_rows(4, 6, 3), some_pixels(24, SHAPE).view(4, 6)
    expected = torch.stack(
        [
            compiled(
                rows[i if in_dims[0] == 0 else 0], indices[0 if in_dims[1] is None else i], SHAPE
            )
            for i in range(4)
        ]
    )
    rows = rows[0] if in_dims[0] is None else rows
    indices = indices[0] if in_dims[1] is None else indices
    if in_dims[0] == 1:
        rows, in_dims = rows.movedim(0, 1), (1, 0)
        expected = torch.stack([compiled(rows[:, i], indices[i], SHAPE) for i in range(4)])
    got = torch.vmap(lambda g, p: compiled(g, p, SHAPE), in_dims)(rows, indices)
    assert torch.equal(got, expected)


def test_vmap_keeps_pixels_inside_their_own_maps():
    indices = integers([[0, 1], [40, 2]])  # 40: the first pixel of the next maps
    with pytest.raises(
        RuntimeError, match=r"gather_rows_backward: indices must lie in \[0, 80\), got -1"
    ):
        torch.vmap(lambda g, p: compiled(g, p, SHAPE))(random_rows(2, 2, 3), indices)


def test_vmap_is_one_call():
    rows, indices = random_rows(4, 6, 3), some_pixels(24, SHAPE).view(4, 6)
    with torch.profiler.profile() as profile:
        torch.vmap(lambda g, p: compiled(g, p, SHAPE))(rows, indices)
    names = [event.name for event in profile.events()]
    # the mapped operator, and the one it becomes
    assert names.count("dgcl_ops::gather_rows_backward") == 2


def test_a_batch_of_gradients():
    """`is_grads_batched` uses PyTorch's older vmap, which loops and warns."""
    maps = random_rows(*SHAPE).requires_grad_()
    rows = gather_rows(maps, integers([3, 3, 5]))
    directions = random_rows(4, 3, 3)
    want = [torch.autograd.grad(rows, maps, d, retain_graph=True)[0] for d in directions]
    (got,) = torch.autograd.grad(rows, maps, directions, is_grads_batched=True)
    assert torch.equal(got, torch.stack(want))
