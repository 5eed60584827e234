"""Runs the benchmarks from tests, as programs and as modules of this process."""

import contextlib
import csv
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PATIENCE = 1800  # seconds for what takes ten; only a hang takes that long on a busy machine


def run(script: str, *arguments, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, BENCHMARKS / script, *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=env)


def read(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def importable(monkeypatch):
    """Makes the benchmarks' modules importable, and unloads them afterwards."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]
