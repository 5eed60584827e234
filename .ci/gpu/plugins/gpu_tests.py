"""A pytest plugin, `-p gpu_tests`: the tests that need a GPU, most valuable first, each with a time limit.

DGCL_OPS_GPU_TESTS     a file that gets a line for each test as soon as it ends: outcome, seconds, test, error
DGCL_OPS_GPU_SECONDS   of one test; a test that takes longer ends its process, and pytest-xdist starts another

After an error that leaves the device's context unusable every later test of the process would fail. So the process ends
then, too.
"""

import csv
import faulthandler
import inspect
import os
import sys

import pytest

NEEDED = "needs a GPU"  # the reason of every skip that this plugin looks for
ASKS = "torch.cuda.is_available()"  # a test that does something else on a machine with a GPU
FIRST = (  # search, contrast, copies, gradients
    *("knn_topk", "knn_density", "density_contrast", "gather_rows", "memory_push", "class_counts"),
    *("silhouette_sums", "gradients"),
)
LOST = (
    "CUDA error",
    "CUBLAS_STATUS",
    "cudaErr",
    "an illegal memory access",
    "unspecified launch failure",
)


def needs_gpu(item) -> bool:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if parameters.get("device") == "cuda":
        return parameters.get("implementation") != "emulated"
    if any(NEEDED in mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif")):
        return True
    return ASKS in inspect.getsource(item.function)


def rank(item) -> int:
    stem = item.path.stem.removeprefix("test_")
    return FIRST.index(stem) if stem in FIRST else len(FIRST)


def pytest_collection_modifyitems(config, items):
    chosen = sorted((item for item in items if needs_gpu(item)), key=rank)
    config.hook.pytest_deselected(items=[item for item in items if not needs_gpu(item)])
    items[:] = chosen


def is_worker(config) -> bool:
    return hasattr(config, "workerinput")


class Limit:
    """Ends a process whose test takes too long, or lost the device."""

    def __init__(self, seconds: float, alone: bool):
        self.seconds, self.alone, self.lost = seconds, alone, False

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        if self.seconds:
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=sys.__stderr__)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()
            if self.lost and not self.alone:
                os._exit(1)  # the reports have been sent

    def pytest_runtest_logreport(self, report):
        if report.failed and any(word in str(report.longrepr) for word in LOST):
            self.lost = True


class Outcomes:
    """A line for each test that has ended, flushed."""

    def __init__(self, path: str):
        self.file = open(path, "a", newline="")  # noqa: SIM115 (for as long as pytest runs)
        self.lines = csv.writer(self.file, lineterminator="\n")

    def write(self, outcome: str, seconds: float, name: str, error: str = "") -> None:
        self.lines.writerow([outcome, f"{seconds:.2f}", name, error[:300]])
        self.file.flush()

    def pytest_collectreport(self, report):
        """A file that cannot be imported, for example because a package is missing."""
        if report.failed:
            lines = str(report.longrepr).strip().splitlines() or ["?"]
            self.write("not collected", 0.0, report.nodeid, lines[-1])

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.outcome == "passed":
            return
        details, error = report.longrepr, ""
        if report.failed:
            crash = getattr(details, "reprcrash", None)
            error = next(iter((crash.message if crash else str(details)).strip().splitlines()), "?")
        elif report.skipped:
            error = str(details[2] if isinstance(details, tuple) else details)
        self.write(report.outcome, report.duration, report.nodeid, error)


def pytest_configure(config):
    controls = not is_worker(config)
    distributed = controls and getattr(config.option, "numprocesses", None)
    if not distributed:
        seconds = float(os.environ.get("DGCL_OPS_GPU_SECONDS", "0"))
        config.pluginmanager.register(Limit(seconds, alone=controls), "gpu-limit")
    if controls and (path := os.environ.get("DGCL_OPS_GPU_TESTS")):
        config.pluginmanager.register(Outcomes(path), "gpu-outcomes")
