"""Step 6: profiles six kernels with Nsight Compute, one launch each. Writes the report file and its details as text.

    python run_ncu.py OUT/kernels.ncu-rep -- python profiled_kernels.py

It does not change the clocks. It is skipped if ncu is missing, and under gVisor, which has no counters.
"""

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import report
from environment import is_gvisor

WANTED = (
    "knn_filter_kernel",
    "knn_exact_kernel",
    "knn_bank_lengths_kernel",
    "contrast_gradient_kernel",
    "gather_rows_transposed_kernel",
    "scatter_rows_kernel",
)
OPTIONS = ["--clock-control", "none", "--set", "full", "--launch-count", "12", "--force-overwrite"]
FIGURES = (
    "Duration",
    "Compute (SM) Throughput",
    "Memory Throughput",
    "L2 Hit Rate",
    "Achieved Occupancy",
)


def why_not(release: str, program: str | None) -> str | None:
    """Returns why ncu cannot run, or None."""
    if is_gvisor(release):
        return f"the kernel is gVisor ({release}), which has no counters for ncu"
    return None if program else "ncu is not on PATH"


def seen(details: str) -> list[str]:
    """Returns the wanted kernels that occur in the details."""
    return [name for name in WANTED if name in details]


def short(details: str) -> list[str]:
    """Returns kernel names and their main figures from the details page."""
    lines = []
    for line in details.splitlines():
        if re.match(r"  \S.*\bContext\b", line):
            lines.append(line.strip()[:150])
        elif line.strip().startswith(FIGURES):
            lines.append("    " + " ".join(line.split()))
    return lines


def main() -> int:
    file, _, *program = sys.argv[1:]
    if reason := why_not(platform.release(), shutil.which("ncu")):
        return report.skip(reason)
    names = "regex:" + "|".join(WANTED)
    command = ["ncu", *OPTIONS, "--kernel-name", names, "--export", file, *program]
    code = subprocess.run(command, check=False).returncode
    if not Path(file).exists():
        report.result(note=f"ncu wrote no report, exit status {code}")
        return 1
    done = subprocess.run(
        ["ncu", "--import", file, "--page", "details"],
        capture_output=True,
        text=True,
        check=False,
    )
    print(*short(done.stdout), sep="\n")
    print(done.stdout, flush=True)
    kernels = seen(done.stdout)
    missing = [name for name in WANTED if name not in kernels]
    note = f"{len(kernels)} of {len(WANTED)} kernels" + (
        f", NOT {', '.join(missing)}" if missing else ""
    )
    report.result(note=note, kernels=kernels)
    return 1 if missing or code else 0


if __name__ == "__main__":
    sys.exit(main())
