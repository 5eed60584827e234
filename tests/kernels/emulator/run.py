"""Runs the emulated CUDA kernels on all cases, under a sanitizer where the mode has one.

python -m emulator.run --mode thread --schedule reverse --op knn_topk        (from tests/)
"""

import argparse
import sys

from . import build, cases, worker


def main() -> int:
    sys.path.append(str(build.ROOT))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=build.MODES, default="plain")
    parser.add_argument("--schedule", choices=build.SCHEDULES, default="sequential")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--op", choices=sorted(cases.all_cases()), action="append")
    parser.add_argument("--case", action="append", help="only the cases of this name")
    chosen = parser.parse_args()
    build.build(chosen.mode)
    failed = 0
    with worker.Worker(chosen.mode, seconds=1200) as at_work:
        for op in chosen.op or cases.all_cases():
            result = at_work.run(
                "cases",
                op=op,
                thread=chosen.mode == "thread" and not chosen.case,
                names=chosen.case,
                schedule=chosen.schedule,
                seed=chosen.seed,
            )
            print(f"{op}: {'clean' if result.clean else 'FAILED'}, {result.seconds:.1f} s")
            failed += not result.clean
            if not result.clean:
                print(result.output)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
