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
