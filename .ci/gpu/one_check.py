"""Repeats one of the doctor's checks alone, after it failed: one_check.py NAME [--device cuda]."""

import argparse
import sys

import report

from dgcl_ops.doctor import reporting
from dgcl_ops.doctor.checks import CHECKS
from dgcl_ops.doctor.compare import Target
from dgcl_ops.doctor.step import CUDA_CHECKS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    every = {**CHECKS, **CUDA_CHECKS}
    parser.add_argument("name", choices=list(every))
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    lines, good = reporting.verdict(options.name, every[options.name], Target(options.device))
    print(*lines, sep="\n")
    report.result(note=lines[0].strip())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
