"""The study of photographs (CCP) with a tuned backbone, in under ten minutes on one GPU.

    python benchmarks/evidence/ccp_on_gpu.py --data DIR               # all missing runs, and the two gates
    python benchmarks/evidence/ccp_on_gpu.py --data DIR --rehearse    # 20 small steps on the CPU; results mean nothing

DIR, arms and code are those of ccp.py. The setting differs: "tuned" in ccp_settings.py has a larger network, trained as
a whole, with larger windows and batches. All images are kept on the device.

There is one process per seed. It trains its runs in turn. First, all processes time their steps together. From these
times, the program picks the number of steps with which all runs fit into --seconds. It stores the number in plan.json.

Each run adds a row to runs.csv when it ends, measured on the validation images. It also adds a row to test.csv, because
its checkpoint may be lost with the machine. Nothing reads test.csv before the last run.

You can stop the program at any time. It continues when you start it again with the same --out. With the same --work, it
even continues in the middle of a run. The exit status is 1 while runs are missing.
"""

import argparse
import json
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import append_rows, say
from on_cuda import why_not

from evidence import ccp
from evidence.ccp import Case
from evidence.ccp_jobs import TEST_COLUMNS, begin, measure_times, train
from evidence.ccp_report import gates_text, read_rows
from evidence.ccp_settings import REHEARSAL, TUNED
from evidence.ccp_timing import Times, steps_within
from evidence.compare import CONTROL, METHOD, RANDOM, SUPERVISED

LEAST_STEPS = 5


def queue_of(seed: int) -> list[Case]:
    """Returns the runs of a seed. The most important comparison comes first, the run for a gate last."""
    arms = (CONTROL, METHOD, RANDOM, SUPERVISED)
    gate = [case for case in ccp.gate_cases() if case.seed == seed and case.labelled != ccp.FEW]
    return [Case(arm, ccp.FEW, seed) for arm in arms] + gate


# ---- the plan -----------------------------------------------------------------------------------------


def stored_plan(options: argparse.Namespace) -> int | None:
    """Reads the plan of an earlier call from --out or --work. Returns its number of steps, or None without a plan.

    Raises:
        SystemExit: If the earlier call had another setting, if two plans differ, or if there are runs without a plan.
    """
    setting, plans = options.setting.described(options.setting.base), {}
    for path in (options.out / "plan.json", options.work / "plan.json"):
        if path.exists():
            plans[path] = json.loads(path.read_text())
            if plans[path]["setting"] != setting:
                raise SystemExit(f"ccp: {path} has another setting: {plans[path]['setting']}")
    if len({plan["steps"] for plan in plans.values()}) > 1:
        raise SystemExit(f"ccp: {' and '.join(map(str, plans))} differ; choose another --work")
    if not plans:
        if read_rows(options.out / "runs.csv"):
            raise SystemExit(f"ccp: {options.out} holds runs, but no plan.json with their steps")
        return None
    plan = next(iter(plans.values()))
    write_plan(plan, options)
    return plan["steps"]


def write_plan(plan: dict, options: argparse.Namespace) -> None:
    """Writes plan.json to --out and --work. Each write is atomic."""
    for folder in (options.out, options.work):
        written = folder / "plan.written"
        written.write_text(json.dumps(plan, indent=1) + "\n")
        written.replace(folder / "plan.json")


def make_plan(
    pools: list[futures.ProcessPoolExecutor], queues: list[list[Case]], options: argparse.Namespace
) -> int:
    """Times the steps of all processes. Writes the number of steps that fit to plan.json, and returns it.

    Raises:
        SystemExit: If too few steps fit, or if the time runs out.
    """
    setting = options.setting
    jobs = [
        pool.submit(measure_times, next(case for case in queue if case.arm == METHOD), options)
        for pool, queue in zip(pools, queues, strict=True)
    ]
    if futures.wait(jobs, options.until - time.monotonic()).not_done:
        raise SystemExit("ccp: the time ran out before all processes had timed their steps")
    for job in jobs:  # raises the first error; it also breaks the barrier of the other processes
        if not isinstance(job.exception(), threading.BrokenBarrierError | None):
            job.result()
    slowest = Times(*map(max, zip(*(job.result() for job in jobs), strict=True)))
    left = options.until - time.monotonic()
    steps = steps_within(left, queues, slowest, setting, options.steps)
    text = ", ".join(f"{name} {value:.4f} s" for name, value in slowest._asdict().items())
    say(f"{text}; {left:.0f} s left: {steps} steps")
    if steps < LEAST_STEPS:
        raise SystemExit(
            f"ccp: at least {LEAST_STEPS} steps must fit, got {steps} steps in {left:.0f} s"
        )
    plan = {"steps": steps, "setting": setting.described(setting.base), "processes": len(pools)}
    plan |= {"seconds": slowest._asdict(), "seconds_left": round(left, 1)}
    write_plan(plan, options)
    return steps


