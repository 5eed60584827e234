"""Cases of the operators that read a batch: which pixels are finite, and the first of each class."""

from collections.abc import Iterator

import torch
from torch import Tensor

from . import Case
from .tensors import BF16, F16, F32, F64, FLOATS, INF, NAN, integers, labels, rows, vast_memory


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


def leading_rows() -> Iterator[Case]:
    def case(name, *arguments, repaired=None, **options):
        other = None if repaired is None else lambda: repaired
        return Case("leading_rows", name, lambda: arguments, repaired=other, **options)

    def segments(number: int, classes: int, unused: int = 3) -> tuple[Tensor, Tensor]:
        """Pixels and counts. Some pixels at the end belong to no class."""
        pixels = torch.randperm(number, generator=torch.Generator().manual_seed(number))
        of_class = labels(max(0, number - unused), classes, seed=classes)
        return pixels, torch.bincount(of_class, minlength=classes)

    # Fewer classes than the threads of a block, as many, more; and more than fit into shared memory.
    for classes in (1, 2, 21, 255, 256, 257, 1024, 1025, 3000):
        for number in (40, 600):
            pixels, counts = segments(number, classes)
            limits = labels(classes, 2 + 2 * number // classes, seed=1)
            thread = (classes, number) in {(21, 600), (257, 40), (1025, 40)}
            title = f"{classes} classes, {number} pixels"
            yield case(title, pixels, counts, limits, number, thread=thread)
            taken = int(torch.minimum(counts, limits).sum())
            yield case(f"{title}, exact size", pixels, counts, limits, taken)
    pixels, counts = segments(300, 5)
    for name, limits in {
        "no limits": [300] * 5,
        "vast limits": [2**62] * 5,
        "nothing": [0] * 5,
        "one class": [0, 0, 9, 0, 0],
        "all but the first": [0, 300, 300, 300, 300],
    }.items():
        yield case(name, pixels, counts, integers(limits), 300)
    twice = torch.stack([pixels, -pixels], 1)[:, 0], torch.stack([counts, -counts], 1)[:, 0]
    yield case("every second number", *twice, torch.stack([counts, counts], 1)[:, 1] - 1, 300)
    yield case("empty classes", pixels, integers([0, 7, 0, 0, 9]), integers([5] * 5), 100)
    yield case("no pixels", integers([]), integers([0, 0]), integers([3, 4]), 0)
    yield case("no classes", pixels, integers([]), integers([]), 20)
    yield case("no rows", pixels, counts, integers([0] * 5), 0)

    lengths, limits = integers([100, 100, 100]), integers([50, 60, 70])
    good = pixels, lengths, limits, 300
    yield case("limits below 0", pixels, lengths, integers([50, -(2**40), 70]), 300,
               repaired=(pixels, lengths, integers([50, 0, 70]), 300))  # fmt: skip
    yield case("counts below 0", pixels, integers([100, -1, 100]), limits, 300,
               repaired=(pixels, integers([100, 0, 100]), limits, 300))  # fmt: skip
    for name, stray in {
        "counts beyond the pixels": (pixels, integers([200, 2**62, 100]), limits, 300),
        "too many pixels": (pixels, lengths * 2, limits, 300),
        "as many as there are": good,
    }.items():
        yield case(name, *stray, anything=name != "as many as there are")

    def truncated() -> list[Tensor]:
        taken, classes, offsets = torch.ops.dgcl_ops.leading_rows(*good)
        return [taken[:90], classes[:90], offsets.clamp(max=90)]

    small = (*good[:3], 90)
    yield Case("leading_rows", "size too small", lambda: small, answer=truncated)
    many = segments(20_000, 21)
    yield case("many pixels", *many, integers([700] * 21), 14_700, long=True)


def cases() -> Iterator[Case]:
    yield from finite_rows()
    yield from leading_rows()
