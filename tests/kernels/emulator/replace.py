"""Replaces the CPU kernels with the emulated CUDA kernels while a test runs."""

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
        pytest.skip("the emulator needs csrc/, which is missing here")
    build.load("plain")
    return {op: getattr(getattr(torch.ops, build.NAMESPACE), op) for op in _registry.FALLBACKS}


@contextlib.contextmanager
def emulated_kernels(name: str = ""):
    """torch.ops.dgcl_ops.* runs the CUDA kernels on CPU tensors. Autograd and fake kernels are unchanged.

    `name` chooses the schedule. It differs between tests, but is always the same for a test.
    """
    replacements = operators()
    seed = zlib.crc32(name.encode())
    schedule = build.SCHEDULES[seed % len(build.SCHEDULES)]
    print(f"emulator: schedule {schedule}, seed {seed}")  # pytest shows it if a test fails
    emulator = build.load("plain")
    emulator.reset()
    emulator.configure(schedule, seed, shared_kilobytes=build.SHARED_KILOBYTES[schedule])
    library = torch.library.Library("dgcl_ops", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # PyTorch warns that kernels are replaced, as intended
            for op, kernel in replacements.items():
                library.impl(op, kernel, "CPU", allow_override=True)
        yield
    finally:
        library._destroy()
