"""Step 0: describes the machine. It does not need the library, and each command has a time limit."""

import json
import os
import platform
import shutil
import subprocess
import sys

import report

TOOLS = ("nvcc", "ncu", "compute-sanitizer", "g++", "ninja")
QUERY = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit,compute_mode"


def output_of(*command: str, limit: float = 20) -> str:
    """Returns what a command prints, or why it prints nothing. The limit is in seconds."""
    limit *= float(os.environ.get("DGCL_OPS_GPU_SLOWER", "1"))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except FileNotFoundError:
        return f"{command[0]}: not found"
    except subprocess.TimeoutExpired:
        return f"{command[0]}: no answer in {limit:.0f} s"
    return (done.stdout + done.stderr).strip()


def is_gvisor(release: str) -> bool:
    """Returns whether a kernel release is gVisor's. No driver for CUDA 13 supports a real Linux 4.4."""
    return release.split("-")[0] == "4.4.0"


def gpu() -> dict:
    """Returns what PyTorch sees. It runs in a child process, since it may crash."""
    code = """
import json, torch
there = torch.cuda.is_available()
found = {"device": there, "torch": torch.__version__, "cuda": torch.version.cuda}
if there:
    p = torch.cuda.get_device_properties(0)
    found |= {"gpu": torch.cuda.get_device_name(0), "capability": f"{p.major}.{p.minor}"}
    found |= {"l2_mb": round(p.L2_cache_size / 1e6, 1)}
    torch.ones(1, device="cuda").add_(1).cpu()
print(json.dumps(found))
"""
    prefix = json.loads(os.environ.get("DGCL_OPS_GPU_PYTHON", "null")) or [sys.executable]
    answer = output_of(*prefix, "-c", code, limit=60)
    try:
        return json.loads(answer.splitlines()[-1])
    except (ValueError, IndexError):
        lines = answer.splitlines() or ["no answer"]
        return {"device": False, "error": lines[-1][:300]}


def main() -> int:
    release = platform.release()
    facts = {
        "kernel": f"{platform.system()} {release}",
        "gvisor": is_gvisor(release),
        "python": platform.python_version(),
        "glibc": " ".join(platform.libc_ver()),
        "cores": len(os.sched_getaffinity(0)),
        "tools": {tool: shutil.which(tool) for tool in TOOLS},
    }
    print(json.dumps(facts, indent=1))
    print(output_of("nvidia-smi"))
    driver = output_of("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader")
    print(QUERY, driver, sep="\n")
    print(output_of("nvcc", "--version"))
    listed = "import importlib.metadata as m; print(*sorted(f'{d.name}=={d.version}' for d in m.distributions()))"
    print(output_of(sys.executable, "-c", listed))
    device = gpu()
    facts |= device
    facts["smi"] = driver.splitlines()[0] if driver else "nothing"
    system = "gVisor: no sanitizer, no ncu" if facts["gvisor"] else facts["kernel"]
    versions = f"torch {device.get('torch', '?')}, Python {facts['python']}, {system}"
    facts["note"] = (
        f"{device['gpu']}, driver {driver.split(', ')[1] if ', ' in driver else '?'}, {versions}"
        if device["device"]
        else f"NO CUDA DEVICE ({device.get('error', 'torch.cuda.is_available() is False')}); {versions}"
    )
    report.result(**facts)
    return 0 if device["device"] else 1


if __name__ == "__main__":
    sys.exit(main())
