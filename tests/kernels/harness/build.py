"""Builds the kernels in several modes with one ninja file per harness, and rebuilds them with a planted fault.

A mode is `plain`, `address` (AddressSanitizer and UndefinedBehaviorSanitizer) or `thread` (ThreadSanitizer).
"""

import contextlib
import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "kernels"
COMPILER = os.environ.get("CXX", "g++")
SANITIZERS = {
    "plain": "",
    "address": "-fsanitize=address,undefined -fno-sanitize-recover=all",
    "thread": "-fsanitize=thread",
}
NINJA_RULES = """\
ninja_required_version = 1.5
rule compile
  command = $command_line -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = $out
rule link
  command = $command_line $in -ltorch_cpu -o $out.new && mv $out.new $out
  description = $out
"""  # The move keeps the old file for processes that have it loaded.


def torch_folder() -> Path:
    """PyTorch's folder, without importing it."""
    return Path(importlib.util.find_spec("torch").submodule_search_locations[0])


@dataclass(frozen=True)
class Unit:
    """One object file."""

    source: Path
    command: str  # without input and output
    output: Path


@dataclass(frozen=True)
class Module:
    """The kernels of one mode, as a Python module."""

    file: Path
    mode: str
    units: tuple[Unit, ...]

    @property
    def link(self) -> str:
        library = torch_folder() / "lib"
        flags = SANITIZERS[self.mode].partition(" ")[0]
        return f"{COMPILER} -shared {flags} -L{library} -Wl,-rpath,{library}"


def ninja_file(modules: list[Module]) -> str:
    """Puts all modes into one ninja file, so that one log records what is up to date."""
    text = [NINJA_RULES]
    for unit in dict.fromkeys(unit for module in modules for unit in module.units):
        text.append(f"build {unit.output}: compile {unit.source}\n")
        text.append(f"  command_line = {unit.command}\n")
    for module in modules:
        objects = " ".join(str(unit.output) for unit in module.units)
        text.append(f"build {module.file}: link {objects}\n  command_line = {module.link}\n")
    return "".join(text)


def find_ninja() -> str:
    ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not ninja:
        raise RuntimeError("these kernels are built with ninja: pip install ninja")
    return ninja


@contextlib.contextmanager
def locked(folder: Path):
    """A lock, because two builds in one folder would disturb each other."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(folder: Path, modules: list[Module], targets: list[Module]) -> None:
    """Rebuilds the targets if needed. `modules` are all modules of the folder."""
    with locked(folder):
        file, text = folder / "build.ninja", ninja_file(modules)
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
        command = [find_ninja(), "-C", str(folder), *(str(module.file) for module in targets)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"building the kernels in {folder} failed:\n{done.stdout[-8000:]}")


def included_files(source: Path, seen: set[Path]) -> set[Path]:
    """A source and all files of its tree that it includes."""
    if source not in seen:
        seen.add(source)
        for name in re.findall(r'#include "(.+)"', source.read_text()):
            if (source.parent / name).exists():
                included_files((source.parent / name).resolve(), seen)
    return seen


def rebuild(module: Module, csrc: Path, changed: Path, concerns: Callable[[Path], bool]) -> Path:
    """Builds the module with another csrc, where one file differs. Reuses every object that need not change.

    `concerns` says which sources belong to the operator under test. Others keep the original file even if they include
    the changed one, which saves minutes.
    """
    new, old = [], []
    for unit in module.units:
        source = csrc / unit.source.relative_to(CSRC) if CSRC in unit.source.parents else None
        if source and concerns(source) and changed in included_files(source, set()):
            target = csrc.parent / f"{module.mode}_{unit.output.name}"
            compile_quietly(f"{unit.command} -O1 -w -c {source} -o {target}")
            new.append(target)
        else:
            old.append(unit.output)
    if not new:
        raise LookupError(f"no source of this operator includes {changed.relative_to(csrc)}")
    file = csrc.parent / module.file.name.replace(".so", f"_{module.mode}.so")
    # New objects come first, because the linker takes the first copy of an inline function.
    compile_quietly(f"{module.link} {' '.join(map(str, [*new, *old]))} -ltorch_cpu -o {file}")
    return file


def compile_quietly(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"does not compile: {command[-200:]}\n{done.stderr[-4000:]}")
