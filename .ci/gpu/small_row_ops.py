"""The part of small_ops.py for operators on rows, labels and random numbers."""

from collections.abc import Callable

import torch
from small_inputs import DIM, Draw
from torch import Tensor

from dgcl_ops import ops
from dgcl_ops.doctor.compare import Comparison, Target

FLOAT64 = 1e-12  # tolerance for sums of a few hundred float64 numbers


def equal(
    target: Target, comparison: Comparison, name: str, function: Callable, *arguments: object
) -> None:
    comparison.same(name, target(function, *arguments), target.expected(function, *arguments))


def pushed(state: list[Tensor], arriving: list[Tensor], normalize: bool) -> list[Tensor]:
    state = [part.clone() for part in state]
    ops.memory_push(*state, *arriving, normalize=normalize)
    return state


def check_memory_push(target: Target, comparison: Comparison, quick: bool) -> None:
    draw = Draw()
    for dtype in (torch.float32,) if quick else (torch.float32, torch.bfloat16, torch.float16):
        state = [
            draw.rows(4, 70, DIM, dtype=dtype),
            draw.rows(4, 70, 40, dtype=dtype),
            draw.rows(4, 70),
        ]
        state += [torch.tensor([70, 20, 0, 68]), torch.tensor([66, 20, 0, 68])]
        arriving = [draw.rows(4, 150, DIM), draw.rows(4, 150, 40), draw.rows(4, 150)]
        arriving.append(torch.tensor([30, 150, 0, 1]))
        for normalize in (False, True):
            name = f"{dtype}, normalize {normalize}"
            equal(target, comparison, name, pushed, state, arriving, normalize)


def check_gather_rows(target: Target, comparison: Comparison, quick: bool) -> None:
    draw = Draw()
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    for dtype in dtypes[:1] if quick else dtypes:
        for dim in (40, DIM) if quick else (1, 40, DIM):  # 40: whole 16-byte words
            maps = draw.rows(3, dim, 13, 11, dtype=dtype)
            pixels = draw.integers(0, 3 * 13 * 11, (5, 50))
            for layout in (torch.contiguous_format, torch.channels_last):
                laid = maps.contiguous(memory_format=layout)
                name = f"{dtype}, {dim} channels, {layout}"
                equal(target, comparison, name, ops.gather_rows, laid, pixels)


def gathered_gradient(maps: Tensor, pixels: Tensor, dL_drows: Tensor) -> Tensor:
    return torch.autograd.grad(ops.gather_rows(maps.requires_grad_(), pixels), maps, dL_drows)[0]


def check_gather_rows_backward(target: Target, comparison: Comparison, quick: bool) -> None:
    draw = Draw()
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    for dtype in dtypes[:1] if quick else dtypes:
        for dim in (DIM,) if quick else (1, DIM, 300):
            maps = draw.rows(3, dim, 13, 11, dtype=dtype)
            dL_drows = draw.rows(5, 50, dim, dtype=dtype)
            some = draw.integers(0, 3 * 13 * 11, (5, 50))
            for name, pixels in (("some pixels", some), ("one pixel", torch.full_like(some, 428))):
                ours = target(gathered_gradient, maps, pixels, dL_drows)
                theirs = target.expected(gathered_gradient, maps.clone(), pixels, dL_drows)
                comparison.same(f"{dtype}, {dim} channels, {name}", ours, theirs)


def check_random_bits(target: Target, comparison: Comparison, quick: bool) -> None:
    for seed, step, stream in ((7, 3, 1), (-(2**63), 2**40, -(2**63))):
        for count in (257,) if quick else (0, 257, 133_128):
            arguments = torch.tensor([seed, step]), stream, count
            equal(target, comparison, f"{count} words", ops.random_bits, *arguments)


