"""Finds NVIDIA's programs. None of them needs a GPU."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def find_nvcc() -> str:
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    return nvcc or sys.exit("nvcc is missing: it must be in PATH or in CUDA_HOME")


def find_cuobjdump(nvcc: str, environment: Path = ROOT / ".venv") -> str:
    """Looks in the checkout's .venv, next to nvcc (which may be a script elsewhere), then in PATH."""
    dry_run = subprocess.run(
        [nvcc, "--dryrun", "x.cu"], capture_output=True, text=True, check=False
    )
    top = re.search(r"^#\$ TOP=(.+)$", dry_run.stderr, re.MULTILINE)
    folders = [environment / "bin"]
    folders += sorted(environment.glob("lib/python3*/site-packages/nvidia/cu[0-9]*/bin"))
    folders += [Path(top[1]) / "bin"] if top else []
    paths = os.pathsep.join([*map(str, folders), os.environ["PATH"]])
    return shutil.which("cuobjdump", path=paths) or sys.exit(
        "cuobjdump is missing: .venv/bin/python -m pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
    )
