"""Cases of the contrastive loss and its gradient."""

import functools
from collections.abc import Iterator

import torch

from . import Case
from .tensors import BF16, COLUMNS, F16, F32, F64, FLOATS, NAN, guarded, integers, rows

# CUDA adds exponentials in another order than the CPU, in float64. Logits are float32 sums of up to 130 terms, also in
# another order, each rounded to 2^-24. They go through an exponential of slope at most 1 / temperature.
LOSS = {F64: 1e-12, F32: 2e-5, F16: 2e-5, BF16: 2e-5}
ROUNDED = {F16: 2e-3, BF16: 1e-2}  # gradients in the inputs' dtype


def losses() -> Iterator[tuple[str, tuple, dict]]:
    for dtype in (torch.float32, torch.float64):
        for groups, anchors, negatives, columns in (
            (1, 1, 0, 1),
            (2, 15, 1, 3),
            (1, 16, 127, 16),
            (2, 17, 128, 31),
            (1, 33, 129, 33),
            (1, 5, 260, 130),
            (1, 3, 10, 260),
        ):
            sizes = (groups, anchors, negatives, columns)
            name = f"{groups} x {anchors} anchors x {negatives} negatives x {columns} {dtype}"
            thread = dtype == torch.float32 and anchors in (17, 33)
            yield name, sizes, {"dtype": dtype, "thread": thread}
    for dtype in (torch.float16, torch.bfloat16):
        yield f"{dtype}", (2, 9, 20, 24), {"dtype": dtype}
    # The last group uses only some of its anchors and negatives. Without negatives every gradient is 0.
    counts = {"anchor_counts": integers([0, 5, 18, 7]), "negative_counts": integers([4, 0, 7, 5])}
    yield "unequal groups", (4, 18, 9, 12), counts | {"thread": True}
    # The published 1e-6 is below the tolerance of float32.
    yield "offset of the sum", (2, 4, 9, 12), {"eps": 0.1}
    wild = {"anchor_counts": integers([-4, 50, 3]), "negative_counts": integers([4, 999, -1])}
    tame = {"anchor_counts": integers([0, 18, 3]), "negative_counts": integers([4, 9, 0])}
    yield "counts out of range", (3, 18, 9, 12), wild | {"repaired": tame}
    yield "zero and NaN rows", (2, 5, 6, 7), {"spoil": True}


def tensors(sizes: tuple, dtype, spoil: bool) -> tuple:
    groups, anchors, negatives, columns = sizes
    three = (
        rows(groups, anchors, columns, dtype=dtype, seed=1),
        rows(groups, columns, dtype=dtype, seed=2),
        rows(groups, negatives, columns, dtype=dtype, seed=3),
    )
    if spoil:
        three[0][0, 2], three[2][0, 3], three[2][1, 4, 1] = 0, 0, NAN
    return three


def forward(sizes: tuple, options: dict, instead: dict | None = None) -> tuple:
    o = options | (instead or {})
    three = tensors(sizes, o.get("dtype", torch.float32), o.get("spoil", False))
    return (*three, 0.5, o.get("anchor_counts"), o.get("negative_counts"), o.get("eps", 0.0))


def backward(sizes: tuple, options: dict, wanted: bool, instead: dict | None = None) -> tuple:
    """Arguments of the backward, from the loss computed on the CPU."""
    arguments = forward(sizes, options, instead)
    good = forward(sizes, options, options.get("repaired"))
    loss, lse = torch.ops.dgcl_ops.density_contrast(*good)
    return (torch.ones_like(loss), *arguments[:3], lse, *arguments[3:-1], wanted)


def cases() -> Iterator[Case]:
    partial = functools.partial
    for name, sizes, options in losses():
        dtype = options.get("dtype", F32)
        thread, repaired = options.get("thread", False), options.get("repaired")
        make = partial(forward, sizes, options)
        other = partial(make, repaired) if repaired else None
        yield Case("density_contrast", name, make, LOSS[dtype], repaired=other, thread=thread)
        for wanted in (False, True):
            make = partial(backward, sizes, options, wanted)
            yield Case(
                "density_contrast_backward",
                name + (", all gradients" if wanted else ""),
                make,
                ROUNDED.get(dtype, LOSS[dtype]),
                repaired=partial(make, repaired) if repaired else None,
                thread=thread and wanted,
            )
    for case in (*cases_of_all_widths(), *everyday_cases()):
        yield from case


def both(name: str, three: tuple, options: tuple, **marks) -> Iterator[Case]:
    """The loss, and its gradient in all inputs. `options`: temperature, counts of anchors and of negatives, eps."""

    def gradient() -> tuple:
        loss, lse = torch.ops.dgcl_ops.density_contrast(*three, *options)
        return torch.ones_like(loss), *three, lse, *options[:3], True

    dtype = three[0].dtype
    yield Case("density_contrast", name, lambda: (*three, *options), LOSS[dtype], **marks)
    tolerance = ROUNDED.get(dtype, LOSS[dtype])
    yield Case("density_contrast_backward", name, gradient, tolerance, **marks)


def cases_of_all_widths() -> Iterator[Iterator[Case]]:
    sizes = [(2, 5, 9, columns, F32) for columns in COLUMNS]
    sizes += [(3, 21, 30, 37, dtype) for dtype in FLOATS]
    sizes += [(0, 4, 4, 4, F32), (2, 0, 4, 4, F32), (2, 4, 0, 4, F32), (2, 4, 4, 0, F32)]
    sizes += [(6, 300, 65, 19, F32), (2, 200, 33, 12, F64)]  # several blocks of anchors each
    for groups, anchors, negatives, columns, dtype in sizes:
        three = (
            guarded(rows(groups, anchors, columns, dtype=dtype, seed=1)),
            guarded(rows(groups, columns, dtype=dtype, seed=2)),
            guarded(rows(groups, negatives, columns, dtype=dtype, seed=3)),
        )
        counts = integers([anchors - g % 2 for g in range(groups)]).clamp(0)
        name = f"{groups} x {anchors} x {negatives} x {columns}, {dtype}"
        # Without negatives a gradient is the difference of nearly equal numbers.
        marks = {
            "parallel": anchors >= 200,
            "anything": columns == 0,
            "float32_only": negatives == 0,
        }
        yield both(name, three, (0.5, counts, None, 1e-6), **marks)


def everyday_cases() -> Iterator[Iterator[Case]]:
    def three(dtype=F32) -> tuple:
        shapes = (5, 37, 67), (5, 67), (5, 201, 67)
        return tuple(rows(*shape, dtype=dtype, seed=n) for n, shape in enumerate(shapes))

    counts = integers([37, 0, 17, 1, 37]), integers([201, 5, 0, 64, 130])
    yield both("all rows", three(), (0.5, None, None, 0.0))
    yield both("counts and eps", three(), (0.1, *counts, 0.1))
    yield both("counts of bfloat16", three(BF16), (0.5, *counts, 0.0))
    zero = three()
    for part in zero:
        part[..., 0, :] = 0
    zero[0][2, 17:] = NAN  # beyond the count
    yield both("zero rows", zero, (0.5, *counts, 0.0))
