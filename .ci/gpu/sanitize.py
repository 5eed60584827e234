"""Step 4: one of compute-sanitizer's tools over a program, most of the time small_ops.py.

    python sanitize.py memcheck -- python small_ops.py --quick

Skipped where the kernel is gVisor, which has no debugger interface, and where the tool is missing.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys

from environment import is_gvisor

SKIP = 77
TOOL = "compute-sanitizer"
COMMON = ["--launch-timeout", "0", "--error-exitcode", "66", "--print-limit", "20"]
# Only the library's kernels are instrumented. initcheck has to see PyTorch's as well: what they write is initialised.
FILTER = ["--kernel-regex", "kns=dgcl"]
SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")


def why_not(release: str, program: str | None) -> str | None:
    if is_gvisor(release):
        return f"the kernel is gVisor ({release}): {TOOL} cannot work there"
    return None if program else f"{TOOL} is not on PATH"


def faults(text: str) -> int | None:
    """What the tool counted; None if it did not come to its summary."""
    found = [int(a or b) for a, b in SUMMARY.findall(text)]
    return sum(found) if found else None


def run(command: list[str]) -> tuple[str, int]:
    """Shows the output as it comes, and returns it."""
    # Caching would put many tensors into one allocation, and hide where each ends.
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    lines = []
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return "".join(lines), process.wait()


def main() -> int:
    tool, _, *program = sys.argv[1:]
    if reason := why_not(platform.release(), shutil.which(TOOL)):
        print(f"SKIPPED: {reason}")
        return SKIP
    for options in ([], []) if tool == "initcheck" else (FILTER, []):
        text, code = run([TOOL, "--tool", tool, *COMMON, *options, *program])
        count = faults(text)
        if count is not None or "nvalid" not in text[:2000]:  # else it did not know an option
            break
    filtered = "the library's kernels" if options else "all kernels"
    if count is None:
        note = f"{tool} did not come to its summary, exit status {code}"
    elif count:
        first = next(
            (
                t
                for t in text.splitlines()
                if re.match(r"=+ (Invalid|Error|Uninit|Barrier|Race)", t)
            ),
            "",
        )
        note = f"{tool}: {count} FAULTS in {filtered}. {first.strip('= ')}"
    else:
        note = f"{tool}: no fault in {filtered}"
        if code:
            note += f", but the program failed with {code}"
    print("RESULT " + json.dumps({"note": note, "faults": count}), flush=True)
    return 1 if count or count is None or code else 0


if __name__ == "__main__":
    sys.exit(main())
