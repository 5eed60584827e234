"""Shared by the tests of the GPU kit: imports its modules and commands, and runs small steps."""

import importlib.util
import os
import sys
import types
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CI = ROOT / ".ci"
KIT = CI / "gpu"
PATIENCE = 1800  # seconds for what takes one or two; only a hang takes that long on a busy machine


@pytest.fixture(name="kit")
def kit_fixture(monkeypatch):
    """Imports the kit's modules, and unloads them afterwards."""
    monkeypatch.syspath_prepend(str(KIT))
    before = set(sys.modules)
    import runner
    import sanitize
    import steps
    import summary

    yield types.SimpleNamespace(runner=runner, sanitize=sanitize, steps=steps, summary=summary)
    for name in set(sys.modules) - before:
        if str(KIT) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


@pytest.fixture(name="run")
def run_fixture(kit, tmp_path):
    return new_run(kit, tmp_path)


def new_run(kit, tmp_path, budget: float = 10.0 * PATIENCE):
    write = kit.summary.writer({"commit": "abc", "wheel": "some.whl"})
    return kit.runner.Run(tmp_path / "out", budget, dict(os.environ), tmp_path, write)


def python(kit, name: str, code: str, limit: float = PATIENCE, **more):
    return kit.runner.Step(name, f"does {name}", [sys.executable, "-c", code], limit, **more)


def good(kit, name: str, **more):
    code = f"""print('RESULT {{"note": "{name} is fine", "value": 7}}')"""
    return python(kit, name, code, **more)


def statuses(run) -> dict[str, str]:
    return {result.step: result.status for result in run.results}


def page(run) -> str:
    return (run.out / "summary.txt").read_text()


def is_alive(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def command_of(name: str) -> types.ModuleType:
    """Loads a command of .ci as a module."""
    loader = SourceFileLoader(name, str(CI / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    before, path = sys.dont_write_bytecode, sys.path[:]
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(CI))
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode, sys.path[:] = before, path
    return module
