"""Puts the emulated CUDA kernels in the place of the CPU's, for as long as a test runs."""

import contextlib
import functools
import warnings
import zlib

import pytest
import torch

from . import build


@functools.cache
def operators() -> dict:
    """Every operator of the library, with its emulated kernel. Builds the kernels on first use."""
    from dgcl_ops.ops import _registry

    if not build.CSRC.exists():
        pytest.skip("the emulator needs csrc/, and these tests stand alone")
    build.load("plain")
    return {op: getattr(getattr(torch.ops, build.NAMESPACE), op) for op in _registry.FALLBACKS}


@contextlib.contextmanager
def emulated_kernels(name: str = ""):
    """torch.ops.dgcl_ops.* runs the CUDA kernels on CPU tensors, autograd and fake kernels as ever.

    `name` chooses the schedule: tests differ in it, and each always has the same.
    """
    replacements = operators()
    seed = zlib.crc32(name.encode())
    schedule = build.SCHEDULES[seed % len(build.SCHEDULES)]
    print(f"emulator: schedule {schedule}, seed {seed}")  # pytest shows it where a test fails
    emulator = build.load("plain")
    emulator.reset()
    emulator.configure(schedule, seed)
    library = torch.library.Library("dgcl_ops", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that kernels are replaced is the point
            for op, kernel in replacements.items():
                library.impl(op, kernel, "CPU", allow_override=True)
        yield
    finally:
        library._destroy()
