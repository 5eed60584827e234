"""Cases of the operators that count, copy and add distances."""

from collections.abc import Iterator

import torch

from .cases import NAN, Case, integers, rows, subnormal
from .cases_search import four_thousand_million

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def labels(number: int, classes: int, dtype=torch.int64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(classes, (number,), generator=generator).to(dtype)


def class_counts() -> Iterator[Case]:
    def case(name, *arguments, repaired=None, **options):
        other = None if repaired is None else lambda: repaired
        return Case("class_counts", name, lambda: arguments, repaired=other, **options)

    for number in (0, 1, 31, 255, 256, 257, 1000):
        yield case(f"{number} labels", labels(number, 21), 21, 255, thread=number == 1000)
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        yield case(f"labels of {dtype}", labels(300, 100, dtype), 100, 255)
    for classes in (1, 255, 256, 257, 8192, 8193):  # the last do not fit shared memory
        many = labels(700, classes)
        yield case(f"{classes} classes", many, classes, 3, thread=classes in (257, 8193))
    # The grid has at most 512 blocks of 256 threads: some threads take a second label.
    many = labels(512 * 256 + 300, 5, torch.uint8)
    yield case("more labels than threads", many, 5, 255, long=True)
    yield case("every second label", labels(600, 5)[::2], 5, 255)
    few = integers([0, 0, 1, 2])
    yield case("ignored inside the range", few, 3, 0)
    stray = torch.cat([labels(300, 7), integers([-1, 7, 2**40, -(2**40), 2**32])])
    yield case("stray labels", stray, 7, 255, repaired=(labels(300, 7), 7, 255))


def doubled(maps):
    """Channel last, with every channel twice."""
    return torch.cat([maps, maps], 1).contiguous(memory_format=torch.channels_last)


def gather_rows() -> Iterator[Case]:
    layouts = {
        "channel first": lambda maps: maps,
        "channel last": lambda maps: maps.contiguous(memory_format=torch.channels_last),
        "cropped": lambda maps: torch.nn.functional.pad(maps, (1, 2, 3, 1))[..., 3:-1, 1:-2],
        "one channel off": lambda maps: doubled(maps)[:, 1 : 1 + maps.shape[1]],
        # aligned pixels that are no whole number of vectors
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
    narrow = rows(2, 6, 5, 3)[..., 1:2]  # the step from pixel to pixel is that of the rows
    yield Case("gather_rows", "one column", lambda: (narrow, labels(9, 10)))
    far = four_thousand_million().as_strided((2, 4, 1, 2), (2**31, 2**29, 2, 1), 128)
    far.copy_(rows(2, 4, 1, 2))
    yield Case("gather_rows", "maps far apart", lambda: (far, labels(9, 4)))
    # Words of every size: 40 channels are whole vectors in each dtype, 37 in none, a single one is neither.
    for dtype in FLOATS:
        for layout in ("channel first", "channel last"):
            for channels in (1, 37, 40):
                maps = layouts[layout](rows(2, channels, 3, 4, dtype=dtype))
                yield stray_pixels(f"stray pixels, {layout}, {channels} of {dtype}", maps)


def stray_pixels(name: str, maps) -> Case:
    """Some pixels are outside of the maps, which are [2, dim, 3, 4]."""
    pixels = integers([3, -1, 24, 23, 2**60, 0])

    def answer():
        good = torch.ops.dgcl_ops.gather_rows(maps, pixels.clamp(0, 23))
        return [torch.where(((pixels >= 0) & (pixels < 24))[:, None], good, NAN)]

    return Case("gather_rows", name, lambda: (maps, pixels), answer=answer)


def push(classes, capacity, number, columns, projected, ring, new, counts, heads, arriving):
    return (
        rows(classes, capacity, columns, dtype=ring, seed=1),
        rows(classes, capacity, projected, dtype=ring, seed=2),
        rows(classes, capacity, seed=3),
        integers(counts),
        integers(heads),
        rows(classes, number, columns, dtype=new, seed=4),
        rows(classes, number, projected, dtype=new, seed=5),
        rows(classes, number, seed=6),
        integers(arriving),
    )


def memory_push() -> Iterator[Case]:
    def case(name, state, normalize, repaired=None, **options):
        other = None if repaired is None else lambda: (*repaired, normalize)
        arguments = lambda: (*state, normalize)
        return Case("memory_push", name, arguments, repaired=other, changes=5, **options)

    f32 = torch.float32
    for normalize in (False, True):
        how = "unit rows" if normalize else "rows"
        for capacity, number in ((1, 3), (7, 4), (8, 8), (8, 9), (9, 30)):
            state = push(
                *(3, capacity, number, 33, 4, f32, f32),
                *([capacity, capacity // 2, 0], [capacity - 1, capacity // 2, 0]),
                [number, number - 1, 0],
            )
            name = f"{number} {how} to {capacity} slots"
            yield case(name, state, normalize, thread=capacity == 9)
        for ring in FLOATS:
            for new in FLOATS:
                state = push(2, 6, 4, 37, 3, ring, new, [6, 2], [4, 2], [4, 1])
                yield case(f"{how} from {new} to {ring}", state, normalize)
    for columns in (4, 8, 128, 132):  # copied by 16 bytes
        state = push(2, 6, 4, columns, 8, f32, f32, [6, 2], [5, 2], [4, 3])
        yield case(f"{columns} columns as they are", state, False, thread=columns == 132)
    for columns, width in (
        (33, 36),
        (8, 9),
    ):  # vectors fit the rows but not the ring, or the other way round
        state = list(push(2, 6, 4, columns, 8, f32, f32, [6, 2], [5, 2], [4, 3]))
        state[5] = rows(2, 4, width, seed=4)[..., :columns]
        yield case(f"{columns} columns of {width}", state, False)
    wide = list(push(2, 6, 8, 66, 8, f32, f32, [6, 2], [5, 2], [4, 3]))
    wide[5:8] = wide[5][:, ::2, 33:], wide[6][:, ::2], wide[7][:, ::2]
    wide[0] = wide[0][..., :33].contiguous()
    yield case("views", wide, True)
    spread = list(push(2, 6, 8, 66, 8, f32, f32, [6, 2], [5, 2], [4, 3]))
    spread[5:8] = spread[5][:, ::2, ::2], spread[6][:, ::2, ::2], spread[7][:, ::2]  # copied first
    spread[0], spread[1] = spread[0][..., :33].contiguous(), spread[1][..., :4].contiguous()
    yield case("columns that are not side by side", spread, True)
    strange = push(4, 5, 3, 6, 2, f32, f32, [9, -1, 3, 5], [5, -3, 2, 4], [4, -2, 3, 2**40])
    good = (*strange[:3], integers([5, 0, 3, 5]), integers([4, 0, 2, 4]))
    good += (*strange[5:8], integers([3, 0, 3, 3]))
    yield case("numbers out of range", strange, False, repaired=good)
    odd = list(push(2, 6, 4, 5, 3, f32, f32, [0, 0], [0, 0], [4, 4]))
    odd[5] = odd[5].clone()
    odd[5][0, 0], odd[5][0, 1, 2], odd[5][1, 0] = 0, NAN, odd[5][1, 0] * 2.0**-100
    yield case("zero, NaN and tiny unit rows", odd, True)
    for dtype in FLOATS[:2]:
        small = list(push(2, 6, 4, 5, 3, dtype, dtype, [0, 0], [0, 0], [4, 4]))
        small[5] = subnormal(small[5])
        yield case(f"subnormal unit rows of {dtype}", small, True)


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
        asking = rows(20, 9, dtype=dtype, seed=1)
        some = (rows(40, 9, dtype=dtype), integers([3, 20, 37]), asking)
        yield case(f"rows of {dtype}", some)
    # With one tile of rows the grid has 1024 blocks: six of them take a second class. Most classes are empty.
    offsets = torch.arange(1031).sub(1000).clamp(min=0)
    yield case("more classes than blocks", (rows(30, 3), offsets, None), long=True)
    inside, outside = integers([0, 20, 40]), integers([-5, 20, 99])
    yield Case(
        "silhouette_sums",
        "offsets out of range",
        lambda: (rows(40, 5), outside, None),
        repaired=lambda: (rows(40, 5), inside, None),
        tolerance=1e-14,
    )


def cases() -> Iterator[Case]:
    for each in (class_counts, gather_rows, memory_push, silhouette_sums):
        yield from each()
