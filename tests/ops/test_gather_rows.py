"""gather_rows: the vectors of chosen pixels."""

import pytest
import torch
from builds import needs_extension

from dgcl_ops import reference
from dgcl_ops.doctor.cases.tensors import VOLUMES
from dgcl_ops.ops import finite_rows, gather_rows

LAYOUTS = {
    "channel_first": lambda maps: maps,
    "channel_last": lambda maps: maps.contiguous(memory_format=torch.channels_last),
    "cropped": lambda maps: torch.nn.functional.pad(maps, (1, 2, 3, 1))[..., 3:-1, 1:-2],
    "every_second_channel": lambda maps: maps.repeat_interleave(2, dim=1)[:, ::2],
}


def by_loop(maps, pixels):
    _, dim, height, width = maps.shape
    out = torch.empty(pixels.numel(), dim, dtype=maps.dtype)
    for i, p in enumerate(pixels.reshape(-1).tolist()):
        b, rest = divmod(p, height * width)
        out[i] = maps[b, :, rest // width, rest % width]
    return out.view(*pixels.shape, dim)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 5, 3, 7), (3, 33, 13, 17)])
def test_equals_a_loop(layout, dtype, size, device):
    maps = LAYOUTS[layout](torch.randn(size, dtype=torch.float64).to(dtype))
    pixels = torch.randint(size[0] * size[2] * size[3], (4, 9))  # with repetitions
    got = gather_rows(maps.to(device), pixels.to(device))
    assert torch.equal(got.cpu(), by_loop(maps, pixels))
    assert torch.equal(reference.gather_rows(maps, pixels), by_loop(maps, pixels))


@pytest.mark.parametrize(
    "size", [(2, 3, 5, 1), (2, 3, 1, 5), (1, 3, 5, 1), (2, 1, 1, 1), (1, 1, 5, 4)]
)
@pytest.mark.parametrize("stride", [0, 1, 10**9])
def test_strides_of_single_rows_and_columns_say_nothing(size, stride):
    """PyTorch calls such a view contiguous, whatever those strides are."""
    dense = torch.randn(size)
    strides = [stride if n == 1 else s for n, s in zip(size, dense.stride(), strict=True)]
    maps = dense.as_strided(size, strides)
    pixels = torch.arange(size[0] * size[2] * size[3])
    assert torch.equal(gather_rows(maps, pixels), by_loop(dense, pixels))
    for a, b in ((2, 3), (0, 2), (1, 3)):
        turned = dense.transpose(a, b)
        pixels = torch.arange(turned.shape[0] * turned.shape[2] * turned.shape[3])
        assert torch.equal(gather_rows(turned, pixels), by_loop(turned, pixels))


@pytest.mark.parametrize("name", VOLUMES)
def test_any_number_of_dimensions(name, device):
    """The maps as 2-D maps, with the spatial dimensions joined by a copy, give the same rows."""
    size, turn = VOLUMES[name]
    maps = torch.randn(size, dtype=torch.bfloat16)
    pixels = torch.randperm(maps[:, 0].numel()).view(2, -1)
    expected = by_loop(maps.flatten(2).unsqueeze(2), pixels)
    assert torch.equal(gather_rows(turn(maps).to(device), pixels.to(device)).cpu(), expected)
    assert torch.equal(reference.gather_rows(turn(maps), pixels), expected)
    upstream = torch.randn(expected.shape, dtype=torch.bfloat16, device=device)
    given = turn(maps).to(device).requires_grad_()
    (gradient,) = torch.autograd.grad(gather_rows(given, pixels.to(device)), given, upstream)
    flat = gradient.cpu().flatten(2).movedim(1, -1).reshape(-1, size[1])
    assert torch.equal(flat[pixels], upstream.cpu())


def copies(function) -> bool:
    with torch.profiler.profile() as profile:
        function()
    return any(event.key in ("aten::clone", "aten::copy_") for event in profile.key_averages())


@needs_extension  # plain PyTorch may copy
def test_maps_are_read_in_place():
    laid_out = [turn(torch.randn(size)) for size, turn in VOLUMES.values()]

    def read_all():
        for maps in laid_out:
            gather_rows(maps, torch.tensor([0]))
            finite_rows(maps, None, maps[:, 0])

    assert not copies(read_all)
    assert copies(laid_out[-1].contiguous)  # a crop


def test_no_pixels():
    assert gather_rows(torch.randn(2, 3, 4, 5), torch.empty(0, dtype=torch.int64)).shape == (0, 3)
    assert gather_rows(torch.randn(0, 3, 4, 5), torch.empty(0, dtype=torch.int64)).shape == (0, 3)


def test_gradient_adds_up_where_a_pixel_is_chosen_twice():
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    pixels = torch.tensor([[0, 39, 39], [7, 0, 21]])
    assert torch.autograd.gradcheck(lambda m: gather_rows(m, pixels), maps)
    upstream = torch.randn(2, 3, 3, dtype=torch.float64)
    (ours,) = torch.autograd.grad(gather_rows(maps, pixels), maps, upstream)
    (theirs,) = torch.autograd.grad(reference.gather_rows(maps, pixels), maps, upstream)
    assert torch.equal(ours, theirs)


def test_opcheck():
    maps = torch.randn(2, 3, 4, 5, requires_grad=True)
    torch.library.opcheck(torch.ops.dgcl_ops.gather_rows, (maps, torch.tensor([0, 39, 7, 7])))


def test_argument_that_is_no_tensor():
    with pytest.raises(TypeError, match=r"indices must be a torch\.Tensor, got list"):
        gather_rows(torch.zeros(1, 3, 4, 5), [0])
