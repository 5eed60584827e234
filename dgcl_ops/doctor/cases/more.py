"""Inputs for the CPU kernels under a sanitizer: that nothing is reported is the answer, values are tested elsewhere.

The emulator's cases have the edges of tiles, dtypes, ties, NaNs, views and groups. Here are blocks enough for several
threads, columns from 1 to 2048, views whose surroundings are poisoned, overflowing scores, and what must be refused
before it is used. Those marked `thread` are run under ThreadSanitizer.
"""

import ctypes
import functools
from collections.abc import Iterator

import torch
from emulator import cases as emulator
from emulator.cases import INF, NAN, Case, integers, rows, whole_rows
from torch import Tensor

METRICS = ("cosine", "dot", "l2")
F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
FLOATS = (F32, F64, F16, BF16)
COLUMNS = (1, 2, 3, 7, 8, 15, 17, 31, 33, 63, 65, 127, 255, 513, 1023, 2047, 2048)
EDGE = 32  # bytes on both sides of a guarded row


@functools.cache
def poison_function():
    """AddressSanitizer's, which makes touching (address, size) an error from then on; None if it is not loaded."""
    function = getattr(ctypes.CDLL(None), "__asan_poison_memory_region", None)
    if function:
        function.argtypes = ctypes.c_void_p, ctypes.c_size_t
    return function


