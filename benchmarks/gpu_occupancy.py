"""How many blocks of the search's kernels a GPU runs at a time, and how a plan divides a search among them.

Registers and static shared memory come from csrc/cuda/resources.csv, tile sizes from the sources.
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from gpu_devices import Device

CUDA = Path(__file__).resolve().parent.parent / "csrc" / "cuda"


WARP, SCHEDULERS, REGISTERS = 32, 4, 65536
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
NARROW_STEP = constant("knn/filter_tile.cuh", "kNarrowStep")
WIDE_STEP = constant("knn/filter_tile.cuh", "kWideStep")
FILTER_DEPTH = constant("knn/filter_tile.cuh", "kFilterDepth")
FILTER_THREADS = constant("knn/filter_tile.cuh", "kFilterThreads")
EXACT_QUERIES = constant("knn/exact.cuh", "kExactRows")
EXACT_COLUMNS, EXACT_ROW = 16, 1024  # kExactColumns<float>; bytes of kExactDepth columns
EXACT_THREADS = constant("knn/exact.cuh", "kExactThreads")
PADDING = 8  # elements, of rows in the filter's shared memory

# kernel -> dynamic shared memory of its launch, in bytes: kFilterShared, kExactShared
DYNAMIC = {
    f"knn_filter_kernel<{stored}, {step}>": FILTER_QUERIES * (FILTER_DEPTH + PADDING) * 2
    + 2 * FILTER_COLUMNS * (step + PADDING) * size
    + FILTER_DEPTH * 4
    for stored, size, step in (
        ("float", 4, NARROW_STEP),
        ("float", 4, WIDE_STEP),
        ("__nv_bfloat16", 2, WIDE_STEP),
        ("__half", 2, WIDE_STEP),
    )
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
        "threads": device.warps // warps,
        "blocks": device.blocks,
        "registers": REGISTERS // SCHEDULERS // each * SCHEDULERS // warps,
        "shared memory": device.shared // (round_up(shared, SHARED_UNIT) + RESERVED),
    }
    if shared > device.shared - RESERVED:
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


def filter_step(device: Device, size: int) -> int:
    """Returns the columns per step of a bank with elements of `size` bytes, as plan_filter chooses them."""
    if size < 4:
        return WIDE_STEP
    narrow, wide = (
        kernel_occupancy(device, filter_kernel(size, step))["blocks"]
        for step in (NARROW_STEP, WIDE_STEP)
    )
    return WIDE_STEP if wide >= narrow else NARROW_STEP


def filter_kernel(size: int, step: int) -> str:
    return f"knn_filter_kernel<{'float' if size == 4 else '__half'}, {step}>"


@dataclass(frozen=True)
class Division:
    """How a plan divides a search."""

    lists: float  # per query, on average
    balance: float  # the mean share of the resident blocks that have work; 1 is best


def quotient_up(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def resident_blocks(device: Device, kernel: str) -> int:
    return device.processors * kernel_occupancy(device, kernel)["blocks"]


def expected_tiles(problem: Problem) -> int:
    """Returns the host's upper bound."""
    return problem.classes * problem.queries // FILTER_QUERIES + problem.classes


def exact_division(device: Device, problem: Problem, kernel: str) -> Division:
    """As plan_parts divides it."""
    resident, tiles = resident_blocks(device, kernel), expected_tiles(problem)
    most = quotient_up(problem.bank, LEAST_SPLIT_ROWS)
    splits = min(quotient_up(resident, tiles), most, MOST_SPLITS)
    items = problem.classes * quotient_up(problem.queries, FILTER_QUERIES) * splits
    rounds = quotient_up(items, min(resident, tiles * splits))
    return Division(splits, items / (rounds * resident))


def filter_division(device: Device, problem: Problem, kernel: str) -> Division:
    """As plan_runs and filter_cut.cuh divide it, with full banks."""
    resident, expected = resident_blocks(device, kernel), expected_tiles(problem)
    tiles = problem.classes * quotient_up(problem.queries, FILTER_QUERIES)
    of_tile = quotient_up(problem.bank, FILTER_COLUMNS)
    run, least = quotient_up(tiles * of_tile, resident), LEAST_SPLIT_ROWS // FILTER_COLUMNS
    rounds = quotient_up(expected, resident)
    if of_tile <= least or 10 * rounds * resident <= 11 * expected:
        return Division(1, tiles / (quotient_up(run, of_tile) * resident))
    host_run = max(least, quotient_up(expected * of_tile, resident))
    splits = min(quotient_up(of_tile - 1, host_run) + 1, MOST_SPLITS)
    run = max(run, least, quotient_up(of_tile - 1, splits - 1))
    pieces = sum(
        (first + of_tile - 1) // run - first // run + 1
        for first in range(0, tiles * of_tile, of_tile)
    )
    return Division(pieces / tiles, tiles * of_tile / (run * resident))
