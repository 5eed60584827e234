"""Fixtures shared by all tests: all implementations, both devices, the same random numbers each run."""

import os
import sys
from collections import Counter
from pathlib import Path

# Read when torch is imported. Waiting threads would otherwise spin on cores that other test processes need.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis
import pytest
import torch

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
# The tests that matter to users: `make test` runs these folders, except for tests marked kernels or long.
# project/test_docs.py is also marked core.
CORE = ("ops", "loss", "bank", "tools", "examples")

hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=int(os.environ.get("DGCL_OPS_EXAMPLES", "25")),
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser):
    text = "every N-th file from the I-th on, all tests marked core, and those marked kernels in fewer schedules"
    parser.addoption("--part", type=int, nargs=2, metavar=("I", "N"), default=(0, 1), help=text)


def files_left(config) -> set[Path]:
    """The files that --part leaves to other parts."""
    part, parts = config.getoption("--part", default=(0, 1))
    files = sorted(file for file in TESTS.rglob("test_*.py") if file.parent.name != "kernels")
    return {file for i, file in enumerate(files) if i % parts != part % parts}


def leaves_schedule(config, item) -> bool:
    """Whether --part leaves this schedule of the emulator to another part. All parts run "random"."""
    part, parts = config.getoption("--part", default=(0, 1))
    in_turn, callspec = ("sequential", "reverse"), getattr(item, "callspec", None)
    schedule = callspec and callspec.params.get("schedule")
    return schedule in in_turn and in_turn.index(schedule) % parts != part % parts


def pytest_collection_modifyitems(config, items):
    for item in items:
        if TESTS not in item.path.parents:
            continue
        folder = item.path.relative_to(TESTS).parts[0]
        implementation = getattr(item, "callspec", None) and item.callspec.params.get(
            "implementation"
        )
        if folder == "kernels" or implementation == "emulated":
            item.add_marker("kernels")
        if folder in CORE and not any(
            item.get_closest_marker(name) for name in ("kernels", "long")
        ):
            item.add_marker("core")
    left = files_left(config)
    of_another_part = [
        item
        for item in items
        if leaves_schedule(config, item)
        or (
            item.path in left
            and not any(item.get_closest_marker(name) for name in ("kernels", "core"))
        )
    ]
    if of_another_part:
        config.hook.pytest_deselected(items=of_another_part)
        items[:] = [item for item in items if item not in set(of_another_part)]


@pytest.fixture(autouse=True)
def repeatable():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Samples are small, so one thread is enough. test_relations.py checks that the number changes nothing."""
    torch.set_num_threads(1)


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return request.param


@pytest.fixture(params=["compiled", "reference", "emulated"])
def implementation(request):
    """The module under test. All implementations are compared with the same oracle.

    "emulated" is the public module with the CPU kernels replaced by the CUDA kernels, run by the emulator.
    """
    if request.param == "reference":
        from dgcl_ops import reference

        yield reference
        return
    from dgcl_ops import ops

    if request.param == "compiled":
        yield ops
        return
    if "device" in request.fixturenames and request.getfixturevalue("device") != "cpu":
        pytest.skip("the emulator takes CPU tensors")
    from kernels.emulator import replace

    with replace.emulated_kernels(request.node.nodeid):
        yield ops


@pytest.fixture
def checks_values(request, implementation):
    """For tests of values that the CPU rejects. CUDA clamps or skips such values, because a check would sync."""
    on_cuda = "device" in request.fixturenames and request.getfixturevalue("device") == "cuda"
    if request.node.callspec.params["implementation"] == "emulated" or on_cuda:
        pytest.skip("CUDA kernels do not refuse values")


def pytest_terminal_summary(terminalreporter):
    """Counts skips by reason. pytest's own list has a line for each of a hundred functions."""
    left = sorted(str(file.relative_to(TESTS)) for file in files_left(terminalreporter.config))
    if left:
        words = "not this time: tests that are marked neither core nor kernels in"
        terminalreporter.write_line(f"{words} {', '.join(left)}")
    skipped = terminalreporter.stats.get("skipped", [])
    for reason, count in Counter(report.longrepr[2] for report in skipped).most_common():
        terminalreporter.write_line(f"SKIPPED [{count}] {reason.removeprefix('Skipped: ')}")
