"""Finds the Python of a rehearsal: 3.12 with PyTorch 2.11, as on the machine with the GPU. Creates it if needed."""

import os
import subprocess
import sys
from pathlib import Path

import pythons

VERSION, TORCH = "3.12", "2.11.0"
PACKAGES = ["numpy", "pytest", "pytest-xdist", "hypothesis", "scikit-learn", "matplotlib"]
EMULATOR = ["ninja", "pybind11", "setuptools>=77"]  # compiles the kernels for the CPU
VERSIONS = (
    "import sys, importlib.metadata as m; print('%d.%d' % sys.version_info[:2], m.version('torch'))"
)


def find_python(root: Path) -> str:
    """Returns a Python for the rehearsal.

    Args:
        root: the source tree. A new environment goes to its build/rehearsal.

    Raises:
        SystemExit: If there is no Python to create one with.
    """
    env = root / "build" / "rehearsal"
    named = [os.environ.get("DGCL_OPS_REHEARSAL_PYTHON"), env / "bin" / "python"]
    existing = [Path(path) for path in named if path and Path(path).exists()]
    for python in [*existing, *pythons.candidates(VERSION)]:
        if pythons.output_of(python, VERSIONS).startswith(f"{VERSION} {TORCH}"):
            return str(python)
    if python := pythons.find(VERSION):
        return make(python, env)
    sys.exit(f"gpu_run: a rehearsal needs Python {VERSION}, got none; --python names another one")


def make(python: Path, env: Path) -> str:
    """Creates the environment and returns its Python."""
    print(
        f"creating {env} with torch {TORCH}, which downloads gigabytes; --python uses an existing environment"
    )
    subprocess.run([python, "-m", "venv", env], check=True)
    command = [env / "bin" / "python", "-m", "pip", "install", "-q", f"torch=={TORCH}"]
    subprocess.run([*command, *PACKAGES, *EMULATOR], check=True)
    return str(env / "bin" / "python")
