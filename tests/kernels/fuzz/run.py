"""Hostile arguments for every operator; with --mode address under AddressSanitizer and UndefinedBehaviorSanitizer.

python -m fuzz.run [--mode address] [--seconds 120] [--seed 7] [--op gather_rows] [--case 123]    (from tests/)
python -m fuzz.run --faults

Each problem is printed with what repeats it. Without --seed, the clock gives one.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from cpu_sanitizers import build
from cpu_sanitizers.faults import Fault, build_faulty, is_found
from cpu_sanitizers.run import Bench, telling
from emulator.worker import TIMED_OUT, Result

from .faults import FAULTS
from .samples import SAMPLES
from .worker import Worker

JOB = 5.0  # seconds of cases between two lines of progress
MOST = 10_000  # cases of a job


def library(mode: str) -> Path:
    if mode == "address":
        build.build(("address",))
        return build.module_file("address")
    import dgcl_ops

    return Path(dgcl_ops.backend_info()["extension"])


def summary(result: Result) -> dict:
    """What the job says of itself at its end; of one that did not come there, nothing."""
    found = re.findall(r'^{"run": .*}$', result.output, re.MULTILINE)
    return json.loads(found[-1]) if found else {"run": 0, "refused": 0}


def explain(op: str, seed: int, result: Result) -> str:
    """The problems of a job, each with what repeats it."""
    lines = [x for x in result.output.splitlines() if x.startswith("PROBLEM")]
    if not summary(result)["run"]:
        kind = "HANG" if result.code == TIMED_OUT else "CRASH"
        numbers = re.findall(rf"^case {op} {seed} (\d+)$", result.output, re.MULTILINE)
        case = f"--case {numbers[-1]}" if numbers else "before the first case"
        lines.append(f"{kind} {op} --seed {seed} {case}: {telling(result)}")
        lines += [x for x in result.output.splitlines() if not x.startswith("case ")][-60:]
    return "\n".join(lines)


def fuzz(mode: str, ops: list[str], seed: int, seconds: float, case: int | None = None) -> int:
    """Jobs of all operators in turn; returns how many had a problem."""
    file, cores, began = library(mode), os.cpu_count(), time.monotonic()
    rounds = max(1, round(seconds * cores / (JOB * len(ops))))
    share = seconds * cores / (rounds * len(ops))
    jobs = [(op, MOST * n, MOST) for n in range(rounds) for op in ops]
    if case is not None:
        jobs = [(ops[0], case, 1)]
    failed, done = 0, {op: [0, 0] for op in ops}
    with Bench(Worker) as bench:

        def run(job):
            op, first, count = job
            limits = {"first": first, "count": count, "seconds": share}
            return bench.run(mode, "cases", file, op=op, seed=seed, **limits)

        for (op, *_), result in zip(jobs, bench.map(run, jobs), strict=True):
            told = summary(result)
            done[op] = [done[op][0] + told["run"], done[op][1] + told["refused"]]
            if not result.clean:
                failed += 1
                print(explain(op, seed, result), flush=True)
            passed = time.monotonic() - began
            print(f"{op}: {told['run']} cases ({passed:.0f} s)", file=sys.stderr, flush=True)
    for op, (number, refused) in done.items():
        print(f"{op}: {number} cases, {refused} refused")
    print(f"{failed} of {len(jobs)} jobs with a problem; --mode {mode} --seed {seed}", flush=True)
    return failed


def look_for(bench: Bench, fault: Fault) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        module = build_faulty(fault, Path(folder).resolve())
        limits = {"first": 0, "count": MOST, "seconds": 60.0, "stop": True}
        result = bench.run("address", "cases", module, op=fault.op, seed=0, **limits)
    found = is_found(fault, result)
    lines = explain(fault.op, 0, result).splitlines()
    print(f"{fault.op}, {fault.what}: {lines[0][:150] if found else 'NOT FOUND'}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=("plain", "address"), default="plain")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--op", choices=list(SAMPLES), action="append")
    parser.add_argument("--case", type=int, help="this one of --op alone")
    parser.add_argument("--faults", action="store_true", help="plants faults, and looks for them")
    chosen = parser.parse_args()
    if chosen.case is not None and (chosen.seed is None or len(chosen.op or ()) != 1):
        parser.error("--case needs one --op and --seed")
    if chosen.faults:
        began = time.monotonic()
        build.build(("address",))
        with Bench(Worker) as bench:
            found = list(bench.map(lambda fault: look_for(bench, fault), FAULTS))
        seconds = time.monotonic() - began
        print(f"{len(FAULTS)} faults planted, {sum(found)} found; {seconds:.0f} s")
        return 0 if all(found) else 1
    seed = int(time.time()) if chosen.seed is None else chosen.seed
    failed = fuzz(chosen.mode, chosen.op or list(SAMPLES), seed, chosen.seconds, chosen.case)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
