"""Measures speed and memory on the CPU, and compares them with the library's aims.

    python benchmarks/suite.py --threads 2                     # all sections; 15 minutes on two cores
    python benchmarks/suite.py --threads 2 --only search dims  # some of them
    python benchmarks/suite.py --quick                         # tiny sizes: only checks that it runs

Each section (sections.py) compares results with a float64 brute force before it times anything. After each case it
appends measurements to suite.csv and verdicts to aims.csv: "met" or "short". Sections can be rerun. The CSV files only
grow. knn_bench.py and common.py describe how time and memory are measured.
"""

import argparse
import time

import torch
from common import Disagreement, machine, parser_of, say, set_threads
from sections import FULL, QUICK, SECTIONS, Run


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--only", choices=tuple(SECTIONS), nargs="+", default=list(SECTIONS))
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes; their times are meaningless"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    set_threads(options.threads)
    begin = time.monotonic()
    facts = machine(torch.device("cpu"), None)
    say(
        f"{facts['date']}, {facts['cpu']}, {facts['threads']} threads, commit {facts['commit']}: "
        + ", ".join(options.only)
    )
    aims = []
    for number, name in enumerate(options.only, 1):
        minutes = (time.monotonic() - begin) / 60
        say(f"\n[{number}/{len(options.only)}] {name}: {SECTIONS[name].__doc__.splitlines()[0]}")
        say(f"  {minutes:.1f} minutes so far")
        run = Run(name, options, QUICK if options.quick else FULL)
        try:
            SECTIONS[name](run)
        except Disagreement as error:
            say(f"DISAGREEMENT, nothing was recorded for this case: {error}")
            return 1
        run.report()
        aims += run.aims
    short = [aim for aim in aims if aim["verdict"] == "short"]
    met = sum(aim["verdict"] == "met" for aim in aims)
    unmeasured = sum(aim["verdict"] == "not measured" for aim in aims)
    minutes = (time.monotonic() - begin) / 60
    print(f"\n{met} aims met, {len(short)} short, {unmeasured} not measured, {minutes:.1f} minutes")
    for aim in short:
        print(
            f"  short: {aim['section']}, {aim['case']}: {aim['figure']} {aim['value']}, aim {aim['aim']}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
