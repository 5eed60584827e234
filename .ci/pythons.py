"""Finds Python interpreters on this machine: in PATH and among pyenv's versions."""

import os
import shutil
import subprocess
from pathlib import Path

BASE = "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"


def output_of(python: str | Path, code: str) -> str:
    """Returns what a Python prints, or "" if it fails. A name in PATH may be pyenv's shim of an inactive version."""
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return "" if done.returncode else done.stdout.strip()


def candidates(version: str) -> list[Path]:
    """Returns programs that may be a Python of a version, such as "3.12"."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    names = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python3"))]
    return [Path(name) for name in names if name]


def find(version: str) -> Path | None:
    """Returns a Python of a version that can create environments, or None."""
    return next((p for p in candidates(version) if output_of(p, BASE) == version), None)
