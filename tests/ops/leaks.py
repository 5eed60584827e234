"""Measures the memory of a process after many small calls: `python leaks.py CASE ...` prints a JSON line per case.

Each case runs in its own process, forked before anything was computed. So what one case leaves behind cannot hide what
another one leaks.
"""

import ctypes
import gc
import json
import mmap
import multiprocessing
import sys
import warnings
from pathlib import Path

import torch

from dgcl_ops import DensityContrastLoss, ops

sys.path.append(str(Path(__file__).resolve().parents[1]))  # run as a program, it has no conftest.py
from process_memory import allocated_bytes, resident_bytes

CALLS, STEPS, WARM_UP = 20_000, 2_000, 500
RAW = torch.ops.dgcl_ops
libc = ctypes.CDLL(None)


def usage() -> dict[str, int | None]:
    gc.collect()
    return {
        "allocated": allocated_bytes(),
        "resident": resident_bytes(),
        "python": sys.getallocatedblocks(),
    }


# ---- cases: each makes a function to call ------------------------------------------------------------


def integers(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def search_arguments() -> tuple:
    return torch.randn(4, 3), torch.randn(2, 5, 3), integers(0, 2, 4), integers(5, 4)


def knn_topk():
    queries, bank, offsets, counts = search_arguments()
    return lambda: RAW.knn_topk(queries, bank, 2, "cosine", offsets, counts, True, False)


def knn_density():
    queries, bank, offsets, counts = search_arguments()
    return lambda: RAW.knn_density(queries, bank, [1, 2], "l2", offsets, counts, True, False, True)


def knn_topk_backward():
    queries, bank, offsets, counts = search_arguments()
    found = RAW.knn_topk(queries, bank, 2, "cosine", offsets, counts, False, False)
    gradient = torch.ones_like(found[0])
    return lambda: RAW.knn_topk_backward(gradient, queries, bank, *found, "cosine", offsets, False)


def contrast_rows() -> tuple:
    return torch.randn(2, 3, 4), torch.randn(2, 4), torch.randn(2, 5, 4)


def density_contrast():
    rows, counts = contrast_rows(), (integers(3, 2), integers(5, 1))
    return lambda: RAW.density_contrast(*rows, 0.5, *counts, 1e-6)


def density_contrast_backward():
    rows = contrast_rows()
    loss, lse = RAW.density_contrast(*rows, 0.5, None, None, 0.0)
    return lambda: RAW.density_contrast_backward(loss, *rows, lse, 0.5, None, None, True)


def memory_push():
    ring = torch.zeros(2, 6, 5), torch.zeros(2, 6, 3), torch.zeros(2, 6)
    arriving = torch.randn(2, 4, 5), torch.randn(2, 4, 3), torch.randn(2, 4)
    counts = integers(0, 0), integers(0, 0)
    return lambda: RAW.memory_push(*ring, *counts, *arriving, integers(4, 1), True)


def random_bits():
    state = integers(1, 2)
    return lambda: RAW.random_bits(state, 3, 40)


def partition_keys():
    labels, bits = integers(0, 2, 255, 1), integers(9, 8, 7, 6)
    usable = labels < 2
    return lambda: RAW.partition_keys(labels, usable, bits, 3, 255)


def finite_rows():
    maps, other = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5)
    return lambda: RAW.finite_rows(maps, other, maps[:, 0])


def leading_rows():
    pixels, counts, limits = integers(4, 0, 3, 1, 2), integers(2, 3), integers(1, 9)
    return lambda: RAW.leading_rows(pixels, counts, limits, 5)


def draw_negatives():
    pixels, counts = integers(4, 0, 3, 1, 2), integers(2, 3)
    bits = torch.arange(8).view(2, 4)
    return lambda: RAW.draw_negatives(pixels, counts, bits)


def class_table():
    pixels, offsets, order = integers(4, 0, 3), integers(0, 2, 3), integers(1, 0, 2)
    return lambda: RAW.class_table(pixels, offsets, order, 2, True)


def sum_rows():
    rows, counts = torch.randn(2, 5, 3), integers(2, 4)
    return lambda: RAW.sum_rows(rows, None, counts)


def gather_rows():
    maps, pixels = torch.randn(2, 3, 4, 5), integers(3, 39, 0)
    return lambda: RAW.gather_rows(maps, pixels)


def gather_rows_backward():
    rows, pixels = torch.randn(3, 3), integers(3, 39, 3)
    return lambda: RAW.gather_rows_backward(rows, pixels, (2, 3, 4, 5))


