"""Peak memory of a call.

"Extra memory" is the peak of one call beyond its inputs. It includes the result.

CPU   Each contender runs in a fresh process, since a warm allocator would hide what it kept from earlier calls.
      1. Build the inputs. A call of tiny size loads libraries and starts threads.
      2. Return freed heap (malloc_trim) and reset the high-water mark of resident memory (/proc/self/clear_refs).
      3. Call once. The extra memory is VmHWM minus the VmRSS from before the call.
      glibc is set to map blocks above 64 KB and to return them at once. By default it keeps up to 64 MB of freed
      blocks, an amount that varies by chance. The figure is accurate to about 2 MB. Without Linux's /proc nothing is
      measured.
CUDA  torch.cuda.max_memory_allocated minus memory_allocated before the call.
"""

import ctypes
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

MEGABYTE = 1e6
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def memory_method(device: torch.device) -> str:
    """Returns the column "memory_method"."""
    if device.type == "cuda":
        return "torch.cuda.max_memory_allocated"
    if os.access("/proc/self/clear_refs", os.W_OK):
        return "VmHWM, fresh process"
    return "not measured: no /proc/self/clear_refs"


def _resident_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_beyond_inputs(function: Callable[[], object], device: torch.device) -> int:
    """Returns the largest rise of memory in use while the function runs, in bytes. Inputs must exist before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kept = function()  # keeps the result alive until the peak is read
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
        del kept
        return peak - before
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_bytes("VmRSS")
    kept = function()
    peak = _resident_bytes("VmHWM")
    del kept
    return max(0, peak - before)


def _answer(connection: Connection, function: Callable, arguments: tuple) -> None:
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(parameter, 1 << 16)
    connection.send(function(*arguments))
    connection.close()


def in_fresh_process(function: Callable, *arguments: Any) -> Any:
    """Calls a module-level function in a newly started Python and returns its result.

    Raises:
        RuntimeError: If the process ended without a result.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(
            f"{function.__name__}{arguments}: the process failed, see above"
        ) from None
    finally:
        process.join()


def extra_memory(measure: Callable, device: torch.device, *arguments: Any) -> int | None:
    """Returns measure(*arguments), from a fresh process on the CPU. None where memory cannot be measured."""
    if device.type == "cuda":
        return measure(*arguments)
    if memory_method(device).startswith("not"):
        return None
    return in_fresh_process(measure, *arguments)
