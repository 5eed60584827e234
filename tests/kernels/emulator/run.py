"""Runs the emulated CUDA kernels on all cases."""

from dgcl_ops.doctor.cases import all_cases
from kernels.harness.run import Bench, Harness

from . import build, faults

# For the plain mode. The other modes use the second one.
SCHEDULES = (("reverse", 1), ("random", 2), ("sequential", 3))


def build_modes(*modes: str) -> None:
    for mode in modes:
        print(f"building the emulated kernels, {mode}", flush=True)
        build.build(mode)


def fault_runs(fault, mode: str):
    for schedule, seed in SCHEDULES if mode == "plain" else SCHEDULES[1:2]:
        yield {"thread": mode == "thread", "schedule": schedule, "seed": seed, "bulk": False}


HARNESS = Harness(
    name="emulator",
    modes=build.MODES,
    ops=tuple(sorted(all_cases())),
    module=build.module,
    build=build_modes,
    concerns=build.concerns,
    faults=faults.all_faults,
    fault_modes=lambda fault: build.MODES,
    fault_runs=fault_runs,
    control="cuda/compat.cuh",
    seconds=1200,
)


def add_options(parser) -> None:
    parser.add_argument("--schedule", choices=build.SCHEDULES, default="sequential")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", action="append", help="only the cases of this name")


def run(chosen) -> int:
    """Returns the number of runs that failed."""
    modes, failed = chosen.mode or ["plain"], 0
    build_modes(*modes)
    jobs = [(mode, op) for mode in modes for op in chosen.op]
    with Bench(HARNESS) as bench:

        def one(job):
            mode, op = job
            thread = mode == "thread" and not chosen.case
            options = {"schedule": chosen.schedule, "seed": chosen.seed, "names": chosen.case}
            return bench.run(mode, "cases", op=op, thread=thread, **options)

        for (mode, op), result in zip(jobs, bench.map(one, jobs), strict=True):
            verdict = "clean" if result.clean else "FAILED"
            print(f"{op}, {mode}: {verdict}, {result.seconds:.1f} s", flush=True)
            failed += not result.clean
            if not result.clean:
                print(result.output)
    return failed
