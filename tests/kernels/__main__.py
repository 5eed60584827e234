"""The command line of everything in tests/kernels; README.md has examples. Run it from tests/."""

import argparse
import importlib
import sys

from kernels.harness import faults
from kernels.harness.build import ROOT
from kernels.harness.run import add_options, check_options

HARNESSES = ("emulator", "sanitizers", "fuzz")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels", description=__doc__)
    programs = parser.add_subparsers(dest="program", required=True)
    used = {}
    for name in HARNESSES:
        used[name] = importlib.import_module(f"kernels.{name}.run")
        program = programs.add_parser(name, description=used[name].__doc__)
        add_options(program, used[name].HARNESS)
        used[name].add_options(program)
    aarch64 = importlib.import_module("kernels.aarch64.check")
    aarch64.add_options(programs.add_parser("aarch64", description=aarch64.__doc__))
    chosen = parser.parse_args()
    if chosen.program == "aarch64":
        return aarch64.run(chosen)
    program = used[chosen.program]
    check_options(parser, chosen, program.HARNESS)
    failed = faults.run(program.HARNESS, chosen) if chosen.faults else program.run(chosen)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.path.append(str(ROOT))  # without an installed dgcl_ops, the source tree's
    sys.exit(main())
