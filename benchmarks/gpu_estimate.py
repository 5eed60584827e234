"""Bounds the speed of the search's CUDA kernels on two GPUs: arithmetic, not measurement.

    python benchmarks/gpu_estimate.py [--survivors 60] [--out benchmarks/results]

It computes occupancy and a roofline. Registers and static shared memory come from csrc/cuda/resources.csv, tile sizes
from the sources. Each time is a lower bound for one resource; the largest is the overall bound, and shows where to
profile first.
"""

import argparse
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CUDA = ROOT / "csrc" / "cuda"
LABEL = "ESTIMATE: nothing here has run on a GPU"


@dataclass(frozen=True)
class Device:
    """Published peaks of one GPU. L2's bytes_per_clock is from the A100 white paper, and assumed for the H100."""

    name: str
    arch: str
    processors: int
    clock: float  # Hz, the clock of the tensor peak
    fp32: float  # FLOP/s
    tf32: float  # dense
    bf16: float
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


PIXELS = 8 * 129 * 129
PROBLEMS = (
    Problem("10,000 x 10,000 x 256", 1, 10000, 10000, 256),
    Problem("VOC step: 21 classes", 21, min(10000, PIXELS // 21), 10000, 256),
    Problem("Cityscapes step: 19 classes", 19, min(10000, PIXELS // 19), 10000, 256),
)


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
OTHERS = (
    *("density_contrast_kernel<float>", "contrast_gradient_kernel<float, true>"),
    *("knn_query_gradient_kernel<float>", "knn_topk_kernel<float>", "silhouette_sums_kernel"),
)
COLUMNS = (
    *("kind", "problem", "device", "method", "resource"),
    *("amount", "unit", "least_ms", "is_bound", "balance"),
)


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


def balance(device: Device, problem: Problem, kernel: str) -> float:
    """Returns the mean fraction of resident blocks that have work, as plan_knn_search divides it. 1 is best."""
    resident = device.processors * kernel_occupancy(device, kernel)["blocks"]
    tiles = problem.classes * -(-problem.queries // FILTER_QUERIES)
    places = problem.classes * problem.queries // FILTER_QUERIES + problem.classes
    splits = max(1, min(-(-resident // places), -(-problem.bank // LEAST_SPLIT_ROWS), MOST_SPLITS))
    items = tiles * splits
    rounds = -(-items // min(resident, places * splits))
    return items / (rounds * resident)


@dataclass(frozen=True)
class Need:
    """An amount of one resource, and the device's `rate` per second."""

    amount: float
    unit: str
    rate: float

    @property
    def seconds(self) -> float:
        return self.amount / self.rate


def filter_needs(device: Device, p: Problem, survivors: float, size: int = 4) -> dict[str, Need]:
    """Returns what knn_filter_kernel needs. Bank elements have `size` bytes.

    A step is 32 columns of a tile. Counted in the code for sm_80, half a step takes each warp 8 mma, 16 LDS.32 of
    queries, 4 LDS.64 of bank rows, 2 LDS.64 of means (4 addresses, so one access) and 19 other instructions. With
    copies, barriers and the loop, the shortest path of a step is 320 instructions.
    """
    warps = FILTER_THREADS // WARP
    items = p.classes * -(-p.queries // FILTER_QUERIES)
    tiles = items * -(-p.bank // FILTER_COLUMNS)
    steps = tiles * round_up(p.dim, FILTER_STEP) // 16
    chosen = p.classes * p.queries * survivors
    clocks = device.processors * device.clock
    # 1 or 2 accesses for a pair per lane; staging writes every element once
    accesses = steps * (
        warps * (16 + 4 * size // 2 + 2) + FILTER_COLUMNS * 16 * size // SHARED_WIDTH
    )
    # selection: 4 per score
    issued = steps * warps * 320 // 2 + tiles * FILTER_QUERIES * FILTER_COLUMNS * 4 // WARP
    bank_bytes = p.classes * p.bank * p.dim * size
    flops = steps * FILTER_QUERIES * FILTER_COLUMNS * 16 * 2
    # the bank for bounds and again for scores, and the queries
    memory = 2 * bank_bytes + p.classes * p.queries * p.dim * 4
    return {
        "tensor cores": Need(flops, "FLOP", device.bf16 * device.mma_sync),
        "shared memory": Need(accesses, "accesses", clocks),
        "instruction issue": Need(issued, "instructions", clocks * SCHEDULERS),
        "L2": Need((items * p.bank + chosen) * p.dim * size, "B", device.cache),
        "device memory": Need(memory, "B", device.memory),
    }


def exact_needs(device: Device, p: Problem) -> dict[str, Need]:
    """Returns what knn_exact_kernel<float> needs. A warp: 64 FFMA, 16 LDS.32 per 32 columns; 62 shuffles, 64 pairs."""
    warps = EXACT_THREADS // WARP
    halves = p.classes * -(-p.queries // EXACT_QUERIES)
    tiles = halves * -(-p.bank // EXACT_COLUMNS)
    steps = tiles * -(-p.dim // WARP)
    clocks = device.processors * device.clock
    accesses = steps * (warps * 16 + EXACT_COLUMNS) + tiles * warps * 62
    issued = steps * warps * 84 + tiles * warps * 62 * 4
    return {
        "FMA": Need(steps * warps * 64 * WARP * 2, "FLOP", device.fp32),
        "shared memory": Need(accesses, "accesses", clocks),
        "instruction issue": Need(issued, "instructions", clocks * SCHEDULERS),
        "L2": Need(halves * p.bank * p.dim * 4, "B", device.cache),
        "device memory": Need(p.classes * (p.bank + p.queries) * p.dim * 4, "B", device.memory),
    }


def matrix_needs(device: Device, p: Problem, peak: float) -> dict[str, Need]:
    """Returns what cuBLAS and torch.topk need: products, and one write and one read of the float32 matrix."""
    matrix = p.classes * p.queries * p.bank * 4
    rows = p.classes * (p.bank + p.queries) * p.dim * 4
    return {
        "products": Need(p.classes * p.queries * p.bank * p.dim * 2, "FLOP", peak),
        "device memory": Need(2 * matrix + rows, "B", device.memory),
    }


def estimates(survivors: float) -> Iterator[tuple[Problem, Device, str, dict, float | None]]:
    """Yields problem, device, method, needs by resource, balance or None."""
    ours, exact = "knn_filter_kernel<float>", "knn_exact_kernel<float, false>"
    for p in PROBLEMS:
        for device in (A100, H100):
            yield p, device, ours, filter_needs(device, p, survivors), balance(device, p, ours)
            yield p, device, exact, exact_needs(device, p), balance(device, p, exact)
            for name, peak in (("fp32", device.fp32), ("TF32", device.tf32)):
                yield p, device, f"cuBLAS {name} + topk", matrix_needs(device, p, peak), None


def assumptions(survivors: float) -> list[str]:
    peaks = [
        f"{d.name}: {d.processors} multiprocessors, {d.clock / 1e9:.2f} GHz, {d.fp32 / 1e12:.1f} TFLOP/s float32, "
        f"{d.tf32 / 1e12:.0f} TF32, {d.bf16 / 1e12:.0f} bf16 (dense), {d.memory / 1e12:.2f} TB/s"
        for d in (A100, H100)
    ]
    return [
        LABEL,
        f"Peaks as published. {'; '.join(peaks)}.",
        f"Assumed: shared memory {SHARED_WIDTH} B per clock, no bank conflicts, perfect overlap of everything.",
        f"Assumed: L2 {A100.bytes_per_clock} B per clock (A100's white paper; a guess for the H100).",
        f"Assumed: mma.sync reaches {H100.mma_sync:.0%} of the H100's tensor peak, which needs wgmma (a guess).",
        f"Assumed: {survivors:g} rows per query are scored exactly after the filter and come from L2. Selection takes",
        "  4 instructions per score. Setting up items, sorting and merging lists are not counted.",
        "Classes share 8 x 129 x 129 pixels equally (both data sets), at most 10,000 each; float32 rows.",
        "cuBLAS + topk: products, one write and one read of the score matrix, overlapped. TF32 is not exact.",
        "balance: the mean fraction of the resident blocks that have work; bound / balance is the better guess.",
    ]


def print_occupancy() -> None:
    print(f"{LABEL}\nOccupancy, per multiprocessor\n")
    line = "{:38}{:16}{:>10}{:>10}{:>8}{:>7}  {}"
    print(line.format("kernel", "GPU", "registers", "shared B", "blocks", "warps", "limit"))
    for kernel in (*DYNAMIC, *OTHERS):
        for device in (A100, H100):
            print(line.format(kernel, device.name, *kernel_occupancy(device, kernel).values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--survivors", type=float, default=60, help="rows per query that are scored exactly"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    print_occupancy()
    notes = assumptions(options.survivors)
    print("\n" + "\n".join(notes))
    rows = []
    for problem, device, method, needs, share in estimates(options.survivors):
        bound = max(needs, key=lambda resource: needs[resource].seconds)
        guess = needs[bound].seconds / share * 1e3 if share else 0
        balanced = f"; balance {share:.2f}: more likely {guess:.3f} ms" if share else ""
        print(f"\n{problem.name}, {device.name}, {method}")
        print(f"    at least {needs[bound].seconds * 1e3:.3f} ms, limited by {bound}{balanced}")
        for resource, need in needs.items():
            milliseconds = f"{need.seconds * 1e3:.4f}"
            print(f"    {resource:20}{need.amount:10.3g} {need.unit:14}{milliseconds:>9} ms")
            row = [LABEL, problem.name, device.name, method, resource]
            row += [f"{need.amount:.4g}", need.unit, milliseconds, int(resource == bound)]
            rows.append([*row, f"{share:.3f}" if share else ""])
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "gpu_estimate.csv").open("w", newline="") as file:
        file.writelines(f"# {note}\n" for note in notes)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
