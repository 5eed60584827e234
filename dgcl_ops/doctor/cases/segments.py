"""Cases of the operators that read pixels sorted by class."""

from collections.abc import Iterator

import torch
from torch import Tensor

from . import Case
from .tensors import integers, labels


def segments(number: int, classes: int, unused: int = 3) -> tuple[Tensor, Tensor]:
    """Pixels and counts. Some pixels at the end belong to no class."""
    pixels = torch.randperm(number, generator=torch.Generator().manual_seed(number))
    of_class = labels(max(0, number - unused), classes, seed=classes)
    return pixels, torch.bincount(of_class, minlength=classes)


def leading_rows() -> Iterator[Case]:
    def case(name, *arguments, repaired=None, **options):
        other = None if repaired is None else lambda: repaired
        return Case("leading_rows", name, lambda: arguments, repaired=other, **options)

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


def draw_negatives() -> Iterator[Case]:
    def words(*shape: int) -> Tensor:
        return (torch.arange(shape[0] * shape[1]).view(shape) * 0x9E3779B1) % 2**32

    def case(name, *arguments, repaired=None, **options):
        other = None if repaired is None else lambda: repaired
        return Case("draw_negatives", name, lambda: arguments, repaired=other, **options)

    # Fewer classes than the threads of a block, as many, more; and draws likewise. Few pixels are taken once each.
    for classes in (1, 2, 21, 255, 256, 257, 600):
        for number in (40, 600):
            for limit in (7, 45) if classes > 21 else (1, 7, 255, 256, 257):
                thread = (classes, number, limit) in {(21, 600, 257), (257, 40, 7)}
                bits = words(classes, limit)
                name = f"{classes} classes, {number} pixels, {limit} draws"
                yield case(name, *segments(number, classes), bits, thread=thread)
    pixels, counts = segments(300, 5)
    bits = words(5, 40)
    spread = torch.stack([pixels, -pixels], 1)[:, 0], torch.stack([counts, -counts], 1)[:, 0]
    yield case("every second number", *spread, bits.repeat(1, 2)[:, ::2])
    yield case("transposed words", pixels, counts, bits.T.contiguous().T)
    ends = integers([[0, 1, 2**32 - 1, 2**31]]).repeat(5, 1)
    yield case("smallest and largest words", pixels, counts, ends)
    yield case("words of 64 bits", pixels, counts, ends - 2**40)
    for others in (39, 40, 41):
        few = pixels, integers([20, others, 0]), words(3, 40)
        yield case(f"{others} others for 40 draws", *few)
    yield case("empty classes", pixels, integers([0, 7, 0, 0, 90]), bits)
    yield case("one class of all pixels", pixels, integers([300]), words(1, 4))
    yield case("no pixel in a class", pixels, integers([0, 0]), words(2, 4))
    yield case("one pixel", integers([9]), integers([0, 1]), words(2, 4))
    yield case("no classes", pixels, integers([]), words(0, 4))
    yield case("no draws", pixels, counts, words(5, 0))
    lengths = integers([100, 90, 100])
    yield case("counts below 0", pixels, integers([100, -(2**40), 100]), bits[:3],
               repaired=(pixels, integers([100, 0, 100]), bits[:3]))  # fmt: skip
    for name, stray in {
        "counts beyond the pixels": integers([200, 2**62, 2**62]),
        "too many pixels": lengths * 2,
    }.items():
        yield case(name, pixels, stray, bits[:3], anything=True)
    many = segments(20_000, 150)
    yield case("many draws", *many, words(150, 500), long=True, parallel=True)


def class_table() -> Iterator[Case]:
    def case(name, *arguments, repaired=None, **options):
        other = None if repaired is None else lambda: repaired
        return Case("class_table", name, lambda: arguments, repaired=other, **options)

    def entries(number: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels, offsets and an order."""
        pixels, counts = segments(number, classes)
        order = torch.randperm(number, generator=torch.Generator().manual_seed(classes))
        return pixels * 3, torch.nn.functional.pad(counts.cumsum(0), (1, 0)), order

    for classes, widths in {1: (1, 9, 255, 256, 257, 300), 5: (1, 50, 51, 52), 300: (2,)}.items():
        pixels, offsets, order = entries(300, classes)
        for width in widths:
            for last in (False, True):
                name = f"{classes} classes, {'last' if last else 'first'} {width}"
                thread = width == 52
                yield case(name, pixels, offsets, None, width, last)
                yield case(f"{name}, ordered", pixels, offsets, order, width, last, thread=thread)
    pixels, offsets, order = entries(300, 5)
    for last in (False, True):
        side = "last" if last else "first"
        empty = integers([0, 0, 0, 300, 300, 300])
        yield case(f"empty classes, {side}", pixels, empty, None, 9, last)
        yield case(f"no class has any, {side}", pixels, integers([0, 0]), order, 9, last)
        yield case(f"no columns, {side}", pixels, offsets, order, 0, last)
        yield case(f"no classes, {side}", pixels, integers([7]), None, 9, last)
        yield case(f"nothing, {side}", integers([]), integers([0, 0]), None, 0, last)
        spread = [torch.stack([t, -t], 1)[:, 0] for t in (pixels, offsets, order)]
        yield case(f"every second number, {side}", *spread, 9, last)
        yield case(f"wider than all classes, {side}", pixels, offsets, order, 300, last)
        strays = order.clone()
        strays[order == 0], strays[order == 299] = -(2**40), 2**62
        yield case(f"order out of range, {side}", pixels, offsets, strays, 300, last,
                   repaired=(pixels, offsets, order, 300, last))  # fmt: skip
        yield case(f"offsets out of range, {side}", pixels, integers([-(2**62), 9, 2**62]), None, 99, last,
                   repaired=(pixels, integers([0, 9, 300]), None, 99, last))  # fmt: skip
        back = integers([200, 100, 0])
        yield case(f"decreasing offsets, {side}", pixels, back, order, 99, last, anything=True)


def cases() -> Iterator[Case]:
    yield from leading_rows()
    yield from draw_negatives()
    yield from class_table()
