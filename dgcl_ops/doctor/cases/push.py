"""Cases of memory_push."""

from collections.abc import Iterator

import torch

from . import Case
from .tensors import BF16, F32, FLOATS, NAN, guarded, integers, rows, subnormal


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


def case(name: str, state, normalize: bool, repaired=None, **options) -> Case:
    other = None if repaired is None else lambda: (*repaired, normalize)
    arguments = lambda: (*state, normalize)
    return Case("memory_push", name, arguments, repaired=other, changes=5, **options)


def cases() -> Iterator[Case]:
    for normalize in (False, True):
        how = "unit rows" if normalize else "rows"
        for capacity, number in ((1, 3), (7, 4), (8, 8), (8, 9), (9, 30)):
            state = push(
                *(3, capacity, number, 33, 4, F32, F32),
                *([capacity, capacity // 2, 0], [capacity - 1, capacity // 2, 0]),
                [number, number - 1, 0],
            )
            name = f"{number} {how} to {capacity} slots"
            yield case(name, state, normalize, thread=capacity == 9)
        for ring in FLOATS:
            for new in FLOATS:
                state = push(2, 6, 4, 37, 3, ring, new, [6, 2], [4, 2], [4, 1])
                yield case(f"{how} from {new} to {ring}", state, normalize)
    for columns in (4, 8, 128, 132):  # copied 16 bytes at a time
        state = push(2, 6, 4, columns, 8, F32, F32, [6, 2], [5, 2], [4, 3])
        yield case(f"{columns} columns as they are", state, False, thread=columns == 132)
    for columns, width in (
        (33, 36),
        (8, 9),
    ):  # vectors fit the rows but not the ring, or the other way round
        state = list(push(2, 6, 4, columns, 8, F32, F32, [6, 2], [5, 2], [4, 3]))
        state[5] = rows(2, 4, width, seed=4)[..., :columns]
        yield case(f"{columns} columns of {width}", state, False)
    wide = list(push(2, 6, 8, 66, 8, F32, F32, [6, 2], [5, 2], [4, 3]))
    wide[5:8] = wide[5][:, ::2, 33:], wide[6][:, ::2], wide[7][:, ::2]
    wide[0] = wide[0][..., :33].contiguous()
    yield case("views", wide, True)
    spread = list(push(2, 6, 8, 66, 8, F32, F32, [6, 2], [5, 2], [4, 3]))
    spread[5:8] = spread[5][:, ::2, ::2], spread[6][:, ::2, ::2], spread[7][:, ::2]  # copied first
    spread[0], spread[1] = spread[0][..., :33].contiguous(), spread[1][..., :4].contiguous()
    yield case("columns that are not side by side", spread, True)
    strange = push(4, 5, 3, 6, 2, F32, F32, [9, -1, 3, 5], [5, -3, 2, 4], [4, -2, 3, 2**40])
    good = (*strange[:3], integers([5, 0, 3, 5]), integers([4, 0, 2, 4]))
    good += (*strange[5:8], integers([3, 0, 3, 3]))
    yield case("numbers out of range", strange, False, repaired=good)
    odd = list(push(2, 6, 4, 5, 3, F32, F32, [0, 0], [0, 0], [4, 4]))
    odd[5] = odd[5].clone()
    odd[5][0, 0], odd[5][0, 1, 2], odd[5][1, 0] = 0, NAN, odd[5][1, 0] * 2.0**-100
    yield case("zero, NaN and tiny unit rows", odd, True)
    for dtype in FLOATS[:2]:
        small = list(push(2, 6, 4, 5, 3, dtype, dtype, [0, 0], [0, 0], [4, 4]))
        small[5] = subnormal(small[5])
        yield case(f"subnormal unit rows of {dtype}", small, True)
    for classes, capacity, number in ((0, 3, 3), (3, 1, 0), (40, 9, 30)):
        for dtype in FLOATS:
            state = (
                rows(classes, capacity, 33, dtype=dtype),
                rows(classes, capacity, 4, dtype=dtype),
                rows(classes, capacity, dtype=dtype),
                *torch.zeros(2, classes, dtype=torch.int64),
                guarded(rows(classes, number, 33)),
                guarded(rows(classes, number, 4)),
                rows(classes, number),
                torch.full((classes,), number),
            )
            name = f"{number} rows to {classes} x {capacity}, {dtype}"
            yield case(name, state, True, parallel=classes == 40)
    for dtype in (F32, BF16):
        for normalize in (False, True):
            name = f"more than a ring of {dtype}{', unit rows' if normalize else ''}"
            yield case(name, everyday_push(dtype), normalize)


def everyday_push(dtype) -> tuple:
    """Rings of 70 rows: full, partly filled, empty, nearly full. Up to 150 rows arrive, some zero, NaN or huge."""
    state = [rows(4, 70, 67, dtype=dtype, seed=1), rows(4, 70, 40, dtype=dtype, seed=2)]
    state += [rows(4, 70, seed=3), integers([70, 20, 0, 68]), integers([66, 20, 0, 68])]
    state += [rows(4, 150, 67, seed=4), rows(4, 150, 40, seed=5), rows(4, 150, seed=6)]
    features = state[5]
    features[0, 3], features[1, 5, 2] = 0, NAN
    features[3, 7] *= 2.0**100
    return (*state, integers([30, 150, 0, 1]))
