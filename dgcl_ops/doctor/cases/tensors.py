"""The tensors of the cases."""

import functools
import zlib
from collections.abc import Callable

import torch
from torch import Tensor

NAN, INF = float("nan"), float("inf")
F64, F32, F16, BF16 = FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
METRICS = ("cosine", "dot", "l2")
# One below, at and one above the widths of registers, warps and tiles.
COLUMNS = (1, 2, 3, 7, 8, 15, 17, 31, 33, 63, 65, 127, 255, 513, 1023, 2047, 2048)
EDGE = 32  # bytes on both sides of a guarded row

# Set by a sanitizer. poison(address, size) makes any later access to that memory an error.
poison: Callable[[int, int], None] | None = None


def rows(*shape: int, dtype=F32, seed: int = 0) -> Tensor:
    """Normally distributed numbers, the same each time."""
    generator = torch.Generator().manual_seed(seed + zlib.crc32(repr(shape).encode()))
    return torch.randn(*shape, generator=generator, dtype=F64).to(dtype)


def whole_rows(*shape: int, dtype=F32, seed: int = 0) -> Tensor:
    """Few distinct numbers, so many ties."""
    return rows(*shape, seed=seed).clamp(-1, 1).round().to(dtype)


def subnormal(t: Tensor) -> Tensor:
    """The same rows, so short that every element is a subnormal number."""
    return t * 2.0 ** (-1060 if t.dtype == F64 else -138)


def integers(values) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _cropped(maps: Tensor) -> Tensor:
    """The same values in the middle of larger maps, so that each spatial dimension needs its own stride."""
    dims = maps.dim() - 2
    return torch.nn.functional.pad(maps, (1, 2) * dims)[(..., *[slice(1, -2)] * dims)]


def _last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last_3d)


# Maps with one, three and six spatial dimensions: shapes, and functions that change the strides.
VOLUMES: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "points": ((2, 37, 41), lambda maps: maps),
    "cropped points": ((2, 37, 41), _cropped),
    "tokens": ((2, 40, 41), lambda maps: maps.mT.contiguous().mT),
    "volumes": ((2, 33, 3, 4, 5), lambda maps: maps),
    "volumes, channels last": ((2, 40, 3, 4, 5), _last),
    "cropped volumes": ((2, 33, 3, 4, 5), _cropped),
    "crops of channels last": (
        (2, 40, 3, 4, 5),
        lambda maps: _last(torch.nn.functional.pad(maps, (1, 2) * 3))[..., 1:-2, 1:-2, 1:-2],
    ),
    "volumes, first dimension last": (
        (2, 9, 3, 4, 5),
        lambda maps: maps.transpose(2, 4).contiguous().transpose(2, 4),
    ),
    "one slice": ((2, 33, 1, 4, 5), _cropped),
    "six dimensions": ((2, 7, 2, 1, 3, 2, 2, 2), _cropped),
}


def labels(number: int, classes: int, dtype=torch.int64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(classes, (number,), generator=generator).to(dtype)


def spaced(t: Tensor) -> Tensor:
    """The same values in every second row, after a column of NaN, so that no row is aligned for vector loads."""
    wide = t.new_full((*t.shape[:-2], 2 * t.shape[-2], t.shape[-1] + 3), NAN)
    view = wide[..., ::2, 1:-2]
    view.copy_(t)
    return view


def guarded(t: Tensor) -> Tensor:
    """The same values as a view. Memory between its rows must not be accessed."""
    size, columns = t.element_size(), t.shape[-1]
    edge = EDGE // size
    width = (edge + columns + 2 * edge - 1) // edge * edge
    base = torch.zeros(*t.shape[:-1], width, dtype=t.dtype)
    view = base[..., edge : edge + columns]
    view.copy_(t)
    if poison:
        for row in range(base.numel() // width):
            begin = base.data_ptr() + row * width * size
            poison(begin, EDGE)
            poison(begin + EDGE + columns * size, (width - columns) * size - EDGE)
    return view


@functools.cache
def vast_memory() -> Tensor:
    """8 GiB of address space, more than 2^32 elements. Only touched pages take memory."""
    return torch.empty(2**32 + 64, dtype=BF16)
