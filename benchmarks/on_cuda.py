"""What the benchmarks do differently on CUDA. Written with care and tried on stand-ins: no GPU has run it yet.

Time     The device is kept busy (HOLD_CYCLES) until the host has enqueued the call, as it is in training, where the
         host runs ahead; two events then enclose the device's own time, without Python's. `ahead` says whether that
         worked: it does not for whoever makes the host wait, and its time then holds what the host did meanwhile.
Caches   Each run gets another set of inputs, of so many that the L2 cache has seen COLD times its size of others
         before a set comes round again: in a step, too, inputs come from memory.
TF32     Off, so that plain PyTorch computes in float32 as well. Users may have it on: contenders named so do.
Search   "dgcl_ops" takes tensor cores as a filter (DGCL_OPS_CUDA_SEARCH=auto), "dgcl_ops, exact search" none.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from dgcl_ops import backend_info
from dgcl_ops.doctor.compare import SEARCH, environment
from dgcl_ops.doctor.reporting import driver_version, unusable

COLUMNS = ("capability", "driver", "cuda", "allow_tf32", "l2_mb", "input_sets", "host")
HOLD_CYCLES = 50_000_000  # 25 ms and more: longer than enqueuing a step takes
COLD = 2
SEARCH_PATHS = {"dgcl_ops": "auto", "dgcl_ops, exact search": "exact"}


class Timing(NamedTuple):
    seconds: float
    result: object
    ahead: bool | None  # None on the CPU


def why_not(device: str) -> str | None:
    """Why nothing can be measured on the device, in a line."""
    reason = unusable(device)
    if reason is None and torch.device(device).type == "cuda":
        serving = backend_info()["devices"]["cuda"]
        if serving["implementation"] != "compiled":
            reason = f"device {device!r} cannot be measured: {serving['reason']}"
    return reason


def device_seconds(function: Callable[[], object], device: torch.device) -> Timing:
    """How long the device works on one call."""
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(HOLD_CYCLES)
        begin.record()
        result = function()
        end.record()
        ahead = not begin.query()
        torch.cuda.synchronize()
        return Timing(begin.elapsed_time(end) / 1e3, result, ahead)


def host_told(ahead: list[bool]) -> str:
    return "ahead" if all(ahead) else "in the way"


# ---- inputs that no cache holds -----------------------------------------------------------------------


def input_sets(size: int, device: torch.device) -> int:
    """How many sets of `size` bytes to go through; one on the CPU, whose contenders have always been measured so."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return 1 + math.ceil(COLD * cache / max(1, size))


def rotation(first, copy: Callable, count: int) -> Iterator:
    """The first set and count - 1 copies of it, in turn without end."""
    return itertools.cycle([first, *(copy(first) for _ in range(count - 1))])


# ---- settings -----------------------------------------------------------------------------------------


def search_path(path: str):
    return environment(SEARCH, path)


@contextlib.contextmanager
def tf32(allowed: bool):
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def facts(device: torch.device) -> dict[str, object]:
    """What a row says beside the machine's description."""
    found = torch.cuda.get_device_properties(device)
    return {
        "capability": f"{found.major}.{found.minor}",
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        "allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "l2_mb": round(found.L2_cache_size / 1e6, 1),
    }


def described(row: dict) -> str:
    """The machine, for a table's title."""
    if "capability" not in row:
        return (
            f"{row['threads']} threads, {row['cpu_capability']}, {row['cpu']}, torch {row['torch']}"
        )
    tf32_told = "on everywhere" if row["allow_tf32"] else "off but where a name says so"
    return (
        f"{row['device']} (compute capability {row['capability']}, L2 {row['l2_mb']:.0f} MB), driver "
        f"{row['driver']}, CUDA {row['cuda']}, torch {row['torch']}; TF32 {tf32_told}; "
        f"{row['input_sets']} sets of inputs in turn"
    )
