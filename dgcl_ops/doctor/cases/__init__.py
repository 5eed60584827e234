"""Named inputs for every operator.

The doctor, the emulator of the CUDA kernels, the sanitizers of the CPU kernels and the value tests run the same cases.
They reach every branch and edge: sizes one below, at and one above a warp or a tile, odd lengths, empty and unequal
classes, NaNs, ties, views.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Arguments of one operator, and what to compare its results with.

    Attributes:
        op: the operator.
        name: unique among the operator's cases.
        arguments: makes the arguments of the raw operator.
        tolerance: allowed difference between devices, relative to the largest number of a result. 0: the same bits.
        changes: number of leading arguments that change in place, and are the results.
        repaired: arguments for an implementation that refuses a value that CUDA clamps or skips.
        answer: makes the expected result, if only CUDA accepts the arguments.
        anything: the result is meaningless, and the operator may raise. It must not access memory out of bounds.
        environment: a variable that is set during the call.
        float32_only: a float32 result overflows, or depends on a rounding, where float64 does not.
        vast: needs 8 GiB of address space.
        long: many blocks. The emulator runs it under one schedule only.
        bulk: like `long`, and also skipped in the search for planted faults.
        thread: shows races between threads of a block. On CUDA kernels, ThreadSanitizer runs only these: it takes a
            hundred times as long.
        parallel: has work for several CPU threads.
    """

    op: str
    name: str
    arguments: Callable[[], tuple]
    tolerance: float = 0.0
    changes: int = 0
    repaired: Callable[[], tuple] | None = None
    answer: Callable[[], list[Tensor]] | None = None
    anything: bool = False
    environment: tuple[str, str] | None = None
    float32_only: bool = False
    vast: bool = False
    long: bool = False
    bulk: bool = False
    thread: bool = False
    parallel: bool = False

    @property
    def may_be_refused(self) -> bool:
        return bool(self.repaired or self.answer or self.anything)


@functools.cache
def all_cases() -> dict[str, list[Case]]:
    """Maps each operator to its cases, in the order they run."""
    from . import (
        contrast,
        gradient,
        maps,
        pixels,
        push,
        rows,
        search,
        search_classes,
        search_sizes,
        segments,
        sums,
    )

    result: dict[str, list[Case]] = {}
    searches = (search, search_classes, search_sizes)
    modules = (pixels, rows, maps, segments, sums, push, *searches, gradient, contrast)
    for module in modules:
        for case in module.cases():
            result.setdefault(case.op, []).append(case)
    for op, cases in result.items():
        names = [case.name for case in cases]
        assert len(set(names)) == len(names), f"{op}: two cases have the same name"
    return result