def check_partition_keys(target: Target, comparison: Comparison, quick: bool) -> None:
    draw = Draw()
    kinds = ((torch.uint8, 21, 255), (torch.int64, 21, 3), (torch.int32, 10_000, -1))
    for dtype, classes, ignored in kinds[:1] if quick else kinds:
        labels = draw.integers(0, classes, (3 * 150 * 170,), dtype)
        labels[:1190] = ignored
        bits = draw.integers(0, 2**32, labels.shape)
        arguments = labels, bits % 11 != 0, bits, classes, ignored
        equal(target, comparison, f"{dtype}", ops.partition_keys, *arguments)


def check_finite_rows(target: Target, comparison: Comparison, quick: bool) -> None:
    draw = Draw()
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    for dtype in dtypes[:1] if quick else dtypes:
        for dim in (DIM, 40):  # 40: whole 16-byte words
            maps, other = (draw.rows(3, dim, 13, 11, dtype=dtype) for _ in range(2))
            for part, value in ((maps, torch.nan), (other, torch.inf)):
                part.view(-1)[draw.integers(0, part.numel(), (40,))] = value
            for layout in (torch.contiguous_format, torch.channels_last):
                arguments = maps, other.contiguous(memory_format=layout), maps[:, 0].double()
                ours = target(ops.finite_rows, *arguments)
                theirs = target.expected(ops.finite_rows, *arguments)
                comparison.same(f"{dtype}, {dim} channels, {layout}", ours, theirs)


def check_leading_rows(target: Target, comparison: Comparison, quick: bool) -> None:
    draw = Draw()
    for classes in (21, 3000):  # the sums of 3,000 classes take a launch of their own
        counts, limits = (draw.integers(0, high, (classes,)) for high in (9, 5))
        pixels = draw.integers(0, 2**40, (10 * classes,))
        arguments = pixels, counts, limits, 10 * classes
        ours = target(ops.leading_rows, *arguments)
        comparison.same(f"{classes} classes", ours, target.expected(ops.leading_rows, *arguments))


def check_draw_negatives(target: Target, comparison: Comparison, quick: bool) -> None:
    draw = Draw()
    for classes, draws in ((21, 512), (3000, 7)):
        counts = draw.integers(0, 9, (classes,))
        pixels = draw.integers(0, 2**40, (10 * classes,))
        arguments = pixels, counts, draw.integers(0, 2**32, (classes, draws))
        ours = target(ops.draw_negatives, *arguments)
        comparison.same(f"{classes} classes", ours, target.expected(ops.draw_negatives, *arguments))


def check_class_table(target: Target, comparison: Comparison, quick: bool) -> None:
    draw = Draw()
    pixels, order = draw.integers(0, 2**40, (5000,)), draw.integers(0, 5000, (5000,))
    offsets = draw.integers(0, 5001, (22,)).sort().values
    for last in (False, True):
        arguments = pixels, offsets, order, 200, last
        ours = target(ops.class_table, *arguments)
        comparison.same(f"last {last}", ours, target.expected(ops.class_table, *arguments))


def check_sum_rows(target: Target, comparison: Comparison, quick: bool) -> None:
    draw = Draw()
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        rows, places = draw.rows(21, 300, DIM, dtype=dtype), draw.integers(0, 300, (21, 50))
        counts = draw.integers(0, 51, (21,))
        for title, indices in (("a table", places), ("in order", None)):
            equal(target, comparison, f"{dtype}, {title}", ops.sum_rows, rows, indices, counts)
        equal(
            target, comparison, f"{dtype}, one column", ops.sum_rows, rows[0, :, :1], places, counts
        )


def check_silhouette_sums(target: Target, comparison: Comparison, quick: bool) -> None:
    draw = Draw()
    offsets = torch.tensor([0, 130, 130, 131, 290])
    for dtype in (torch.float32,) if quick else (torch.float32, torch.bfloat16):
        arguments = draw.rows(300, 33, dtype=dtype), offsets, None
        ours, again = (target(ops.silhouette_sums, *arguments) for _ in range(2))
        comparison.same(f"{dtype}, repeated", again, ours)
        comparison.near(f"{dtype}", ours, target.expected(ops.silhouette_sums, *arguments), FLOAT64)
