"""What a search asks of PyTorch's allocator and of CUDA's runtime, counted by the profiler and by the emulator."""

from collections import Counter

import pytest
import torch
from oracles import integers, random_rows

from kernels.emulator import build, replace

# A search counts the blocks of three kernels: two filters and the exact search. The wide filter does not fit on the
# small device, so only two kernels are prepared there.
ONCE_PER_DEVICE = {
    "cudaFuncSetAttribute": (2, 3),
    "cudaOccupancyMaxActiveBlocksPerMultiprocessor": (2, 3),
    "cudaDeviceGetAttribute": (6, 6),
}
SMALL, MIDDLE, LARGE = 100, 164, 228  # KB of shared memory per multiprocessor


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


@pytest.mark.parametrize(("size", "column"), [(SMALL, 0), (LARGE, 1)])
def test_a_device_is_asked_once(emulator, size, column):
    emulator.configure("sequential", shared_kilobytes=size)
    search("knn_topk")
    calls = emulator.runtime_calls()
    for name, counts in ONCE_PER_DEVICE.items():
        assert calls[name] == counts[column], name
    search("knn_topk", dim=24)
    search("knn_density")
    later = emulator.runtime_calls()
    assert {name: later[name] for name in ONCE_PER_DEVICE} == {
        name: calls[name] for name in ONCE_PER_DEVICE
    }
    emulator.reset()  # another device
    search("knn_topk")
    assert emulator.runtime_calls() == calls


def barriers_of_the_filter(emulator, size: int, dtype: torch.dtype) -> int:
    """Each step of a tile over columns passes two. One query tile and one bank tile, so nothing is split."""
    emulator.configure("sequential", multiprocessors=1, shared_kilobytes=size)
    emulator.reset()
    bank = random_rows(100, 256, dtype=dtype, seed=2)
    queries = random_rows(5, 256, seed=1)
    replace.operators()["knn_topk"](queries, bank, 8, "dot", None, None, False, False)
    (passed,) = (n for name, n in emulator.passed_barriers().items() if "knn_filter" in name)
    return passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_wide_steps_where_they_cost_no_block(emulator, dtype):
    """float32 rows take 64 columns at a time only if as many blocks fit as with 32. 16-bit rows always do."""
    small, middle, large = (
        barriers_of_the_filter(emulator, size, dtype) for size in (SMALL, MIDDLE, LARGE)
    )
    steps = 8 - 4 if dtype == torch.float32 else 0
    assert small - large == middle - large == 2 * steps


def test_a_device_that_is_too_small(emulator):
    emulator.configure("sequential", shared_kilobytes=50)
    with pytest.raises(RuntimeError, match="knn_topk: CUDA launch failed: invalid configuration"):
        search("knn_topk")


def test_the_plan_follows_the_device(emulator):
    """With more multiprocessors the bank is split, although the kernels are known from the other device."""
    barriers = []
    for multiprocessors in (1, 40):
        emulator.configure("sequential", multiprocessors=multiprocessors)
        emulator.reset()
        search("knn_topk", dim=8, rows=2100)
        barriers.append(sum(emulator.passed_barriers().values()))
    assert barriers[0] < barriers[1]
