"""Cases of the operators that gather rows and add distances."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from . import Case
from .tensors import (
    BF16,
    COLUMNS,
    F16,
    F32,
    FLOATS,
    INF,
    NAN,
    VOLUMES,
    guarded,
    integers,
    labels,
    rows,
    vast_memory,
)


def doubled(maps):
    """Channels last, with two copies of every channel."""
    return torch.cat([maps, maps], 1).contiguous(memory_format=torch.channels_last)


def gather_rows() -> Iterator[Case]:
    layouts = {
        "channel first": lambda maps: maps,
        "channel last": lambda maps: maps.contiguous(memory_format=torch.channels_last),
        "cropped": lambda maps: torch.nn.functional.pad(maps, (1, 2, 3, 1))[..., 3:-1, 1:-2],
        "one channel off": lambda maps: doubled(maps)[:, 1 : 1 + maps.shape[1]],
        # aligned pixels that are not a whole number of vectors
        "first channels": lambda maps: doubled(maps)[:, : maps.shape[1]],
    }
    sizes = [(1, 1, 1, 1), (2, 6, 2, 3), (2, 31, 3, 7), (2, 32, 4, 9), (1, 33, 5, 5), (3, 64, 2, 3)]
    for layout, turn in layouts.items():
        for size in sizes:
            for number in (1, 31, 33, 70):
                pixels = labels(number, size[0] * size[2] * size[3])
                yield Case(
                    "gather_rows",
                    f"{layout} {size} {number} pixels",
                    lambda turn=turn, size=size, pixels=pixels: (turn(rows(*size)), pixels),
                    thread=number == 70 and size[1] == 33,
                )
    for dtype in FLOATS:
        for layout in ("channel first", "channel last"):
            yield Case(
                "gather_rows",
                f"{layout} of {dtype}",
                lambda layout=layout, dtype=dtype: (
                    layouts[layout](rows(2, 40, 3, 5, dtype=dtype)),
                    labels(50, 30).view(5, 10),
                ),
            )
    # whole vectors of channels, in pixels that are not aligned
    odd = layouts["channel last"](rows(2, 41, 3, 5))[:, :40]
    yield Case("gather_rows", "all channels but the last", lambda: (odd, labels(50, 30)))
    for name, (size, turn) in VOLUMES.items():
        maps = turn(rows(*size))
        pixels = labels(70, maps[:, 0].numel())
        yield Case("gather_rows", name, lambda maps=maps, pixels=pixels: (maps, pixels))
    narrow = rows(2, 6, 5, 3)[..., 1:2]  # one column: the pixel stride is the row stride
    yield Case("gather_rows", "one column", lambda: (narrow, labels(9, 10)))

    def far_apart() -> tuple:
        maps = vast_memory().as_strided((2, 4, 1, 2), (2**31, 2**29, 2, 1), 128)
        return maps.copy_(rows(2, 4, 1, 2)), labels(9, 4)

    yield Case("gather_rows", "maps far apart", far_apart, vast=True)
    # Words of every size: 40 channels are whole vectors in each dtype, 37 are not, and 1 is less than a vector.
    for dtype in FLOATS:
        for layout in ("channel first", "channel last"):
            for channels in (1, 37, 40):
                maps = layouts[layout](rows(2, channels, 3, 4, dtype=dtype))
                yield stray_pixels(f"stray pixels, {layout}, {channels} of {dtype}", maps)

    maps = rows(2, 19, 23, 31)
    whole = torch.randperm(2 * 23 * 31, generator=torch.Generator().manual_seed(0))
    yield Case("gather_rows", "every pixel", lambda: (maps, whole), parallel=True)
    yield Case("gather_rows", "no pixels", lambda: (maps, integers([])))
    for stray in (2 * 23 * 31, -1, 2**62):
        far = integers([0, stray])
        yield Case("gather_rows", f"pixel {stray}", lambda far=far: (maps, far), anything=True)
    for dtype in (F32, F16):
        for dim in (37, 40, 1):  # 40: whole 16-byte words
            some = rows(3, dim, 13, 11, dtype=dtype), labels(250, 3 * 13 * 11).view(5, 50)
            yield Case("gather_rows", f"{dim} channels of {dtype}", lambda some=some: some)
            last = layouts["channel last"](some[0]), some[1]
            yield Case("gather_rows", f"{dim} last channels of {dtype}", lambda last=last: last)


def stray_pixels(name: str, maps) -> Case:
    """Some pixels lie outside the maps, which are [2, dim, 3, 4]."""
    pixels = integers([3, -1, 24, 23, 2**60, 0])

    def answer():
        good = torch.ops.dgcl_ops.gather_rows(maps, pixels.clamp(0, 23))
        return [torch.where(((pixels >= 0) & (pixels < 24))[:, None], good, NAN)]

    return Case("gather_rows", name, lambda: (maps, pixels), answer=answer)


def chosen_pixels(number: int, pixels: int) -> dict[str, Tensor]:
    """Indices of so many rows: none, some or all pixels are repeated."""
    generator = torch.Generator().manual_seed(number)
    some = torch.randperm(pixels, generator=generator)[:number]
    half = some[: (number + 1) // 2]
    return {
        "distinct": some,
        "at random": labels(len(some), pixels, seed=number),
        "in adjacent pairs": half.repeat_interleave(2)[: len(some)],
        "in pairs far apart": torch.cat([half, half])[: len(some)],
        "all in one pixel": torch.full_like(some, pixels - 1),
    }


def gather_rows_backward() -> Iterator[Case]:
    op = "gather_rows_backward"
    sizes = [(1, 1, 1, 1), (2, 7, 5, 9), (1, 32, 8, 8), (3, 256, 4, 6), (1, 257, 6, 11)]
    for size in ((2, 33, 41), (2, 33, 3, 4, 5), (2, 7, 2, 1, 3, 2, 2, 2)):
        some = rows(30, size[1]), labels(30, math.prod((size[0], *size[2:]))), size
        yield Case(op, f"of shape {size}", lambda some=some: some)
    for size in sizes:
        for number in (1, 31, 33, 70):
            pixels = size[0] * size[2] * size[3]
            if number > pixels:
                continue
            for name, indices in chosen_pixels(number, pixels).items():
                some = rows(number, size[1]), indices, size
                title = f"{size}, {number} rows {name}"
                thread = size[1] == 7 and number == 70
                yield Case(op, title, lambda some=some: some, thread=thread)
    for dtype in FLOATS:
        for dim in (1, 37, 256):
            for name, indices in chosen_pixels(66, 2 * 5 * 9).items():
                some = rows(66, dim, dtype=dtype), indices, (2, dim, 5, 9)
                yield Case(op, f"66 rows {name}, {dim} of {dtype}", lambda some=some: some)
        yield stray_gradients(f"stray pixels, {dtype}", rows(70, 33, dtype=dtype))

    indices, size = labels(60, 2 * 5 * 9).view(4, 15), (2, 40, 5, 9)
    layouts = {
        "expanded": rows(40).expand(4, 15, 40),
        "one number": rows(1)[0].expand(4, 15, 40),
        "transposed": rows(15, 40, 4).permute(2, 0, 1),
        "every second channel": rows(4, 15, 80)[..., ::2],
        "guarded": guarded(rows(4, 15, 40)),
    }
    for name, some in layouts.items():
        yield Case(op, f"rows {name}", lambda some=some: (some, indices, size))
    turned = indices.mT.contiguous().mT
    yield Case(op, "transposed indices", lambda: (rows(4, 15, 40), turned, size))
    special = torch.tensor([0.0, -0.0, NAN, INF, -INF, 1e-45, 3e38, 3e38, -0.0])
    special = special[:, None].expand(9, 40)
    places = integers([3, 3, 1, 5, 5, 7, 9, 9, 0])
    yield Case(op, "zeros, NaN and infinities", lambda: (special, places, size), float32_only=True)
    yield Case(op, "an index of no dimension", lambda: (rows(40), torch.tensor(7), size))
    for number, shape in (
        (0, (2, 7, 5, 9)),
        (3, (2, 0, 5, 9)),
        (0, (0, 7, 5, 9)),
        (0, (2, 7, 0, 9)),
    ):
        none = rows(number, shape[1]), integers([4] * number), shape
        yield Case(op, f"{number} rows of {shape}", lambda none=none: none)
    for far in (90, -1, 2**62):
        some = rows(2, 7), integers([0, far]), (2, 7, 5, 9)
        yield Case(op, f"pixel {far}", lambda some=some: some, anything=True)
    # More pixels than a tile of the CPU, and enough for several threads.
    wide = rows(400, 19), labels(400, 2 * 150 * 230), (2, 19, 150, 230)
    yield Case(op, "wide maps", lambda: wide, parallel=True)


def stray_gradients(name: str, dL_drows: Tensor) -> Case:
    """Every third pixel lies outside the maps. The others repeat."""
    number, dim = dL_drows.shape
    pixels = labels(number, 10)
    pixels[::3] = integers([-1, 24, 2**60, -(2**62), 2**32])[labels(len(pixels[::3]), 5)]

    def answer():
        inside = (pixels >= 0) & (pixels < 24)
        good = dL_drows[inside], pixels[inside], (2, dim, 3, 4)
        return [torch.ops.dgcl_ops.gather_rows_backward(*good)]

    given = dL_drows, pixels, (2, dim, 3, 4)
    return Case("gather_rows_backward", name, lambda: given, answer=answer)


def silhouette_sums() -> Iterator[Case]:
    def case(name, arguments, **options):
        # The CPU adds the distances in another order, in float64.
        return Case("silhouette_sums", name, lambda: arguments, tolerance=1e-14, **options)

    for number in (1, 63, 64, 65, 130):
        offsets = integers([0, number // 3, number // 3, number])  # one class is empty
        some = rows(number, 17)
        yield case(f"{number} rows", (some, offsets, None), thread=number == 65)
    for columns in (1, 15, 16, 17, 33):
        some = (rows(70, columns), integers([0, 1, 66, 70]), None)
        yield case(f"{columns} columns", some, thread=columns == 33)
    for dtype in FLOATS:
        others = rows(20, 9, dtype=dtype, seed=1)
        some = (rows(40, 9, dtype=dtype), integers([3, 20, 37]), others)
        yield case(f"rows of {dtype}", some)
    # With one tile of rows the grid has 1024 blocks, so six of them take a second class. Most classes are empty.
    offsets = torch.arange(1031).sub(1000).clamp(min=0)
    yield case("more classes than blocks", (rows(30, 3), offsets, None), long=True)
    for columns in COLUMNS:
        some = guarded(rows(21, columns)), integers([0, 4, 21]), guarded(rows(9, columns, seed=1))
        yield case(f"{columns} columns, other rows", some)
    for dtype in FLOATS:
        some = guarded(rows(300, 21, dtype=dtype)), integers([2, 90, 90, 280]), None
        yield case(f"300 rows of {dtype}", some, parallel=dtype == F16)
    many = rows(400, 6), integers([0, 100, 300]), rows(300, 6, seed=1)
    yield case("many other rows", many, parallel=True)
    for number, columns in ((0, 4), (4, 0), (0, 0)):
        some = rows(number, columns), integers([0, number]), None
        yield case(f"{number} x {columns}", some, anything=True)
    offsets = integers([0, 130, 130, 131, 290])
    for dtype in (F32, BF16):
        features = rows(300, 33, dtype=dtype, seed=1)
        for name, other in (("all rows", None), ("70 other rows", rows(70, 33, seed=2))):
            yield case(f"{name} of {dtype}", (features, offsets, other))
    inside, outside = integers([0, 20, 40]), integers([-5, 20, 99])
    yield Case(
        "silhouette_sums",
        "offsets out of range",
        lambda: (rows(40, 5), outside, None),
        repaired=lambda: (rows(40, 5), inside, None),
        tolerance=1e-14,
    )


def cases() -> Iterator[Case]:
    for each in (gather_rows, gather_rows_backward, silhouette_sums):
        yield from each()
