"""finite_rows against torch.isfinite."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from dgcl_ops import ops

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = {
    "channel first": lambda maps: maps,
    "channel last": lambda maps: maps.contiguous(memory_format=torch.channels_last),
    "cropped": lambda maps: torch.nn.functional.pad(maps, (1, 2, 3, 1))[..., 3:-1, 1:-2],
    "transposed": lambda maps: maps.mT.contiguous().mT,
    "reversed batch": lambda maps: maps.transpose(0, 1).contiguous().transpose(0, 1),
}


def maps_of(*shape, dtype=torch.float32, seed=0, special=9, device="cpu"):
    """Random numbers, of which some are NaN or infinite."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(shape, generator=generator).to(dtype)
    if maps.numel():
        places = torch.randint(maps.numel(), (special,), generator=generator)
        values = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=dtype)
        maps.view(-1)[places] = values[torch.arange(special) % 3]
    return maps.to(device)


def expected(maps, *others):
    finite = torch.isfinite(maps).all(1)
    for other in others:
        finite = finite & (
            torch.isfinite(other).all(1) if other.dim() == maps.dim() else torch.isfinite(other)
        )
    return finite.reshape(-1)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (2, 16, 3, 11), (1, 33, 8, 8)])
def test_maps(implementation, device, dtype, layout, shape):
    maps = LAYOUTS[layout](maps_of(*shape, dtype=dtype, device=device))
    finite = implementation.finite_rows(maps)
    assert finite.dtype == torch.bool
    assert finite.device == maps.device
    assert torch.equal(finite, expected(maps))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_three_tensors(implementation, device, layout):
    maps = maps_of(2, 5, 6, 7, device=device)
    other = LAYOUTS[layout](maps_of(2, 24, 6, 7, dtype=torch.float16, seed=1, device=device))
    confidence = maps_of(2, 6, 7, dtype=torch.float64, seed=2, device=device)
    assert torch.equal(implementation.finite_rows(maps, other), expected(maps, other))
    assert torch.equal(
        implementation.finite_rows(maps, other, confidence), expected(maps, other, confidence)
    )
    assert torch.equal(
        implementation.finite_rows(maps, None, confidence), expected(maps, confidence)
    )


@pytest.mark.parametrize("shape", [(1, 1), (70, 5), (257, 32), (0, 3), (4, 0)])
def test_rows(implementation, device, shape):
    maps = maps_of(*shape, device=device)
    other = maps_of(shape[0], 3, seed=1, device=device)
    assert torch.equal(implementation.finite_rows(maps, other), expected(maps, other))
    turned = maps.t().contiguous().t()
    assert torch.equal(implementation.finite_rows(turned), expected(maps))


@pytest.mark.parametrize("dtype", FLOATS)
def test_numbers_next_to_infinity(implementation, device, dtype):
    kind = torch.finfo(dtype)
    numbers = [kind.max, kind.min, kind.tiny, kind.smallest_normal / 2, 0.0, -0.0]
    numbers += [torch.inf, -torch.inf, torch.nan, -torch.nan]
    maps = torch.tensor(numbers, dtype=dtype, device=device)[:, None]
    assert implementation.finite_rows(maps).tolist() == [True] * 6 + [False] * 4


def test_every_nan_of_16_bits(implementation, device):
    words = torch.arange(2**16, device=device).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        maps = words.view(dtype)[:, None]
        assert torch.equal(implementation.finite_rows(maps), expected(maps))


@given(place=st.integers(0, 2 * 9 * 20 - 1), layout=st.sampled_from(list(LAYOUTS)))
def test_one_number_marks_one_pixel(place, layout):
    maps = torch.zeros(2, 9, 4, 5)
    maps.view(-1)[place] = torch.nan
    pixel = place // 180 * 20 + place % 20
    assert (~ops.finite_rows(LAYOUTS[layout](maps))).nonzero().tolist() == [[pixel]]


def test_a_map_that_requires_a_gradient():
    maps = maps_of(2, 3, 4, 5).requires_grad_()
    finite = ops.finite_rows(maps)
    assert not finite.requires_grad
    assert torch.equal(finite, expected(maps))


def test_errors():
    with pytest.raises(TypeError, match=r"^finite_rows: maps must be a torch\.Tensor, got list"):
        ops.finite_rows([1.0])
    with pytest.raises(TypeError, match=r"^finite_rows: confidence must be a torch\.Tensor, got"):
        ops.finite_rows(torch.zeros(2, 3), None, [1.0, 2.0])
