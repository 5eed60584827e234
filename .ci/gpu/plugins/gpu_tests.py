"""A pytest plugin, `-p gpu_tests`: runs the tests that need a GPU, most valuable first, each with a time limit.

DGCL_OPS_GPU_TESTS     a file that gets a line per test as soon as it ends: outcome, seconds, test, error
DGCL_OPS_GPU_SECONDS   time limit per test; a slower test ends its process, and pytest-xdist starts another one

An error that makes the device's context unusable also ends the process, since every later test in it would fail.
"""

import csv
import faulthandler
import inspect
import os
import sys
from collections.abc import Iterator

import pytest

NEEDED = "needs a GPU"  # the skip reason of tests for CUDA only
ASKS = "torch.cuda.is_available()"  # in the source of tests that behave differently with a GPU
FIRST = (  # search, contrast, copies, gradients
    *("knn_topk", "knn_density", "density_contrast", "gather_rows", "memory_push"),
    *("partition_keys", "finite_rows", "leading_rows", "draw_negatives", "class_table"),
    *("sum_rows", "silhouette_sums", "gradients"),
)
LOST = (
    "CUDA error",
    "CUBLAS_STATUS",
    "cudaErr",
    "an illegal memory access",
    "unspecified launch failure",
)


def needs_gpu(item: pytest.Item) -> bool:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if parameters.get("device") == "cuda":
        return parameters.get("implementation") != "emulated"
    if any(NEEDED in mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif")):
        return True
    return ASKS in inspect.getsource(item.function)


def rank(item: pytest.Item) -> int:
    stem = item.path.stem.removeprefix("test_")
    return FIRST.index(stem) if stem in FIRST else len(FIRST)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = sorted((item for item in items if needs_gpu(item)), key=rank)
    config.hook.pytest_deselected(items=[item for item in items if not needs_gpu(item)])
    items[:] = chosen


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


class Limit:
    """Ends a process when its test exceeds the time limit or loses the device."""

    def __init__(self, seconds: float, alone: bool):
        self.seconds, self.alone, self.lost = seconds, alone, False

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        if self.seconds:
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=sys.__stderr__)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()
            if self.lost and not self.alone:
                os._exit(1)  # the reports have been sent

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and any(word in str(report.longrepr) for word in LOST):
            self.lost = True


class Outcomes:
    """Writes and flushes a line for each test that has ended."""

    def __init__(self, path: str):
        self.file = open(path, "a", newline="")  # noqa: SIM115 (for as long as pytest runs)
        self.lines = csv.writer(self.file, lineterminator="\n")

    def write(self, outcome: str, seconds: float, name: str, error: str = "") -> None:
        self.lines.writerow([outcome, f"{seconds:.2f}", name, error[:300]])
        self.file.flush()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Records a file that cannot be imported, for example because a package is missing."""
        if report.failed:
            lines = str(report.longrepr).strip().splitlines() or ["?"]
            self.write("not collected", 0.0, report.nodeid, lines[-1])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        details, error = report.longrepr, ""
        if report.failed:
            crash = getattr(details, "reprcrash", None)
            error = next(iter((crash.message if crash else str(details)).strip().splitlines()), "?")
        elif report.skipped:
            error = str(details[2] if isinstance(details, tuple) else details)
        self.write(report.outcome, report.duration, report.nodeid, error)


def pytest_configure(config: pytest.Config) -> None:
    controls = not is_worker(config)
    distributed = controls and getattr(config.option, "numprocesses", None)
    if not distributed:
        seconds = float(os.environ.get("DGCL_OPS_GPU_SECONDS", "0"))
        config.pluginmanager.register(Limit(seconds, alone=controls), "gpu-limit")
    if controls and (path := os.environ.get("DGCL_OPS_GPU_TESTS")):
        config.pluginmanager.register(Outcomes(path), "gpu-outcomes")
