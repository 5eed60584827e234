"""Peak memory of a call.

"Extra memory" is the peak beyond the inputs, result included, of one call.
    CPU   each contender in a fresh process: inputs are built, a call of tiny size loads libraries and
          threads, freed heap is given back (malloc_trim), the kernel's high-water mark of resident
          memory is reset (/proc/self/clear_refs), and after one call VmHWM - VmRSS before it is read.
          A warm allocator would hide what it keeps for the next call; a fresh process cannot. glibc is
          told to take blocks above 64 KB from the system and to return them at once, for it would keep
          up to 64 MB of freed ones, more or less by chance. Good to about 2 MB. Without Linux's /proc
          nothing is measured, and the table says so.
    CUDA  torch.cuda.max_memory_allocated against memory_allocated before the call.
"""

import ctypes
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import torch

MEGABYTE = 1e6
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def memory_method(device: torch.device) -> str:
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
    """Bytes by which memory in use rises at most while the function runs; inputs exist already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kept = function()  # alive until the peak is read
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


def _answer(connection, function, arguments) -> None:
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(parameter, 1 << 16)
    connection.send(function(*arguments))
    connection.close()


def in_fresh_process(function: Callable, *arguments):
    """Calls a module-level function in a newly started Python and returns its result."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise RuntimeError(
            f"{function.__name__}{arguments}: its process failed, see above"
        ) from None
    finally:
        process.join()


def extra_memory(measure: Callable, device: torch.device, *arguments) -> int | None:
    """The result of measure(*arguments), in a fresh process on the CPU; None where it cannot be told."""
    if device.type == "cuda":
        return measure(*arguments)
    if memory_method(device).startswith("not"):
        return None
    return in_fresh_process(measure, *arguments)
