"""Step 1: compares every operator on the device with the compiled CPU operator, on small inputs.

    python small_ops.py [--device cuda] [--quick] [--op knn_topk]

Results that are summed in another order get the doctor's tolerance. All others must be bitwise equal. --quick runs
fewer cases, since a sanitizer slows kernels down 10 to 50 times.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator

import report
import torch
from torch import Tensor

from dgcl_ops import ops
from dgcl_ops.doctor.compare import SEARCH, TOLERANCE, Comparison, Target, environment

QUERIES, BANK, DIM = 230, 700, 67  # odd, and larger than a tile in each direction
FLOAT64 = 1e-12  # tolerance for sums of a few hundred float64 numbers
METRICS = ("cosine", "dot", "l2")


class Draw:
    """Draws random inputs. Every instance draws the same numbers."""

    def __init__(self, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)

    def rows(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(dtype)

    def integers(
        self, low: int, high: int, shape: tuple, dtype: torch.dtype = torch.int64
    ) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator).to(dtype)


def tolerance(result: Tensor) -> float:
    """Returns the tolerance for a result. Both sides round, and narrow dtypes round once more."""
    narrow = result.dtype in (torch.float16, torch.bfloat16)
    return 2 * TOLERANCE + (torch.finfo(result.dtype).eps if narrow else 0.0)


def offset(rows: Tensor) -> Tensor:
    """Copies rows to an address that is not aligned to 16 bytes."""
    wider = torch.cat([rows.flatten()[:1], rows.flatten()])
    return wider[1:].view(rows.shape)


def strided(rows: Tensor) -> Tensor:
    """Copies rows to memory with strided elements."""
    return rows.transpose(-1, -2).contiguous().transpose(-1, -2)


# ---- searches ---------------------------------------------------------------------------------------


def search_cases(quick: bool) -> Iterator[tuple[str, dict]]:
    draw = Draw()
    queries, bank = draw.rows(QUERIES, DIM), draw.rows(BANK, DIM)
    banks = draw.rows(3, BANK, DIM)
    grouped = {
        "query_offsets": torch.tensor([0, 100, 100, QUERIES]),
        "bank_counts": torch.tensor([BANK, 5, 33]),
    }
    for metric in METRICS[:1] if quick else METRICS:
        yield metric, {"queries": queries, "bank": bank, "metric": metric}
        yield f"{metric}, grouped", {"queries": queries, "bank": banks, "metric": metric, **grouped}
    pairs = [(torch.bfloat16, torch.float16), (torch.float64, torch.float64)]
    for one, other in pairs[:1] if quick else pairs:
        yield f"{one} in {other}", {"queries": queries.to(one), "bank": bank.to(other)}
    holes = queries.clone()
    holes[5], holes[70, 3] = 0, torch.nan
    yield "zero and NaN rows", {"queries": holes, "bank": bank}
    yield "misaligned bank", {"queries": queries, "bank": bank, "misaligned": True}
    if quick:
        return
    yield "strided", {"queries": strided(queries), "bank": strided(bank)}
    yield "one centre", {"queries": queries + 30, "bank": bank + 30}
    yield "unit bank", {"queries": queries, "bank": bank, "unit_bank": True}
    for dim in (1, 8, 129, 300):
        wide = {"queries": draw.rows(33, dim), "bank": draw.rows(257, dim)}
        yield f"{dim} columns", wide


def search(op: Callable, bank: Tensor, misaligned: bool = False, **case: object) -> object:
    """Calls a search. A misaligned bank is created on the device, since moving a tensor aligns it."""
    return op(bank=offset(bank) if misaligned else bank, **case)


def check_knn_topk(target: Target, comparison: Comparison, quick: bool) -> None:
    for name, case in search_cases(quick):
        for k in (32,) if quick else (1, 32, 300):
            for path in target.search_paths:
                with environment(SEARCH, path):
                    ours = target(search, ops.knn_topk, k=k, **case)
                title = f"{name}, k {k}, {path} search"
                comparison.same(title, ours, target.expected(search, ops.knn_topk, k=k, **case))


def check_knn_density(target: Target, comparison: Comparison, quick: bool) -> None:
    for name, case in search_cases(quick):
        for path in target.search_paths:
            with environment(SEARCH, path):
                ours = target(search, ops.knn_density, scales=(8, 16, 32), **case)
            theirs = target.expected(search, ops.knn_density, scales=(8, 16, 32), **case)
            comparison.same(f"{name}, {path} search", ours, theirs)


def topk_gradients(queries: Tensor, bank: Tensor, **options: object) -> tuple[Tensor, ...]:
    queries.requires_grad_()
    bank.requires_grad_()
    values, indices = search(ops.knn_topk, bank, queries=queries, k=9, **options)
    return torch.autograd.grad(torch.where(indices >= 0, values, 0.0).sum(), (queries, bank))


def check_knn_topk_backward(target: Target, comparison: Comparison, quick: bool) -> None:
    for name, case in search_cases(quick):
        if "NaN" in name:
            continue
        ours, again = (target(topk_gradients, **case) for _ in range(2))
        comparison.same(f"{name}, repeated", again, ours)
        theirs = target.expected(topk_gradients, **{n: detached(v) for n, v in case.items()})
        for what, one, other in zip(("queries", "bank"), ours, theirs, strict=True):
            comparison.near(f"{name}, of {what}", one, other, tolerance(one))


def detached(value: object) -> object:
    """Copies a tensor with its strides."""
    return value.detach().clone() if isinstance(value, Tensor) else value


# ---- contrast -----------------------------------------------------------------------------------------


def contrast(
    with_gradients: bool, anchors: Tensor, keys: Tensor, negatives: Tensor, **options: object
) -> tuple[Tensor, ...]:
    rows = [part.detach().requires_grad_(with_gradients) for part in (anchors, keys, negatives)]
    loss = ops.density_contrast(*rows, 0.5, **options)
    return torch.autograd.grad(loss.sum(), rows) if with_gradients else (loss,)


def check_contrast(
    target: Target, comparison: Comparison, quick: bool, with_gradients: bool
) -> None:
    draw = Draw()
    counts = {
        "anchor_counts": torch.tensor([37, 0, 17]),
        "negative_counts": torch.tensor([201, 5, 64]),
    }
    for dtype in (torch.float32,) if quick else (torch.float32, torch.float64, torch.bfloat16):
        shapes = (3, 37, DIM), (3, DIM), (3, 201, DIM)
        rows = [draw.rows(*shape, dtype=dtype) for shape in shapes]
        for name, options in (("all rows", {}), ("counts", {**counts, "eps": 0.1})):
            ours, again = (target(contrast, with_gradients, *rows, **options) for _ in range(2))
            comparison.same(f"{dtype}, {name}, repeated", again, ours)
            theirs = target.expected(contrast, with_gradients, *rows, **options)
            for part, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                comparison.near(f"{dtype}, {name}, result {part}", one, other, tolerance(one))


def check_density_contrast(target: Target, comparison: Comparison, quick: bool) -> None:
    check_contrast(target, comparison, quick, False)


def check_density_contrast_backward(target: Target, comparison: Comparison, quick: bool) -> None:
    check_contrast(target, comparison, quick, True)


# ---- rows and labels --------------------------------------------------------------------------------


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


CHECKS = {
    "knn_topk": check_knn_topk,
    "knn_density": check_knn_density,
    "density_contrast": check_density_contrast,
    "memory_push": check_memory_push,
    "gather_rows": check_gather_rows,
    "gather_rows_backward": check_gather_rows_backward,
    "finite_rows": check_finite_rows,
    "leading_rows": check_leading_rows,
    "draw_negatives": check_draw_negatives,
    "class_table": check_class_table,
    "sum_rows": check_sum_rows,
    "random_bits": check_random_bits,
    "partition_keys": check_partition_keys,
    "silhouette_sums": check_silhouette_sums,
    "knn_topk_backward": check_knn_topk_backward,
    "density_contrast_backward": check_density_contrast_backward,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--op", choices=list(CHECKS), action="append")
    options = parser.parse_args()
    target, wrong, elements = Target(options.device), [], 0
    if not target.compiled:
        report.result(note=f"no compiled kernels for {options.device}")
        return 1
    for name in options.op or CHECKS:
        comparison, began = Comparison(exact=True), time.perf_counter()
        try:
            CHECKS[name](target, comparison, options.quick)
        except Exception as error:  # the other operators must still run
            text = " ".join(str(error).split())[:300]
            comparison.notes.append(f"{type(error).__name__}: {text}")
            comparison.unequal += 1
        word = "ok" if comparison.good else "WRONG"
        print(f"{name:<28} {word:<6} {comparison.summary()}  ({time.perf_counter() - began:.2f} s)")
        for note in comparison.notes[:4]:
            print(f"    {note}")
        sys.stdout.flush()
        elements += comparison.elements
        wrong += [] if comparison.good else [name]
    count = len(options.op or CHECKS)
    note = f"{count} operators, {elements:,} elements compared for equality"
    if wrong:
        note = f"WRONG: {', '.join(wrong)}; {note}"
    blocking = os.environ.get("CUDA_LAUNCH_BLOCKING", "0")
    report.result(note=note, wrong=wrong, blocking=blocking)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
