"""A stand-in for the GPU. This file holds everything that a rehearsal replaces in a step's Python.

Tensors on "cuda" are CPU tensors. The library's kernels on them are the CUDA kernels, run by the emulator. Events read
this process's clock, a CUDA graph is a recording of operations, and torch.compile is a no-op. So a rehearsal says
nothing about launches, streams, memory, compilation or speed.
"""

import contextlib
import sys
import time
import types
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

TESTS = Path(__file__).resolve().parents[3] / "tests"
NAME = "NVIDIA X1 (pretended)"


def is_cuda(value: object) -> bool:
    if isinstance(value, str):
        return value.split(":")[0] == "cuda"
    return isinstance(value, torch.device) and value.type == "cuda"


class OnTheCpu(TorchFunctionMode):
    """Replaces device "cuda" with "cpu" in the arguments of PyTorch's functions."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cuda:
            return args[0]
        if function is torch.device:  # a device object keeps its type
            return function(*args, **(kwargs or {}))
        args = tuple("cpu" if is_cuda(a) else a for a in args)
        kwargs = {k: "cpu" if is_cuda(v) else v for k, v in (kwargs or {}).items()}
        return function(*args, **kwargs)


class Event:
    """Reads the host's clock."""

    def __init__(self, enable_timing: bool = False):
        self.at = 0.0

    def record(self, stream: object = None) -> None:
        self.at = time.perf_counter()

    def query(self) -> bool:
        return False

    def elapsed_time(self, other: "Event") -> float:
        return 1e3 * (other.at - self.at)


class Profile(torch.profiler.profile):
    """Counts operations of the library and of PyTorch as kernels."""

    def __init__(self, activities: object = None, **options: object):
        super().__init__(activities=[torch.profiler.ProfilerActivity.CPU], **options)

    def events(self) -> list[types.SimpleNamespace]:
        return [
            types.SimpleNamespace(
                name=e.name,
                device_type=torch.autograd.DeviceType.CUDA,
                device_time=e.self_cpu_time_total,
            )
            for e in super().events()
            if e.name.startswith(("aten::", "dgcl_ops::"))
        ]


def properties(device: object = None) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        name=NAME,
        major=9,
        minor=0,
        multi_processor_count=1,
        total_memory=2**30,
        L2_cache_size=30_000,
    )


def cuda_functions() -> dict:
    from recorded import Recorder

    stream = types.SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "device": contextlib.nullcontext,
        "Event": Event,
        "synchronize": lambda device=None: None,
        "_sleep": lambda cycles: None,
        "get_device_properties": properties,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (9, 0),
        "get_arch_list": lambda: ["sm_90"],
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "memory_allocated": lambda device=None: 1_000_000,
        "max_memory_allocated": lambda device=None: 3_500_000,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda mode: None,
        "current_stream": lambda device=None: stream,
        "Stream": lambda device=None: stream,
        "stream": contextlib.nullcontext,
        "CUDAGraph": Recorder,
        "graph": lambda graph, **options: graph,
    }


def emulated() -> contextlib.AbstractContextManager:
    """Replaces the CPU kernels with the CUDA kernels inside the context."""
    from kernels.emulator import replace

    return replace.emulated_kernels("rehearsal")


def install(kernels: str) -> None:
    """Installs the stand-in for the rest of the process.

    Args:
        kernels: where to emulate kernels: "side" (where the library compares), "all" (everywhere) or "none".
    """
    sys.path.insert(0, str(TESTS))
    for name, stand_in in cuda_functions().items():
        setattr(torch.cuda, name, stand_in)
    torch.profiler.profile = Profile
    torch.compile = lambda function=None, **options: function  # compiling for a GPU needs one
    OnTheCpu().__enter__()
    try:
        import dgcl_ops
    except ImportError:  # a step that needs only PyTorch
        return
    from dgcl_ops import backend
    from dgcl_ops.doctor import compare, reporting

    serving = backend._serving
    compiled = {"implementation": "compiled", "reason": "pretended: the emulator runs the kernels"}
    backend._serving = lambda device, key: compiled if device == "cuda" else serving(device, key)
    reporting.driver_version = lambda: "580.0 (pretended)"
    assert dgcl_ops.backend_info()["devices"]["cuda"] == compiled
    if kernels == "side":
        compare.Target.kernels = lambda target: (
            emulated() if is_cuda(target.device) else contextlib.nullcontext()
        )
    elif kernels == "all":
        contextlib.ExitStack().enter_context(emulated())