# ---- the study ----------------------------------------------------------------------------------------


@contextmanager
def processes(count: int) -> Iterator[list[futures.ProcessPoolExecutor]]:
    """Starts pools of one process each. On exit, it stops the processes, even in the middle of a run."""
    context = multiprocessing.get_context("spawn")
    together, others = context.Barrier(count), set(multiprocessing.active_children())
    pools = [futures.ProcessPoolExecutor(1, context, begin, (together,)) for _ in range(count)]
    try:
        yield pools
    finally:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()


def study(options: argparse.Namespace) -> list[Case]:
    """Trains the missing runs until the time runs out, and writes their rows.

    Returns:
        The runs that are still missing.
    """
    path = options.out / "runs.csv"
    for folder in (options.out, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    count = min(options.workers, len(options.seeds))
    queues = [
        [case for seed in options.seeds[i::count] for case in queue_of(seed)] for i in range(count)
    ]
    cases = [case for queue in queues for case in queue]
    planned = stored_plan(options)
    if planned and not ccp.missing(cases, path, planned, options.setting):
        return []
    with processes(count) as pools:
        options.steps = planned or make_plan(pools, queues, options)
        left = ccp.missing(cases, path, options.steps, options.setting)
        say(f"{len(left)} of {len(cases)} runs to do, {options.steps} steps each")
        jobs = {
            pool.submit(train, case, options): case
            for pool, queue in zip(pools, queues, strict=True)
            for case in queue
            if case in left
        }
        try:
            for job in futures.as_completed(jobs, max(0, options.until - time.monotonic())):
                if record(job, jobs[job], options):
                    left.remove(jobs[job])
        except futures.TimeoutError:
            say(f"the time ran out; {len(left)} of {len(cases)} runs are missing")
    return left


def record(job: futures.Future, case: Case, options: argparse.Namespace) -> bool:
    """Writes the rows of a finished run. Returns whether the run succeeded."""
    if error := job.exception():
        say(f"{case.name} failed with {type(error).__name__}: {error}")
        return False
    row, test = job.result()
    path = options.out / "test.csv"
    if case not in [Case(r["variant"], r["labelled"], r["seed"]) for r in read_rows(path)]:
        append_rows(path, TEST_COLUMNS, [test])
    append_rows(options.out / "runs.csv", ccp.COLUMNS, [row])
    say(f"{case.name}: validation mIoU {row['val_miou']:.2f} ({row['seconds']:.0f} s)")
    return True


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    options.until = time.monotonic() + options.seconds
    left = study(options)
    print(gates_text(read_rows(options.out / "runs.csv")))
    return 1 if left else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="CCP's folder")
    add("--rehearse", action="store_true", help="20 small steps per run on the CPU")
    add("--device", help="default: cuda, or cpu in a rehearsal")
    add(
        "--out",
        type=Path,
        help="folder of the CSV files; default: results/ccp_tuned next to this file",
    )
    add("--work", type=Path, help="folder of the checkpoints; default: runs/ccp_tuned")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    add("--workers", type=int, help="processes; default: 5, or 1 in a rehearsal")
    add("--steps", type=int, help="most steps per run; default: 3,000, or 20 in a rehearsal")
    add("--seconds", type=float, help="seconds in all; default: 560, or 3,600 in a rehearsal")
    add("--timing", type=float, default=16.0, help="seconds to spend on timing steps")
    options = parser.parse_args(arguments)
    options.setting = setting = REHEARSAL if options.rehearse else TUNED
    folder = f"ccp_{setting.name}"
    defaults = {
        "device": "cpu" if options.rehearse else "cuda",
        "out": Path(__file__).parent / "results" / folder,
        "work": Path("runs") / folder,
        "workers": setting.workers,
        "steps": setting.base.steps,
        "seconds": setting.seconds,
    }
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name, least in (("steps", LEAST_STEPS), ("workers", 1), ("timing", 0), ("seconds", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    if min(options.seeds) < 0 or len(set(options.seeds)) < len(options.seeds):
        parser.error(f"--seeds must differ and not be negative, got {options.seeds}")
    if not (options.data / "unlabelled").is_dir():
        parser.error(f"--data must hold train/, val/, test/ and unlabelled/, got {options.data}")
    if reason := why_not(options.device):
        parser.error(f"--device: {reason}")
    return options


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # also stops the processes
    sys.exit(main())
