"""Cases of finite_rows."""

from collections.abc import Iterator

import torch
from torch import Tensor

from . import Case
from .tensors import BF16, F16, F32, F64, FLOATS, INF, NAN, VOLUMES, rows, vast_memory


def last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


LAYOUTS = {
    "channel first": lambda maps: maps,
    "channel last": last,
    "cropped": lambda maps: torch.nn.functional.pad(maps, (1, 2, 3, 1))[..., 3:-1, 1:-2],
    "last and cropped": lambda maps: last(torch.nn.functional.pad(maps, (1, 2)))[..., 1:-2],
    "one channel off": lambda maps: last(torch.cat([maps, maps], 1))[:, 1 : 1 + maps.shape[1]],
    # aligned pixels that are not a whole number of vectors
    "first channels": lambda maps: last(torch.cat([maps, maps[:, :1]], 1))[:, : maps.shape[1]],
    "transposed": lambda maps: maps.mT.contiguous().mT,
}
SPECIAL = (NAN, INF, -INF)


def with_specials(maps: Tensor, number: int = 0, seed: int = 0) -> Tensor:
    """Every fifth element of a random order is replaced, or as many as stated. The others are finite."""
    maps = maps.clone()
    flat = maps.view(-1)
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(len(flat), generator=generator)[: number or len(flat) // 5]
    flat[places] = torch.tensor(SPECIAL, dtype=maps.dtype)[torch.arange(len(places)) % 3]
    return maps


def each_place(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Every channel and pixel in turn holds the only special number of its row. Other numbers are the largest."""
    maps = torch.full(shape, torch.finfo(dtype).max, dtype=dtype)
    images, dim, height, width = shape
    pixel = torch.arange(images * height * width)
    rows_of = maps.movedim(1, -1).reshape(-1, dim)
    chosen = pixel % (dim + 1)  # none if it is dim
    held = chosen < dim
    rows_of[pixel[held], chosen[held]] = torch.tensor(SPECIAL, dtype=dtype)[pixel[held] % 3]
    return rows_of.view(images, height, width, dim).movedim(-1, 1).contiguous()


def finite_rows() -> Iterator[Case]:
    def case(name, maps, other=None, confidence=None, **options):
        return Case("finite_rows", name, lambda: (maps, other, confidence), **options)

    sizes = [(1, 1, 1, 1), (2, 3, 3, 5), (1, 8, 4, 8), (2, 33, 3, 11), (3, 40, 2, 17)]
    for layout, turn in LAYOUTS.items():
        for size in sizes:
            maps = with_specials(rows(*size), max(1, size[0] * size[2] * size[3] // 3))
            thread = size[1] == 33
            yield case(f"{layout} {size}", turn(maps), thread=thread)
    for name, (size, turn) in VOLUMES.items():
        maps = turn(with_specials(rows(*size), 40))
        confidence = turn(with_specials(rows(*size), 9, 1))[:, 0]
        yield case(name, maps, None, confidence, thread=name == "cropped volumes")
    wide = torch.nn.functional.pad(with_specials(rows(1, 5, 6, 23, 40), 900), (1, 2, 0, 1, 2, 0))
    yield case("a wide crop of a volume", wide[:, :, 2:, :-1, 1:-2], parallel=True)
    for dtype in FLOATS:
        for layout, turn in LAYOUTS.items():
            # 64 channels are whole vectors in each dtype; 37 are not.
            for dim in (37, 64):
                maps = turn(each_place((2, dim, 7, 9), dtype))
                yield case(f"each place, {layout}, {dim} of {dtype}", maps)
        flat = each_place((1, 40, 1, 70), dtype)[0, :, 0]
        yield case(f"columns of {dtype}", flat.T)
        yield case(f"rows of {dtype}", flat.T.contiguous())
        yield case(f"every second row of {dtype}", flat.T.repeat_interleave(2, 0)[::2])

    maps, other = rows(2, 19, 5, 9), rows(2, 40, 5, 9, dtype=F16)
    confidence = rows(2, 5, 9, dtype=F64)
    few = (with_specials(maps, 9), with_specials(other, 9, 1), with_specials(confidence, 9, 2))
    yield case("three tensors", *few, thread=True)
    yield case("three layouts", few[0].mT.contiguous().mT, last(few[1]), few[2].mT.contiguous().mT)
    yield case("special in the first", few[0], other, confidence)
    yield case("special in the second", maps, few[1], confidence)
    yield case("special in the confidence", maps, other, few[2])
    yield case("without other maps", maps, None, few[2])
    yield case("all finite", maps, other, confidence)
    for dtype in (F32, BF16):
        yield case(f"confidence of {dtype}", maps, None, few[2].to(dtype))
    yield case("rows and a column", rows(70, 19), with_specials(rows(70, 5)), rows(70, 1)[:, 0])
    yield case("expanded", with_specials(rows(1, 19, 1, 9)).expand(2, 19, 5, 9))
    # Numbers whose bits are near those of infinity.
    near = [torch.finfo(F32).max, -torch.finfo(F32).max, 1e-45, -1e-45, 0.0, -0.0, 1.0]
    yield case("largest and smallest", torch.tensor(near)[:, None])
    quiet = torch.tensor([0x7F800001, 0x7FC00000, 0x7FFFFFFF, -1, 0x7F7FFFFF], dtype=torch.int32)
    yield case("every kind of NaN", quiet.view(F32)[:, None])
    for shape in ((0, 3, 2, 2), (2, 0, 3, 3), (2, 3, 0, 4), (0, 4), (5, 0)):
        yield case(f"of shape {shape}", rows(*shape))
    # More pixels than a tile of the CPU, and enough for several threads.
    wide = with_specials(rows(2, 5, 60, 75), 900)
    yield case("wide maps", wide, last(wide), parallel=True)

    def far_apart() -> tuple:
        maps = vast_memory().as_strided((2, 4, 1, 2), (2**31, 2**29, 2, 1), 128)
        return maps.copy_(with_specials(rows(2, 4, 1, 2, dtype=BF16), 1)), None, None

    yield Case("finite_rows", "maps far apart", far_apart, vast=True)


def cases() -> Iterator[Case]:
    yield from finite_rows()
