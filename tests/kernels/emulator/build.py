"""Builds the CUDA kernels with g++ and the emulator into a Python module, one per mode.

    python -m emulator.build --mode plain|address|thread|all        (from tests/)

plain is for values; address adds AddressSanitizer and UndefinedBehaviorSanitizer, thread ThreadSanitizer.
Ninja decides what is out of date. Only kernels are compiled once per mode; the PyTorch side, which no
sanitizer looks at, is shared.
"""

import argparse
import contextlib
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / "build" / "emulator"
MODES = ("plain", "address", "thread")
SCHEDULES = ("sequential", "reverse", "random")
MODULE = "_emulated"
NAMESPACE = "dgcl_emulated"  # its operators: torch.ops.dgcl_emulated
COMPILER = os.environ.get("CXX", "g++")

BASE_FLAGS = [
    "-std=c++20 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra",
    # kernels read bf16 rows as 16-byte vectors, which the GPU allows
    "-fno-strict-aliasing -Wno-unknown-pragmas",
]
KERNEL_FLAGS = {
    # locals without a value get a recognisable one
    "plain": "-O2 -ftrivial-auto-var-init=pattern",
    "address": "-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all",
    "thread": "-O1 -g1 -fno-omit-frame-pointer -fsanitize=thread",
}
RUNTIME_FLAGS = {
    "plain": "-O2",
    "address": "-O2 -DCUDA_EMULATOR_ADDRESS",
    # ThreadSanitizer listens to memset and memmove, even where the compiler made them from a loop
    "thread": "-O2 -DCUDA_EMULATOR_THREAD -fno-tree-loop-distribute-patterns",
}
LINK_FLAGS = {
    "plain": "",
    "address": "-fsanitize=address,undefined",
    "thread": "-fsanitize=thread",
}


def torch_folder() -> Path:
    """Without importing it."""
    return Path(importlib.util.find_spec("torch").submodule_search_locations[0])


def fused_multiply_add() -> str:
    """The flag that makes fma() one instruction, where the processor has it: the same value, faster."""
    with contextlib.suppress(OSError):
        if " fma " in Path("/proc/cpuinfo").read_text():
            return "-mfma"
    return ""


def kernel_command(mode: str, flags: str = "") -> str:
    """Everything but input and output."""
    include = f"-I{HERE / 'include'}"
    return " ".join(
        [COMPILER, *BASE_FLAGS, KERNEL_FLAGS[mode], fused_multiply_add(), flags, include]
    )


def binding_command() -> str:
    import pybind11

    sys.path.append(str(ROOT / ".ci"))
    from build_values import setup_value

    torch = torch_folder()
    return " ".join(
        [
            f"{COMPILER} -O1",
            *BASE_FLAGS,
            f"-DDGCL_NAMESPACE={NAMESPACE} -DDGCL_CUDA_KEY=CPU -DDGCL_EMULATED_DEVICE",
            f"-DTORCH_TARGET_VERSION={setup_value('TORCH_TARGET')}",
            # In this order: PyTorch has an older copy of pybind11.
            f"-isystem {pybind11.get_include()} -isystem {torch / 'include'}",
            f"-isystem {sysconfig.get_path('include')}",
        ]
    )


def link_command(mode: str) -> str:
    library = torch_folder() / "lib"
    return f"{COMPILER} -shared {LINK_FLAGS[mode]} -L{library} -Wl,-rpath,{library}"


CSRC = ROOT / "csrc"


def kernels() -> list[Path]:
    return [*sorted((CSRC / "cuda").glob("*.cu")), HERE / "self_test.cu"]


def bindings() -> list[Path]:
    return sorted((CSRC / "cuda").glob("*_binding.cpp"))


def operators() -> list[Path]:
    return sorted((CSRC / "ops").glob("*.cpp"))


def runtime() -> list[Path]:
    return sorted((HERE / "runtime").glob("*.cpp"))


def object_of(folder: Path, source: Path) -> Path:
    return folder / (source.name + ".o")


def rule(name: str, command: str) -> str:
    return (
        f"rule {name}\n  command = {command} -MMD -MF $out.d -c $in -o $out\n"
        "  depfile = $out.d\n  deps = gcc\n  description = $out\n"
    )


def ninja_file() -> str:
    """All modes in one file, so that one log knows what is up to date."""
    text = ["ninja_required_version = 1.5\n", rule("torch", binding_command())]
    shared = []
    for source in [*operators(), *bindings(), HERE / "module.cpp"]:
        shared.append(object_of(CACHE / "shared", source))
        text.append(f"build {shared[-1]}: torch {source}\n")
    for mode in MODES:
        objects = list(shared)
        command = f"{COMPILER} {' '.join(BASE_FLAGS)} {RUNTIME_FLAGS[mode]}"
        text.append(rule(f"kernel_{mode}", f"{kernel_command(mode)} -x c++"))
        text.append(rule(f"runtime_{mode}", command))
        for kind, files in (("kernel", kernels()), ("runtime", runtime())):
            for source in files:
                objects.append(object_of(CACHE / mode, source))
                text.append(f"build {objects[-1]}: {kind}_{mode} {source}\n")
        # moved into place: a process that has the old file loaded keeps it
        link = f"{link_command(mode)} $in -ltorch_cpu -o $out.new && mv $out.new $out"
        text.append(f"rule link_{mode}\n  command = {link}\n  description = $out\n")
        text.append(f"build {module_file(mode)}: link_{mode} {' '.join(map(str, objects))}\n")
    return "".join(text)


def module_file(mode: str) -> Path:
    return CACHE / mode / f"{MODULE}.so"


@contextlib.contextmanager
def only_one():
    """Two builds in one folder would disturb each other."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def find_ninja() -> str:
    found = shutil.which("ninja", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not found:
        raise RuntimeError("the emulator is built with ninja: pip install ninja")
    return found


def build(mode: str) -> Path:
    """Brings the mode's module up to date and returns its file."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode}")
    with only_one():
        file = CACHE / "build.ninja"
        text = ninja_file()
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
        target = module_file(mode)
        done = subprocess.run(
            [find_ninja(), "-C", str(CACHE), str(target)], capture_output=True, text=True
        )
    if done.returncode:
        raise RuntimeError(f"building the emulated kernels ({mode}) failed:\n{done.stdout[-8000:]}")
    return target


def load(mode: str = "plain", file: Path | None = None):
    """Imports the module, after building it unless `file` names one. One mode per process."""
    from dgcl_ops import _extension

    if MODULE in sys.modules:
        return sys.modules[MODULE]
    spec = importlib.util.spec_from_file_location(MODULE, file or build(mode))
    module = importlib.util.module_from_spec(spec)
    module.library = _extension.define_in(NAMESPACE)
    spec.loader.exec_module(module)
    sys.modules[MODULE] = module
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=[*MODES, "all"], default="all")
    chosen = parser.parse_args().mode
    for mode in MODES if chosen == "all" else [chosen]:
        print(build(mode))


if __name__ == "__main__":
    main()
