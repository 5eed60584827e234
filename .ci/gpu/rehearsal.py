"""The Python of a rehearsal: 3.12 with PyTorch 2.11, as on the machine with the GPU; made here if none is found."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSION, TORCH = "3.12", "2.11.0"
PACKAGES = ["numpy", "pytest", "pytest-xdist", "hypothesis", "scikit-learn", "matplotlib"]
EMULATOR = ["ninja", "pybind11", "setuptools>=77"]  # it compiles the kernels for the CPU
CODE = (
    "import sys, importlib.metadata as m; print('%d.%d' % sys.version_info[:2], m.version('torch'))"
)


def candidates(root: Path) -> list[Path]:
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    named = [
        os.environ.get("DGCL_OPS_REHEARSAL_PYTHON"),
        root / "build" / "rehearsal" / "bin" / "python",
    ]
    found = [
        *named,
        shutil.which(f"python{VERSION}"),
        *sorted(pyenv.glob(f"{VERSION}.*/bin/python3")),
    ]
    return [Path(path) for path in found if path and Path(path).exists()]


def output_of(python: Path, code: str) -> str:
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() if not done.returncode else ""


def find_python(root: Path) -> str:
    for python in candidates(root):
        if output_of(python, CODE).startswith(f"{VERSION} {TORCH}"):
            return str(python)
    for python in candidates(root):
        if (
            output_of(python, "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])")
            == VERSION
        ):
            return make(python, root / "build" / "rehearsal")
    sys.exit(f"gpu_run: a rehearsal needs Python {VERSION}, found none; --python names another")


def make(python: Path, env: Path) -> str:
    print(f"making {env} with torch {TORCH}: gigabytes; --python takes an existing environment")
    subprocess.run([python, "-m", "venv", env], check=True)
    command = [env / "bin" / "python", "-m", "pip", "install", "-q", f"torch=={TORCH}"]
    subprocess.run([*command, *PACKAGES, *EMULATOR], check=True)
    return str(env / "bin" / "python")