def silhouette_sums():
    features, rows = torch.randn(9, 5), torch.randn(4, 5)
    return lambda: RAW.silhouette_sums(features, integers(0, 4, 9), rows)


OPERATORS = (
    *(knn_topk, knn_density, knn_topk_backward, density_contrast, density_contrast_backward),
    *(memory_push, gather_rows, gather_rows_backward, silhouette_sums, random_bits, partition_keys),
    *(finite_rows, leading_rows, draw_negatives, class_table, sum_rows),
)
OPERATORS = {case.__name__: case for case in OPERATORS}


def with_gradients(forward, *inputs: torch.Tensor):
    """Forward and backward of a public function."""
    inputs = [tensor.requires_grad_() for tensor in inputs]

    def call():
        out = forward(*inputs)
        out = out[0] if isinstance(out, tuple) else out
        torch.autograd.grad(out.sum(), inputs)

    return call


def knn_topk_gradient():
    queries, bank, offsets, counts = search_arguments()
    options = {"query_offsets": offsets, "bank_counts": counts}
    return with_gradients(lambda q, b: ops.knn_topk(q, b, 2, **options), queries, bank)


def knn_density_gradient():
    queries, bank, offsets, counts = search_arguments()
    options = {"query_offsets": offsets, "bank_counts": counts}
    return with_gradients(lambda q, b: ops.knn_density(q, b, (1, 2), **options), queries, bank)


def density_contrast_gradient():
    return with_gradients(lambda *rows: ops.density_contrast(*rows, 0.5), *contrast_rows())


def gather_rows_gradient():
    pixels = integers(3, 39, 0)
    return with_gradients(lambda maps: ops.gather_rows(maps, pixels), torch.randn(2, 3, 4, 5))


GRADIENTS = {
    "knn_topk": knn_topk_gradient,
    "knn_density": knn_density_gradient,
    "density_contrast": density_contrast_gradient,
    "gather_rows": gather_rows_gradient,
}


def loss_step():
    """Forward, backward and push of the loss, alternating between small batches."""
    module = DensityContrastLoss(
        3, 6, 4, scales=(2, 4), num_anchors=6, num_negatives=9, bank_capacity=14, rows_per_push=6
    )
    batches = [
        {
            "projections": torch.randn(2, 4, 5, 7, requires_grad=True),
            "labels": torch.randint(0, 3, (2, 5, 7)),
            "features": torch.randn(2, 6, 5, 7),
            "confidence": torch.rand(2, 5, 7),
        }
        for _ in range(4)
    ]
    turn = iter(range(10 * STEPS))

    def step():
        batch = batches[next(turn) % len(batches)]
        module(**batch).backward()
        batch["projections"].grad = None

    return step


# ---- planted leaks -----------------------------------------------------------------------------------

libc.malloc.restype = ctypes.c_void_p
kept: list = []
PLANTED = {
    "nothing": lambda: None,
    "32 bytes of malloc": lambda: libc.malloc(ctypes.c_size_t(32)),
    "a Python object": lambda: kept.append(object()),
    "a page": lambda: kept.append(touched_page()),
}


def touched_page() -> mmap.mmap:
    """Leaks a page that malloc() does not count, as it does not count holes in its heap."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page[0] = 1
    return page


def planted(leak):
    """An operator that only leaks."""

    def case():
        library = torch.library.Library("dgcl_planted", "FRAGMENT")
        library.define("leak(Tensor x) -> Tensor")

        def implementation(x):
            leak()
            return x.clone()

        library.impl("leak", implementation, "CPU")
        x = torch.zeros(3)
        kept.append(library)
        return lambda: torch.ops.dgcl_planted.leak(x)

    return case


CASES = {
    **{name: (case, CALLS) for name, case in OPERATORS.items()},
    **{f"{name} with gradients": (case, CALLS) for name, case in GRADIENTS.items()},
    **{f"planted: {what}": (planted(leak), CALLS) for what, leak in PLANTED.items()},
    "loss step": (loss_step, STEPS),
}


def measure(name: str, queue) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case, calls = CASES[name]
    call = case()
    for _ in range(WARM_UP):  # fills caches and the allocator's bins
        call()
    before = usage()
    for _ in range(calls):
        call()
    after = usage()
    grown = {what: None if n is None else after[what] - n for what, n in before.items()}
    queue.put({"case": name, "calls": calls, **grown})


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    context = multiprocessing.get_context("fork")
    for name in names:
        queue = context.SimpleQueue()
        child = context.Process(target=measure, args=(name, queue))
        child.start()
        child.join()
        if child.exitcode:
            sys.exit(f"{name}: exit status {child.exitcode}")
        print(json.dumps(queue.get()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(CASES))
