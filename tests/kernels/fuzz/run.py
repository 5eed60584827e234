"""Calls every operator with hostile arguments; with `--mode address`, under sanitizers.

Prints each problem with the options that reproduce it.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

from kernels.harness.run import Bench, Harness
from kernels.harness.worker import TIMED_OUT, Result
from kernels.sanitizers import build

from .faults import FAULTS
from .samples import SAMPLES

JOB = 5.0  # seconds of cases between two lines of progress
MOST = 10_000  # cases of a job

HARNESS = Harness(
    name="fuzz",
    modes=("plain", "address"),
    ops=tuple(SAMPLES),
    module=build.module,
    build=lambda *modes: build.build("address"),
    concerns=build.concerns,
    faults=lambda: FAULTS,
    fault_modes=lambda fault: [fault.mode],
    fault_runs=lambda fault, mode: [
        {"seed": 0, "first": 0, "count": MOST, "seconds": 600.0, "stop": True}
    ],
)


def add_options(parser) -> None:
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, help="by default the clock's")
    parser.add_argument("--case", type=int, help="this one of --op alone")


def library(mode: str) -> Path:
    """The kernels under test: those with a sanitizer, or the installed ones."""
    if mode == "address":
        return build.build("address")[0]
    import dgcl_ops

    return Path(dgcl_ops.backend_info()["extension"])


def summary(result: Result) -> dict:
    """What the job prints when it ends. If it did not get there, nothing counts as run."""
    lines = re.findall(r'^{"run": .*}$', result.output, re.MULTILINE)
    return json.loads(lines[-1]) if lines else {"run": 0, "refused": 0}


def explain(op: str, seed: int, result: Result) -> str:
    """The problems of a job, each with the options that reproduce it."""
    lines = [x for x in result.output.splitlines() if x.startswith("PROBLEM")]
    if not summary(result)["run"]:
        kind = "HANG" if result.code == TIMED_OUT else "CRASH"
        numbers = re.findall(rf"^case {op} {seed} (\d+)$", result.output, re.MULTILINE)
        case = f"--case {numbers[-1]}" if numbers else "before the first case"
        lines.append(f"{kind} {op} --seed {seed} {case}: {result.evidence()}")
        lines += [x for x in result.output.splitlines() if not x.startswith("case ")][-60:]
    return "\n".join(lines)


def fuzz(mode: str, ops: list[str], seed: int, seconds: float, case: int | None = None) -> int:
    """Runs jobs of all operators in turn. Returns how many had a problem."""
    file, cores, began = library(mode), os.cpu_count(), time.monotonic()
    rounds = max(1, round(seconds * cores / (JOB * len(ops))))
    share = seconds * cores / (rounds * len(ops))
    jobs = [(op, MOST * n, MOST) for n in range(rounds) for op in ops]
    if case is not None:
        jobs = [(ops[0], case, 1)]
    failed, done = 0, {op: [0, 0] for op in ops}
    with Bench(HARNESS) as bench:

        def run(job):
            op, first, count = job
            limits = {"first": first, "count": count, "seconds": share}
            return bench.run(mode, "cases", file, op=op, seed=seed, **limits)

        for (op, *_), result in zip(jobs, bench.map(run, jobs), strict=True):
            counted = summary(result)
            done[op] = [done[op][0] + counted["run"], done[op][1] + counted["refused"]]
            if not result.clean:
                failed += 1
                print(explain(op, seed, result), flush=True)
            passed = time.monotonic() - began
            print(f"{op}: {counted['run']} cases ({passed:.0f} s)", file=sys.stderr, flush=True)
    for op, (number, refused) in done.items():
        print(f"{op}: {number} cases, {refused} refused")
    print(f"{failed} of {len(jobs)} jobs with a problem; --mode {mode} --seed {seed}", flush=True)
    return failed


def run(chosen) -> int:
    """Returns the number of jobs with a problem."""
    if chosen.case is not None and (chosen.seed is None or len(chosen.op) != 1):
        raise SystemExit("fuzz: --case needs one --op and --seed")
    mode = (chosen.mode or ["plain"])[-1]
    seed = int(time.time()) if chosen.seed is None else chosen.seed
    return fuzz(mode, chosen.op, seed, chosen.seconds, chosen.case)
