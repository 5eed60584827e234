"""Runs the cases of the CPU kernels under the sanitizers, on every instruction set of this processor.

A part (--part) runs every operator on some instruction sets. All parts together run it on all.
"""

import time

from dgcl_ops.doctor.cases import all_cases
from kernels.harness.run import Bench, Harness

from . import build
from .faults import FAULTS
from .jobs import THREADS

HARNESS = Harness(
    name="sanitizers",
    modes=build.MODES,
    ops=tuple(sorted(all_cases())),
    module=build.module,
    build=build.build,
    concerns=build.concerns,
    faults=lambda: FAULTS,
    fault_modes=lambda fault: [fault.mode],
    fault_runs=lambda fault, mode: [{"thread": mode == "thread"}],
)


def add_options(parser) -> None:
    """This harness has no options of its own."""


def levels(bench: Bench, mode: str) -> list[str]:
    names = build.LEVELS
    (result,) = bench.map(lambda mode: bench.run(mode, "level"), [mode])
    widest = result.output.strip()
    if not result.clean or widest not in names:
        raise RuntimeError(f"the kernels could not be loaded:\n{result.output}")
    if missing := names[names.index(widest) + 1 :]:
        print(f"this processor has no {', '.join(missing)}: NOT checked")
    return names[: names.index(widest) + 1]


def pairs_of(used: list[str], ops: list[str], part: int, parts: int) -> list[tuple[str, str]]:
    """Pairs of instruction set and operator. Every part has every operator and every instruction set."""
    parts = min(parts, len(used))
    return [
        (level, op)
        for i, level in enumerate(used)
        for j, op in enumerate(ops)
        if (i + j) % parts == part % parts
    ]


def run(chosen) -> int:
    """Returns the number of jobs with a sanitizer report."""
    modes, began, failed = chosen.mode or list(build.MODES), time.monotonic(), 0
    build.build(*modes)
    print(f"built for {' and '.join(modes)} in {time.monotonic() - began:.0f} s", flush=True)
    began = time.monotonic()
    with Bench(HARNESS) as bench:
        used = levels(bench, modes[0])
        pairs = pairs_of(used, chosen.op, *chosen.part)
        jobs = [(mode, level, op) for mode in modes for level, op in pairs]

        def one(job):
            mode, level, op = job
            return bench.run(mode, "cases", level=level, op=op, thread=mode == "thread")

        for (mode, level, op), result in zip(jobs, bench.map(one, jobs), strict=True):
            if not result.clean:
                failed += 1
                print(f"FAILED {op}, {mode}, {level}:\n{result.output[-8000:]}", flush=True)
    for mode in modes:
        number = sum(
            case.thread or case.parallel or mode == "address"
            for _, op in pairs
            for case in all_cases()[op]
        )
        on = f"{len(chosen.op)} operators on {', '.join(used)}, {THREADS} threads each"
        print(f"{mode}: {number} cases of {on}")
    total = len(used) * len(chosen.op)
    if left := total - len(pairs):
        print(f"not this time: {left} of {total} pairs of operator and instruction set")
    seconds = time.monotonic() - began
    print(f"{failed} of {len(jobs)} runs with a report; {seconds:.0f} s", flush=True)
    return failed
