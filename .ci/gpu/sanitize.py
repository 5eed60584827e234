"""Step 4: runs a program, usually small_ops.py, under one of compute-sanitizer's tools.

    python sanitize.py memcheck -- python small_ops.py --quick

It is skipped without the tool, and under gVisor, which has no debugger interface.
"""

import os
import platform
import re
import shutil
import subprocess
import sys

import report
from environment import is_gvisor

TOOL = "compute-sanitizer"
FAULTY = 66
COMMON = ["--launch-timeout", "0", "--error-exitcode", str(FAULTY), "--print-limit", "500"]
# Instruments only the library's kernels. initcheck must also see PyTorch's, since they initialise memory.
FILTER = ["--kernel-regex", "kns=dgcl"]
UNKNOWN = re.compile(r"(unknown|invalid|unrecogni[sz]ed) (option|argument|value)", re.IGNORECASE)
FIRST = re.compile(r"=+ (Invalid|Error|Uninit|Barrier|Race)")
OURS = re.compile(r"^=+ +at .*dgcl", re.MULTILINE)  # the kernel of a reported fault
SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")


def why_not(release: str, program: str | None) -> str | None:
    """Returns why the tool cannot run, or None."""
    if is_gvisor(release):
        return f"the kernel is gVisor ({release}), where {TOOL} cannot work"
    return None if program else f"{TOOL} is not on PATH"


def faults(text: str) -> int | None:
    """Returns the number of faults that the tool counted, or None if it printed no summary."""
    counts = [int(a or b) for a, b in SUMMARY.findall(text)]
    return sum(counts) if counts else None


def run(command: list[str]) -> tuple[str, int]:
    """Runs a command, prints its output at once, and returns output and exit status."""
    # The caching allocator puts many tensors into one allocation and hides their bounds.
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    lines = []
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return "".join(lines), process.wait()


def judged(tool: str, filtered: bool, text: str, code: int) -> tuple[str, bool]:
    """Returns the result in one line, and whether something is wrong."""
    kernels = "the library's kernels" if filtered else "all kernels"
    count = faults(text)
    if count is None:
        return f"{tool} printed no summary, exit status {code}", True
    if not count:
        end = f", but the program failed with {code}" if code else ""
        return f"{tool}: no fault in {kernels}{end}", bool(code)
    first = next((line for line in text.splitlines() if FIRST.match(line)), "").strip("= ")
    note = f"{tool}: {count} FAULTS in {kernels}. {first}"
    if tool != "initcheck":
        return note, True
    # PyTorch's kernels may read uninitialised memory without using the values.
    ours = len(OURS.findall(text))
    return f"{note} ({ours} of those shown are in the library's)", ours > 0 or code not in (
        0,
        FAULTY,
    )


def main() -> int:
    tool, _, *program = sys.argv[1:]
    if reason := why_not(platform.release(), shutil.which(TOOL)):
        return report.skip(reason)
    for options in ([],) if tool == "initcheck" else (FILTER, []):
        text, code = run([TOOL, "--tool", tool, *COMMON, *options, *program])
        if faults(text) is not None or not UNKNOWN.search(text):
            break
    note, wrong = judged(tool, bool(options), text, code)
    report.result(note=note, faults=faults(text))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
