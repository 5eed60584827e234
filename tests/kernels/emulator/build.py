"""The CUDA kernels and the emulator as a Python module, compiled by g++.

Each mode compiles the kernels once. The PyTorch side is built without sanitizers, so the modes share it.
"""

import contextlib
import importlib.util
import sys
import sysconfig
from pathlib import Path

from build_values import setup_value

from kernels.harness import build as harness
from kernels.harness.build import COMPILER, CSRC, SANITIZERS, Module, Unit, torch_folder

HERE = Path(__file__).resolve().parent
CACHE = harness.CACHE / "emulator"
MODES = ("plain", "address", "thread")
SCHEDULES = ("sequential", "reverse", "random")
# Each schedule runs on a different device: KB of shared memory per multiprocessor, as on sm_86, sm_80 and sm_90. The
# search's filter depends on it.
SHARED_KILOBYTES = {"reverse": 100, "sequential": 164, "random": 228}
MODULE = "_emulated"
NAMESPACE = "dgcl_emulated"  # its operators: torch.ops.dgcl_emulated

BASE_FLAGS = [
    "-std=c++20 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra",
    # The kernels read bf16 rows as 16-byte vectors, which the GPU allows.
    "-fno-strict-aliasing -Wno-unknown-pragmas",
]
KERNEL_FLAGS = {
    # Uninitialised locals get a recognisable value.
    "plain": "-O2 -ftrivial-auto-var-init=pattern",
    "address": "-O1 -g1 -fno-omit-frame-pointer",
    "thread": "-O1 -g1 -fno-omit-frame-pointer",
}
RUNTIME_FLAGS = {
    "plain": "-O2",
    "address": "-O2 -DCUDA_EMULATOR_ADDRESS",
    # ThreadSanitizer intercepts memset and memmove, even those that the compiler made from a loop.
    "thread": "-O2 -DCUDA_EMULATOR_THREAD -fno-tree-loop-distribute-patterns",
}


def fused_multiply_add() -> str:
    """The flag that makes fma() one instruction if the processor has it: faster, with the same value."""
    with contextlib.suppress(OSError):
        if " fma " in Path("/proc/cpuinfo").read_text():
            return "-mfma"
    return ""


def kernel_command(mode: str) -> str:
    flags = [*BASE_FLAGS, KERNEL_FLAGS[mode], SANITIZERS[mode], fused_multiply_add()]
    return " ".join([COMPILER, *flags, f"-I{HERE / 'include'}", "-x c++"])


def binding_command() -> str:
    import pybind11

    return " ".join(
        [
            f"{COMPILER} -O1",
            *BASE_FLAGS,
            f"-DDGCL_NAMESPACE={NAMESPACE} -DDGCL_CUDA_KEY=CPU -DDGCL_EMULATED_DEVICE",
            f"-DTORCH_TARGET_VERSION={setup_value('TORCH_TARGET')}",
            # In this order: PyTorch has an older copy of pybind11.
            f"-isystem {pybind11.get_include()} -isystem {torch_folder() / 'include'}",
            f"-isystem {sysconfig.get_path('include')}",
        ]
    )


def module(mode: str) -> Module:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode}")
    runtime_command = f"{COMPILER} {' '.join(BASE_FLAGS)} {RUNTIME_FLAGS[mode]}"
    sources = (
        ("shared", binding_command(), (CSRC / "ops").glob("*.cpp")),
        ("shared", binding_command(), (CSRC / "cuda").rglob("*_binding.cpp")),
        ("shared", binding_command(), [HERE / "module.cpp"]),
        (mode, kernel_command(mode), (CSRC / "cuda").rglob("*.cu")),
        (mode, kernel_command(mode), [HERE / "filter_probe.cu", HERE / "self_test.cu"]),
        (mode, runtime_command, (HERE / "runtime").glob("*.cpp")),
    )
    units = [
        Unit(source, command, CACHE / folder / f"{source.name}.o")
        for folder, command, files in sources
        for source in sorted(files)
    ]
    return Module(CACHE / mode / f"{MODULE}.so", mode, tuple(units))


def concerns(op: str, source: Path) -> bool:
    """Whether the operator needs this file of csrc/cuda. The search operators share files."""
    stem = source.stem.removesuffix("_kernel").removesuffix("_binding")
    return stem == op or (stem == "search" and op in ("knn_topk", "knn_density"))


def build(mode: str) -> Path:
    """Rebuilds the mode's module if needed, and returns its file."""
    target = module(mode)
    harness.build(CACHE, [module(each) for each in MODES], [target])
    return target.file


def load(mode: str = "plain", file: Path | None = None):
    """Imports the module `file`, or builds one first. A process can load only one mode."""
    from dgcl_ops.ops import _registry

    if MODULE in sys.modules:
        return sys.modules[MODULE]
    spec = importlib.util.spec_from_file_location(MODULE, file or build(mode))
    emulated = importlib.util.module_from_spec(spec)
    emulated.library = _registry.define_in(NAMESPACE)
    spec.loader.exec_module(emulated)
    sys.modules[MODULE] = emulated
    return emulated
