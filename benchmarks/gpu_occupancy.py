"""Two GPUs, and how many blocks of the search's kernels each runs at a time. gpu_estimate.py uses it.

Registers and static shared memory come from csrc/cuda/resources.csv, tile sizes from the sources.
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

CUDA = Path(__file__).resolve().parent.parent / "csrc" / "cuda"


@dataclass(frozen=True)
class Device:
    """Published peaks of one GPU. L2's bytes_per_clock is from the A100 white paper, and assumed for the H100."""

    name: str
    arch: str
    processors: int
    clock: float  # Hz, the clock of the tensor peak
    fp32: float  # FLOP/s
    tf32: float  # dense
    fp16: float
    mma_sync: float  # fraction of the tensor peak that mma.sync can reach
    memory: float  # B/s
    shared: int  # bytes per multiprocessor
    shared_block: int  # largest size per block, bytes
    bytes_per_clock: int = 5120

    @property
    def cache(self) -> float:
        """L2 bandwidth, B/s."""
        return self.bytes_per_clock * self.clock


# fmt: off
A100 = Device("A100 SXM 80 GB", "sm_80", 108, 1.41e9, 19.5e12, 156e12, 312e12, 1.0, 2.039e12, 164 << 10, 163 << 10)
H100 = Device("H100 SXM", "sm_90", 132, 1.83e9, 66.9e12, 494.7e12, 989.4e12, 0.6, 3.35e12, 228 << 10, 227 << 10)
# fmt: on
WARP, SCHEDULERS, REGISTERS, WARPS, BLOCKS = 32, 4, 65536, 64, 32
SHARED_WIDTH = 128  # bytes of shared memory per clock
RESERVED, SHARED_UNIT, REGISTER_UNIT = 1024, 128, 256  # shared memory of a block; granularities


@dataclass(frozen=True)
class Problem:
    """`classes` banks of `bank` rows, with `queries` each."""

    name: str
    classes: int
    queries: int
    bank: int
    dim: int


def constant(file: str, name: str) -> int:
    """Reads an integer constant from the sources."""
    found = re.search(rf"constexpr int .*?\b{name} = (\d+)", (CUDA / file).read_text())
    if not found:
        raise LookupError(f"{file} has no {name}")
    return int(found[1])


FILTER_QUERIES = constant("knn/search.h", "kItemQueries")
LEAST_SPLIT_ROWS = constant("knn/search.h", "kLeastSplitRows")
MOST_SPLITS = constant("knn/search.h", "kMostSplits")
FILTER_COLUMNS = constant("knn/filter_tile.cuh", "kFilterColumns")
FILTER_STEP = constant("knn/filter_tile.cuh", "kFilterStep")
FILTER_DEPTH = constant("knn/filter_tile.cuh", "kFilterDepth")
FILTER_THREADS = constant("knn/filter_tile.cuh", "kFilterThreads")
EXACT_QUERIES = constant("knn/exact.cuh", "kExactRows")
EXACT_COLUMNS, EXACT_ROW = 16, 1024  # kExactColumns<float>; bytes of kExactDepth columns
EXACT_THREADS = constant("knn/exact.cuh", "kExactThreads")
PADDING = 8  # elements, of rows in the filter's shared memory

# kernel -> dynamic shared memory of its launch, in bytes: kFilterShared, kExactShared
DYNAMIC = {
    f"knn_filter_kernel<{stored}>": FILTER_QUERIES * (FILTER_DEPTH + PADDING) * 2
    + 2 * FILTER_COLUMNS * (FILTER_STEP + PADDING) * size
    + FILTER_DEPTH * 4
    for stored, size in (("float", 4), ("__nv_bfloat16", 2), ("__half", 2))
} | {
    f"knn_exact_kernel<{kind}>": (EXACT_QUERIES + 2 * columns) * EXACT_ROW
    for kind, columns in (("float, false", EXACT_COLUMNS), ("double, false", EXACT_COLUMNS // 2))
}


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def occupancy(device: Device, registers: int, threads: int, shared: int) -> dict:
    """Returns blocks and warps per multiprocessor, and what limits them."""
    warps = -(-threads // WARP)
    each = round_up(max(registers, 1) * WARP, REGISTER_UNIT)
    limits = {
        "threads": WARPS // warps,
        "blocks": BLOCKS,
        "registers": REGISTERS // SCHEDULERS // each * SCHEDULERS // warps,
        "shared memory": device.shared // (round_up(shared, SHARED_UNIT) + RESERVED),
    }
    if shared > device.shared_block:
        limits["shared memory"] = 0
    blocks = min(limits.values())
    by = min(limits, key=limits.get)
    return {"blocks": blocks, "warps": blocks * warps, "limit": by}


def resources() -> dict[tuple[str, str], dict]:
    with (CUDA / "resources.csv").open(newline="") as file:
        return {(row["kernel"], row["arch"]): row for row in csv.DictReader(file)}


def kernel_occupancy(device: Device, kernel: str) -> dict:
    row = resources()[kernel, device.arch]
    shared = int(row["static_shared"]) + DYNAMIC.get(kernel, 0)
    registers = int(row["registers"])
    result = occupancy(device, registers, int(row["threads"]), shared)
    return {"registers": registers, "shared": shared, **result}


def parts(device: Device, problem: Problem, kernel: str) -> int:
    """Returns the number of parts that plan_knn_search splits the bank into."""
    resident = device.processors * kernel_occupancy(device, kernel)["blocks"]
    places = problem.classes * problem.queries // FILTER_QUERIES + problem.classes
    return max(1, min(-(-resident // places), -(-problem.bank // LEAST_SPLIT_ROWS), MOST_SPLITS))


def balance(device: Device, problem: Problem, kernel: str) -> float:
    """Returns the mean fraction of resident blocks that have work, as plan_knn_search divides it. 1 is best."""
    resident = device.processors * kernel_occupancy(device, kernel)["blocks"]
    places = problem.classes * problem.queries // FILTER_QUERIES + problem.classes
    splits = parts(device, problem, kernel)
    items = problem.classes * -(-problem.queries // FILTER_QUERIES) * splits
    rounds = -(-items // min(resident, places * splits))
    return items / (rounds * resident)
