"""Step 2: runs the doctor on the device, and reports failed checks so that they can be repeated alone.

python run_doctor.py cuda [CHECK ...]      default: all checks
"""

import re
import sys

import report

from dgcl_ops import doctor
from dgcl_ops.doctor.checks import CHECKS
from dgcl_ops.doctor.step import CUDA_CHECKS

FAILED = re.compile(r"^  (\S.*?)(?:, \w+ search)?\s+(?:WRONG|FAILED: .*)")


def failed_checks(lines: list[str]) -> list[str]:
    """Returns the checks that failed, from the doctor's output."""
    names = (match[1] for line in lines if (match := FAILED.match(line)))
    return list(dict.fromkeys(name for name in names if name in {**CHECKS, **CUDA_CHECKS}))


def main() -> int:
    device, *chosen = sys.argv[1:]
    lines = []
    for name in set(CHECKS) - set(chosen or CHECKS):
        del CHECKS[name]

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    if reason := doctor.unusable(device):
        report.result(note=reason)
        return 2
    _, passed = doctor.report(device, say=say)
    failed = failed_checks(lines)
    good = sum(bool(re.match(r"  \S.* ok ", line)) for line in lines)
    note = f"{good} checks ok" + (f"; FAILED: {', '.join(failed)}" if failed else "")
    report.result(note=note, failed=failed)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