def guarded(t: Tensor) -> Tensor:
    """The same values as a view; what lies between its rows must not be touched."""
    size, columns = t.element_size(), t.shape[-1]
    edge = EDGE // size
    width = (edge + columns + 2 * edge - 1) // edge * edge
    base = torch.zeros(*t.shape[:-1], width, dtype=t.dtype)
    view = base[..., edge : edge + columns]
    view.copy_(t)
    if poison := poison_function():
        for row in range(base.numel() // width):
            begin = base.data_ptr() + row * width * size
            poison(begin, EDGE)
            poison(begin + EDGE + columns * size, (width - columns) * size - EDGE)
    return view


def searches() -> Iterator[tuple[str, tuple, int, dict]]:
    """Name, (queries, bank), k and options; for all operators of the search."""
    for n, columns in enumerate(COLUMNS):
        metric, dtype = METRICS[n % 3], FLOATS[n % 4]
        pair = rows(13, columns, seed=1), rows(67, columns, dtype=dtype, seed=2)
        yield f"{metric} {columns} columns, {dtype}", pair, 9, {"metric": metric}
    for metric in METRICS:
        for dtype in FLOATS:
            pair = guarded(rows(21, 37, dtype=dtype, seed=1)), guarded(rows(70, 37, dtype=dtype))
            for unit in (False, True):
                options = {"metric": metric, "unit_bank": unit}
                yield f"{metric} guarded {dtype}, unit {unit}", pair, 90, options
        # Blocks for every thread, survivors that overflow their buffers.
        pair = rows(900, 5, seed=1), rows(700, 5, dtype=F16, seed=2)
        yield f"{metric} many", pair, 7, {"metric": metric, "thread": True}
        pair = whole_rows(90, 3, seed=1), whole_rows(700, 3).double()
        yield f"{metric} many ties", pair, 60, {"metric": metric, "thread": metric == "l2"}
        far = rows(40, 9, seed=1) * 1e30, rows(150, 9, seed=2) * 1e30
        far[1][3, 4], far[1][7, 0], far[1][11], far[0][5, 8] = NAN, INF, 0, -INF
        yield f"{metric} scores that overflow", far, 30, {"metric": metric}
        bank = rows(4, 130, 33, seed=2)
        grouped = {"offsets": integers([3, 90, 90, 205, 400]), "counts": integers([130, 9, 0, 77])}
        for itself in (False, True):
            options = grouped | {"metric": metric, "exclude_self": itself, "thread": not itself}
            name = f"{metric} groups{', not itself' if itself else ''}"
            yield name, (rows(410, 33, seed=1), bank), 11, options
    # A bank too large to be copied is widened row by row: 12 MB hold 1536 rows of 2048.
    large = rows(5, 2048, seed=1), rows(1600, 2048, dtype=BF16)
    yield "large bank", large, 5, {"thread": True}
    for queries, bank in ((0, 0), (0, 5), (5, 0)):
        yield f"{queries} x {bank}", (rows(queries, 4), rows(bank, 4)), 3, {}
    yield "no query, huge k", (rows(0, 4), rows(5, 4)), 2**31 - 1, {}
    none = {"offsets": integers([0]), "counts": integers([])}
    yield "no group", (rows(6, 4), rows(0, 8, 4)), 3, none


def search_cases() -> Iterator[Case]:
    for name, (queries, bank), k, o in searches():
        offsets, counts, itself = o.get("offsets"), o.get("counts"), o.get("exclude_self", False)
        metric, unit = o.get("metric", "cosine"), o.get("unit_bank", False)
        thread = o.get("thread", False)
        given = (queries, bank, k, metric, offsets, counts, itself, unit)

        def backward(given=given):
            queries, bank, _, metric, offsets, _, _, unit = given
            values, indices = torch.ops.dgcl_ops.knn_topk(*given)
            return torch.ones_like(values), queries, bank, values, indices, metric, offsets, unit

        yield Case("knn_topk", name, lambda given=given: given, thread)
        yield Case("knn_topk_backward", name, backward, thread)
        scales = [1, max(1, k // 2), k]
        given = (queries, bank, scales, metric, offsets, counts, itself, len(name) % 2 == 0, unit)
        yield Case("knn_density", name, lambda given=given: given, thread)


def refused_searches() -> Iterator[Case]:
    """A neighbour just beyond the bank, or anywhere."""
    queries, bank = guarded(rows(9, 8, seed=1)), guarded(rows(12, 8))
    for stray in (12, -2, 2**62):

        def backward(stray=stray):
            values, indices = torch.ops.dgcl_ops.knn_topk(
                queries, bank, 3, "dot", None, None, False, False
            )
            indices[4, 1] = stray
            return torch.ones_like(values), queries, bank, values, indices, "dot", None, False

        yield Case("knn_topk_backward", f"neighbour {stray} of 12", backward, anything=True)


def losses() -> Iterator[Case]:
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
        options = (0.5, counts, None, 1e-6)
        anything = columns == 0  # may be refused

        def backward(three=three, options=options):
            loss, lse = torch.ops.dgcl_ops.density_contrast(*three, *options)
            return torch.ones_like(loss), *three, lse, *options[:3], True

        name, thread = f"{groups} x {anchors} x {negatives} x {columns}, {dtype}", anchors >= 200
        forward = lambda three=three, options=options: (*three, *options)
        yield Case("density_contrast", name, forward, thread, anything=anything)
        yield Case("density_contrast_backward", name, backward, thread, anything=anything)


def others() -> Iterator[Case]:
    def case(op, name, *arguments, **options):
        return Case(op, name, lambda: arguments, **options)

    for stray in (-(2**63), 2**63 - 1, 7, -1):
        labels = integers([0, 1, 6, stray])
        yield case("class_counts", f"label {stray} of 7", labels, 7, 255, anything=True)
    yield case("class_counts", "no classes", integers([]), 0, 255, anything=True)
    maps = rows(2, 19, 23, 31)
    pixels = torch.randperm(2 * 23 * 31)
    yield case("gather_rows", "every pixel", maps, pixels, thread=True)
    yield case("gather_rows", "no pixels", maps, integers([]))
    for stray in (2 * 23 * 31, -1, 2**62):
        yield case("gather_rows", f"pixel {stray}", maps, integers([0, stray]), anything=True)
    for columns in COLUMNS:
        some = guarded(rows(21, columns)), integers([0, 4, 21]), guarded(rows(9, columns, seed=1))
        yield case("silhouette_sums", f"{columns} columns, other rows", *some)
    for dtype in FLOATS:
        some = guarded(rows(300, 21, dtype=dtype)), integers([2, 90, 90, 280]), None
        yield case("silhouette_sums", f"300 rows of {dtype}", *some, thread=dtype == F16)
    asking = rows(400, 6), integers([0, 100, 300]), rows(300, 6, seed=1)
    yield case("silhouette_sums", "many other rows", *asking, thread=True)
    for number, columns in ((0, 4), (4, 0), (0, 0)):
        bounds = integers([0, number])
        some = rows(number, columns), bounds, None
        yield case("silhouette_sums", f"{number} x {columns}", *some, anything=True)
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
            name, thread = f"{number} rows to {classes} x {capacity}, {dtype}", classes == 40
            yield case("memory_push", name, *state, True, thread=thread, changes=5)


@functools.cache
def all_cases() -> dict[str, list[Case]]:
    found = {op: list(cases) for op, cases in emulator.all_cases().items()}
    for make in (search_cases, refused_searches, losses, others):
        for case in make():
            found[case.op].append(case)
    return found


def check_case(case: Case) -> None:
    """Inputs that CUDA would clamp are refused here, and must have done no harm before; then come the repaired ones."""
    try:
        emulator.run("dgcl_ops", case, case.arguments())
    except RuntimeError as error:
        told = str(error)
        may_refuse = case.repaired or case.answer or case.anything
        refused = told.startswith(case.op) and may_refuse
        assert refused, f"{case.name}: {told}"
    if case.repaired:
        emulator.run("dgcl_ops", case, case.repaired())


def check(op: str, thread: bool = False) -> None:
    """All cases of the operator, or those with work for several threads."""
    for case in all_cases()[op]:
        if case.thread or not thread:
            print(f"{op} {case.name}", flush=True)  # what runs when a sanitizer stops the process
            check_case(case)
