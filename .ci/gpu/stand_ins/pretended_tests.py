"""A pytest plugin for the rehearsal, `-p pretended_tests`: installs the pretended GPU in every test process.

Tests of device "cuda" run on CPU tensors. Tests of the compiled operators run on the emulated CUDA kernels. Tests that
need a driver are skipped by name.
"""

import contextlib
from collections.abc import Iterator

import pretended_gpu
import pytest

pretended_gpu.install("none")

NOT_REHEARSED = {
    "test_pytorch_sees_a_step_that_waits": "no stand-in detects a sync",
    "test_no_step_needs_values": "it checks the tensors' device",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if reason := NOT_REHEARSED.get(getattr(item, "originalname", item.name)):
            item.add_marker(pytest.mark.skip(reason=f"not rehearsed: {reason}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    on_cuda = parameters.get("device") == "cuda"
    emulated = on_cuda and parameters.get("implementation", "compiled") == "compiled"
    with pretended_gpu.emulated() if emulated else contextlib.nullcontext():
        return (yield)
