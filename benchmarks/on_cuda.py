"""How the benchmarks measure on CUDA.

Time     A busy loop of HOLD_CYCLES occupies the device until the host has enqueued the call, because in training the
         host runs ahead, too. Two events then measure device time without Python's overhead. `ahead` is False if the
         call syncs or enqueues too slowly; the time then includes the host's work.
Caches   Inputs rotate through several sets. Before a set is used again, L2 has seen COLD times its size of other data.
         So inputs come from memory, as in a training step.
TF32     Off, so that plain PyTorch computes in float32. Contenders named "TF32" turn it on.
Search   "dgcl_ops" filters with tensor cores (DGCL_OPS_CUDA_SEARCH=auto). "dgcl_ops, exact search" does not.
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
HOLD_CYCLES = 50_000_000  # at least 25 ms, longer than enqueuing a step takes
COLD = 2
SEARCH_PATHS = {"dgcl_ops": "auto", "dgcl_ops, exact search": "exact"}


class Timing(NamedTuple):
    """One timed call.

    Attributes:
        seconds: how long it took.
        result: what it returned.
        ahead: whether the host enqueued it before the device began. None on the CPU.
    """

    seconds: float
    result: object
    ahead: bool | None


def why_not(device: str) -> str | None:
    """Returns in one line why a device cannot be measured, or None."""
    reason = unusable(device)
    if reason is None and torch.device(device).type == "cuda":
        serving = backend_info()["devices"]["cuda"]
        if serving["implementation"] != "compiled":
            reason = f"device {device!r} has no compiled kernels: {serving['reason']}"
    return reason


def device_seconds(function: Callable[[], object], device: torch.device) -> Timing:
    """Measures device time of one call."""
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


def host_column(ahead: list[bool]) -> str:
    """Returns the column "host": whether the host was ahead of the device in every call."""
    return "ahead" if all(ahead) else "in the way"


# ---- inputs that are in no cache ----------------------------------------------------------------------


def input_sets(size: int, device: torch.device) -> int:
    """Returns how many sets of `size` bytes to rotate through. One on the CPU."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return 1 + math.ceil(COLD * cache / max(1, size))


def rotation(first: object, copy: Callable, count: int) -> Iterator:
    """Cycles through the first set and count - 1 copies of it."""
    return itertools.cycle([first, *(copy(first) for _ in range(count - 1))])


# ---- settings -----------------------------------------------------------------------------------------


def search_path(path: str) -> contextlib.AbstractContextManager:
    """Selects a search path inside the context: "auto" or "exact"."""
    return environment(SEARCH, path)


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allows or forbids TF32 in matrix products inside the context."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def facts(device: torch.device) -> dict[str, object]:
    """Returns the columns that describe a CUDA device."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "capability": f"{properties.major}.{properties.minor}",
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        "allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "l2_mb": round(properties.L2_cache_size / 1e6, 1),
    }


def described(row: dict) -> str:
    """Describes the machine for a table's title."""
    if "capability" not in row:
        return (
            f"{row['threads']} threads, {row['cpu_capability']}, {row['cpu']}, torch {row['torch']}"
        )
    tf32_state = "on everywhere" if row["allow_tf32"] else "off unless named"
    return (
        f"{row['device']} (compute capability {row['capability']}, L2 {row['l2_mb']:.0f} MB), driver "
        f"{row['driver']}, CUDA {row['cuda']}, torch {row['torch']}; TF32 {tf32_state}; "
        f"{row['input_sets']} sets of inputs"
    )
