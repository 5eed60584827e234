"""Cases of the operators that draw random words and sort pixels by class."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dgcl_ops import reference

from . import Case
from .tensors import integers, labels, rows


def random_bits() -> Iterator[Case]:
    def case(name, state, stream, count, **options):
        arguments = integers(state), stream, count
        return Case("random_bits", name, lambda: arguments, **options)

    for count in (0, 1, 255, 256, 257):
        yield case(f"{count} words", [7, 3], 1, count, thread=count == 257)
    for seed in (-1, 2**62 + 1, -(2**63)):
        yield case(f"seed {seed}", [seed, 2**40 + 7], 0, 40)
    for stream in (-1, 2**32 + 5, -(2**63)):
        yield case(f"stream {stream}", [1, -2], stream, 40)
    every_second = integers([5, 0, 2**33, 0])[::2]
    yield Case("random_bits", "every second word of a state", lambda: (every_second, 3, 40))
    yield case("words for several threads", [8, 9], 10, 3 * 2**15 + 5, parallel=True, bulk=True)


def partition_keys() -> Iterator[Case]:
    def arguments(labels, classes, ignored):
        place = torch.arange(labels.numel())
        return labels, place % 7 != 5, (place * 0x9E3779B1) % 2**32, classes, ignored

    def case(name, *given, **options):
        return Case("partition_keys", name, lambda: arguments(*given), **options)

    for number in (0, 1, 31, 255, 256, 257, 1000):
        yield case(f"{number} labels", labels(number, 21), 21, 255, thread=number == 1000)
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        yield case(f"labels of {dtype}", labels(300, 100, dtype), 100, 255)
    for classes in (
        1,
        253,
        254,
        8189,
        8190,
    ):  # 256 slots are a turn; 8193 do not fit into shared memory
        many = labels(700, classes)
        yield case(f"{classes} classes", many, classes, 3, thread=classes in (254, 8190))
    # The grid has at most 512 blocks of 256 threads, so some threads take a second label.
    many = labels(512 * 256 + 300, 5, torch.uint8)
    yield case("more labels than threads", many, 5, 255, long=True)
    yield case("labels for several threads", labels(70_000, 300), 300, 7, parallel=True, bulk=True)
    spread = [t.repeat_interleave(2)[::2] for t in arguments(labels(300, 5), 5, 255)[:3]]
    yield Case("partition_keys", "every second element", lambda: (*spread, 5, 255))
    wide = (
        labels(40, 5),
        labels(40, 2, torch.bool),
        integers([-1, 2**32, -(2**63), 2**40 + 3]).repeat(10),
    )
    yield Case("partition_keys", "bits of more than 32 bits", lambda: (*wide, 5, 255))
    unused = labels(40, 5), torch.zeros(40, dtype=torch.bool), integers([9] * 40)
    yield Case("partition_keys", "no usable pixel", lambda: (*unused, 5, 255))
    few = integers([0, 0, 1, 2])
    yield case("ignored inside the range", few, 3, 0)
    yield case("a stray label that is not usable", integers([0, 1, 2, 0, 1, 99]), 3, 255)
    stray = torch.cat([labels(300, 7), integers([-1, 7, 2**40, -(2**40), 2**32])])

    def answer() -> list[Tensor]:
        """As if they were ignored, but counted elsewhere."""
        ignored = torch.where((stray < 0) | (stray >= 7), 255, stray)
        keys, counts = reference.partition_keys(*arguments(ignored, 7, 255))
        return [keys, torch.cat([counts[:7], counts[[9, 8, 7]]])]

    yield case("stray labels", stray, 7, 255, answer=answer)
    for far in (-(2**63), 2**63 - 1, 7, -1):
        yield case(f"label {far} of 7", integers([0, 1, 6, far]), 7, 255, anything=True)
    yield case("no classes", integers([]), 0, 255, anything=True)
    for dtype, classes, ignored in (
        (torch.uint8, 21, 255),
        (torch.int64, 21, 3),
        (torch.int32, 10_000, -1),
    ):
        image = labels(3 * 150 * 170, classes, seed=1)
        image[rows(len(image)) > 1.3] = ignored  # a tenth
        name = f"an image of {dtype}, {classes} classes"
        yield case(name, image.to(dtype), classes, ignored, long=True)


def cases() -> Iterator[Case]:
    yield from random_bits()
    yield from partition_keys()
