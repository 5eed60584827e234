"""No call leaks memory. Measured after 20,000 small calls of every operator, and after 2,000 steps of the loss.

leaks.py runs a process for each case. glibc's count of malloc() is exact: without a leak it stays at 0 bytes, even on a
busy machine. Resident memory is coarse, but includes what malloc() does not count: a fragmented heap, and pages mapped
in other ways. Python's small objects have their own allocator.
"""

import json
import subprocess
import sys

import leaks
import pytest
import torch

import dgcl_ops

# Bytes per call. The smallest block of malloc() takes 32, so one leak per call shows as 32 or more. Observed: 0 for a
# step of the loss and all but three operators, for which it was up to 1,200 bytes in total.
ALLOCATED_PER_CALL = 16
# Bytes in total: stacks, page tables, Python's arenas. Observed: up to 0.5 MB without a leak, and 50 to 70 MB when 48
# leaked bytes per call kept freed memory from being reused.
RESIDENT = 2 << 20
# Blocks per call: a leak has at least one. Observed: up to 0.2 in a step of the loss, while caches still fill.
PYTHON_PER_CALL = 0.5

SERVED = dgcl_ops.backend_info()["devices"]["cpu"]["implementation"]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        None in (leaks.allocated_bytes(), leaks.resident_bytes()),
        reason="memory is counted by glibc's mallinfo2 and Linux's statm",
    ),
    pytest.mark.skipif(SERVED != "compiled", reason="counts the memory of the compiled operators"),
]


@pytest.fixture(scope="module")
def grown() -> dict[str, dict]:
    """The growth of each case. Two processes share the cases."""
    names = list(leaks.CASES)
    command = [sys.executable, leaks.__file__]
    workers = [
        subprocess.Popen([*command, *names[part::2]], stdout=subprocess.PIPE, text=True)
        for part in range(2)
    ]
    lines = [line for worker in workers for line in worker.communicate()[0].splitlines()]
    assert not any(worker.returncode for worker in workers)
    return {growth["case"]: growth for growth in map(json.loads, lines)}


def faults(growth: dict) -> list[str]:
    """What has grown by more than is allowed."""
    most = {
        "allocated": ALLOCATED_PER_CALL * growth["calls"],
        "resident": RESIDENT,
        "python": PYTHON_PER_CALL * growth["calls"],
    }
    return [what for what, limit in most.items() if growth[what] > limit]


def test_every_operator_is_counted():
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    every = [op for op in torch._C._dispatch_get_all_op_names() if op.startswith("dgcl_ops::")]
    names = {op: op.removeprefix("dgcl_ops::").partition(".")[0] for op in every}
    assert set(names.values()) == set(leaks.OPERATORS)
    differentiable = {names[op] for op in every if has_kernel(op, "Autograd")}
    # The backward operators only raise the error about double backward.
    forward = {name for name in differentiable if not name.endswith("_backward")}
    assert forward == set(leaks.GRADIENTS)


@pytest.mark.parametrize("case", [name for name in leaks.CASES if not name.startswith("planted")])
def test_nothing_is_lost(grown, case):
    assert not faults(grown[case]), grown[case]


@pytest.mark.parametrize(
    ("leak", "found"),
    [
        ("nothing", []),
        ("32 bytes of malloc", ["allocated"]),
        ("a Python object", ["python"]),
        ("a page", ["resident", "python"]),
    ],
)
def test_a_planted_leak_is_seen(grown, leak, found):
    growth = grown[f"planted: {leak}"]
    assert faults(growth) == found, growth


def test_the_planted_leak_is_measured_exactly(grown):
    """32 bytes, and 16 for malloc's own data. The tolerance is for noise."""
    growth = grown["planted: 32 bytes of malloc"]
    assert growth["allocated"] / growth["calls"] == pytest.approx(48, abs=1)
