"""Builds the CPU kernels with a sanitizer, as another dgcl_ops._C.

The flags are setup.py's, except for optimisation and debugging. A process cannot load both extensions, because the
kernels would be registered twice.
"""

import sysconfig
from pathlib import Path

from build_values import extension_argument, level_names, macros, setup_value

from kernels.harness import build as harness
from kernels.harness.build import COMPILER, CSRC, SANITIZERS, Module, Unit, torch_folder

CACHE = harness.CACHE / "sanitizers"
MODES = ("address", "thread")
LEVELS = level_names()
COMMON = "-fPIC -O1 -g1 -fno-omit-frame-pointer -w"
# Also: indices of standard containers, and numbers that do not fit the integer they are converted to.
MORE = {"address": "-fsanitize=float-cast-overflow -D_GLIBCXX_ASSERTIONS", "thread": ""}


def headers() -> str:
    include = torch_folder() / "include"
    return f"-isystem {include} -isystem {sysconfig.get_path('include')}"


def compile_command(mode: str, source: Path) -> str:
    return " ".join(
        [
            COMPILER,
            *setup_value("FLAGS"),
            *setup_value("LEVEL_FLAGS").get(source.name, []),
            *macros(),
            f"{COMMON} {SANITIZERS[mode]} {MORE[mode]}",
            headers(),
        ]
    )


def module(mode: str) -> Module:
    units = []
    for source in extension_argument("sources"):
        name = str(source.relative_to(CSRC)).replace("/", "_")
        command = compile_command(mode, source)
        units.append(Unit(source, command, CACHE / mode / f"{name}.o"))
    return Module(CACHE / mode / "dgcl_ops_sanitized.so", mode, tuple(units))


def concerns(op: str, source: Path) -> bool:
    """Whether the operator needs this file: its kernel and checks, the search, the instruction sets."""
    stem = op.removesuffix("_backward")
    stems = {f"{stem}_kernel", stem} | ({"search"} if stem.startswith("knn") else set())
    return source.parent.name == "simd" or source.stem in stems


def build(*modes: str) -> list[Path]:
    """Rebuilds the modes' modules if needed."""
    targets = [module(mode) for mode in modes or MODES]
    harness.build(CACHE, [module(each) for each in MODES], targets)
    return [target.file for target in targets]
