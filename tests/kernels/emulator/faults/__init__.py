"""Faults for the CUDA kernels: their kinds, and what the emulator must say about them."""

import os
from collections.abc import Callable

from kernels.harness.faults import Fault

# Kinds up to WAIT concern the execution model, later ones the values.
READ = "missing barrier, read too early"
WRITE = "missing barrier, written too early"
BRANCH = "barrier in a branch"
MASK = "collective of too few lanes"
SYNCWARP = "missing __syncwarp"
RACE = "race between blocks, warps or lanes"
SHARED = "index in shared memory"
GLOBAL = "out of bounds of global memory"
UNSET = "uninitialised memory"
VECTOR = "misaligned vector"
ALIGNMENT = "alignment lowered"
WAIT = "wait for cp.async"
LAUNCH = "launch"
TAIL = "missing guard of the tail"
PLACE = "wrong row, class or offset"
MERGE = "part of a merge dropped"
TIE = "ties and comparisons"
BOUND = "filter's bound"
OFFSET = "offset in 32 bits"
TURN = "loop over the grid left after one turn"
RANGE = "rows outside the normal range"
BINDING = "stream, guard or error lost"

REPORTS = {
    RACE: "data race",
    SYNCWARP: "data race",
    VECTOR: "misaligned",
    ALIGNMENT: "misaligned|outside of its arrays|use-after-poison",
}


def planted(op: str, file: str) -> Callable[..., Fault]:
    """Makes the faults of one file, relative to csrc/cuda, that an operator's cases must find."""
    place = os.path.normpath(f"cuda/{file}")

    def fault(kind: str, old: str, new: str, mode: str = "plain") -> Fault:
        return Fault(kind, op, place, old, new, mode, REPORTS.get(kind, ""))

    return fault


def all_faults() -> list[Fault]:
    from . import (
        contrast,
        cut,
        filter,
        maps,
        pixels,
        rows,
        scatter,
        search,
        search_gradient,
        segments,
        sums,
    )

    pixel_faults = (*pixels.FAULTS, *maps.FAULTS, *segments.FAULTS)
    row_faults = (*rows.FAULTS, *scatter.FAULTS, *sums.FAULTS)
    search_faults = (*search.FAULTS, *filter.FAULTS, *cut.FAULTS, *search_gradient.FAULTS)
    return [*pixel_faults, *row_faults, *search_faults, *contrast.FAULTS]
