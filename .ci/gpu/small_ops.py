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
import small_row_ops as row_ops
import torch
from small_inputs import BANK, DIM, QUERIES, Draw, offset, strided, tolerance
from torch import Tensor

from dgcl_ops import ops
from dgcl_ops.doctor.compare import SEARCH, Comparison, Target, environment

METRICS = ("cosine", "dot", "l2")


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


CHECKS = {
    "knn_topk": check_knn_topk,
    "knn_density": check_knn_density,
    "density_contrast": check_density_contrast,
    "memory_push": row_ops.check_memory_push,
    "gather_rows": row_ops.check_gather_rows,
    "gather_rows_backward": row_ops.check_gather_rows_backward,
    "finite_rows": row_ops.check_finite_rows,
    "leading_rows": row_ops.check_leading_rows,
    "draw_negatives": row_ops.check_draw_negatives,
    "class_table": row_ops.check_class_table,
    "sum_rows": row_ops.check_sum_rows,
    "random_bits": row_ops.check_random_bits,
    "partition_keys": row_ops.check_partition_keys,
    "silhouette_sums": row_ops.check_silhouette_sums,
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
