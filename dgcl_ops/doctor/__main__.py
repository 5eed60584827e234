"""Checks the installation: which implementation each device uses, and whether its results are correct.

    python -m dgcl_ops.doctor [--device cpu|cuda|cuda:1]

Prints a report to paste into a bug report. It runs every operator on named cases, then a few steps of the loss.
Selections, copies and counts must be bit-identical to the compiled CPU operators'. All numbers must be close to
`reference` in float64. On CUDA, both search paths run and a step must not sync. The PyTorch fallback need not be
bit-identical.
Exit status: 0 if all checks pass, 1 if one fails, 2 if the device cannot be used.
"""

import argparse
import functools
import os
import sys

from dgcl_ops.doctor import report, unusable
from dgcl_ops.doctor.reporting import installation


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dgcl_ops.doctor", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", default="cpu", help="device to check, such as cpu or cuda")
    device = parser.parse_args(argv).device
    reason = unusable(device)
    if reason:
        print("\n".join(installation()), flush=True)
        print(f"dgcl_ops.doctor: {reason}; nothing was checked", file=sys.stderr)
        return 2
    _, passed = report(device, say=functools.partial(print, flush=True))
    return 0 if passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.exit(1)
