"""What a search asks of PyTorch's allocator and of CUDA's runtime, counted by the profiler and by the emulator."""

from collections import Counter

import pytest
import torch
from oracles import integers, random_rows

from kernels.emulator import build, replace

ONCE_PER_DEVICE = (
    "cudaFuncSetAttribute",
    "cudaOccupancyMaxActiveBlocksPerMultiprocessor",
    "cudaDeviceGetAttribute",
)
# A search uses two kernels whose blocks it counts: the filter and the exact search.
COUNTED_KERNELS = 2


@pytest.fixture
def emulator():
    module = build.load("plain")
    module.configure("sequential")
    module.reset()
    return module


def search(op: str, dim: int = 40, rows: int = 400, unit_bank: bool = True) -> None:
    queries, bank = random_rows(70, dim, seed=1), random_rows(2, rows, dim, seed=2)
    k = 8 if op == "knn_topk" else [4, 8]
    tail = (False, unit_bank) if op == "knn_topk" else (False, False, unit_bank)
    offsets, counts = integers([0, 30, 70]), integers([rows, 300])
    replace.operators()[op](queries, bank, k, "cosine", offsets, counts, *tail)


@pytest.mark.parametrize("unit_bank", [False, True])
@pytest.mark.parametrize(("op", "outputs"), [("knn_topk", 2), ("knn_density", 1)])
def test_one_scratch_tensor_and_one_clear(emulator, op, outputs, unit_bank):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        search(op, unit_bank=unit_bank)
    events = Counter(event.name for event in profile.events())
    assert events["aten::new_empty"] == 1 + outputs
    assert events["aten::new_zeros"] == events["aten::zero_"] == 0
    assert emulator.runtime_calls()["cudaMemsetAsync"] == 1


def test_a_device_is_asked_once(emulator):
    search("knn_topk")
    calls = emulator.runtime_calls()
    assert {name: calls[name] for name in ONCE_PER_DEVICE} == dict.fromkeys(
        ONCE_PER_DEVICE, COUNTED_KERNELS
    )
    search("knn_topk", dim=24)
    search("knn_density")
    later = emulator.runtime_calls()
    assert {name: later[name] for name in ONCE_PER_DEVICE} == {
        name: calls[name] for name in ONCE_PER_DEVICE
    }
    emulator.reset()  # another device
    search("knn_topk")
    assert emulator.runtime_calls() == calls


def test_the_plan_follows_the_device(emulator):
    """With more multiprocessors the bank is split, although the kernels are known from the other device."""
    barriers = []
    for multiprocessors in (1, 40):
        emulator.configure("sequential", multiprocessors=multiprocessors)
        emulator.reset()
        search("knn_topk", dim=8, rows=2100)
        barriers.append(sum(emulator.passed_barriers().values()))
    assert barriers[0] < barriers[1]
