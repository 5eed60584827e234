"""Estimates the time of the search's CUDA kernels on two GPUs: arithmetic, not measurement.

    python benchmarks/gpu_estimate.py [--survivors 38] [--out benchmarks/results]

A phase takes as long as the resource that it needs longest. Phases do not overlap, so the estimate of a method is their
sum. Occupancy comes from the compiled kernels (gpu_occupancy.py).
"""

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpu_occupancy import (
    A100,
    DYNAMIC,
    EXACT_COLUMNS,
    EXACT_QUERIES,
    EXACT_THREADS,
    FILTER_COLUMNS,
    FILTER_QUERIES,
    FILTER_STEP,
    FILTER_THREADS,
    H100,
    SCHEDULERS,
    SHARED_WIDTH,
    WARP,
    Device,
    Problem,
    constant,
    exact_division,
    filter_division,
    kernel_occupancy,
    round_up,
)

ROOT = Path(__file__).resolve().parent.parent
LABEL = "ESTIMATE: nothing here has run on a GPU"
PIXELS = 8 * 129 * 129
PROBLEMS = (
    Problem("10,000 x 10,000 x 256", 1, 10000, 10000, 256),
    Problem("VOC step: 21 classes", 21, min(10000, PIXELS // 21), 10000, 256),
    Problem("Cityscapes step: 19 classes", 19, min(10000, PIXELS // 19), 10000, 256),
)
# The filter's lists for 12 clusters, counted in the emulator: from tests/, run
# python -m kernels.emulator.survivors --rows 10000. They depend on the data.
SURVIVORS, CUTS = 38, 3.0  # per query and part of the bank
# Loads of a lane that scores survivors: rows times columns.
LOADS_TOGETHER = constant("knn/filter.cuh", "kTogether") * constant(
    "knn/filter.cuh", "kColumnsTogether"
)
STEP_INSTRUCTIONS = 289  # of a warp, counted in the code for sm_80
# Guesses of ours. Clocks of a wait for L2, of a cut of a list (half of it hidden), and of a warp's pass over a query.
LATENCY, CUT_CLOCKS, PASS_CLOCKS = 400, 1500, 700
SETUP_PASSES = 4  # over the queries of an item: norm, square, length, copy in float16
ISSUED = 0.85  # share of the issue slots that a kernel fills at best
LAUNCHES, LAUNCH_SECONDS = 6, 2.3e-6  # one clear and five kernels; a small kernel's time
# torch.topk on rows of 4,000 and more: its source has counting passes, and one that gathers with two block scans per
# 256 elements. The instructions of the latter are a guess.
COUNTING_PASSES, GATHER_INSTRUCTIONS = 4, 6  # instructions of a warp per element

OTHERS = (
    *("density_contrast_kernel<float>", "contrast_gradient_kernel<float, true>"),
    *("knn_query_gradient_kernel<float>", "knn_topk_kernel<float>", "silhouette_sums_kernel"),
)
COLUMNS = (
    *("kind", "problem", "device", "method", "phase", "resource"),
    *("amount", "unit", "ms", "is_bound", "balance"),
)


@dataclass(frozen=True)
class Need:
    """An amount of one resource, and the device's `rate` per second."""

    amount: float
    unit: str
    rate: float

    @property
    def seconds(self) -> float:
        return self.amount / self.rate


@dataclass(frozen=True)
class Phase:
    """Its needs by resource, and the share of the device that has work."""

    name: str
    needs: dict[str, Need]
    balance: float = 1.0

    @property
    def bound(self) -> str:
        """The resource that it needs longest."""
        return max(self.needs, key=lambda resource: self.needs[resource].seconds)

    @property
    def seconds(self) -> float:
        return self.needs[self.bound].seconds / self.balance


def filter_needs(device: Device, p: Problem, size: int = 4) -> dict[str, Need]:
    """Returns what the products and the selection of knn_filter_kernel need. Bank elements have `size` bytes.

    A step is 32 columns of a tile. Counted in the code for sm_80, half a step takes each warp 8 mma, 16 LDS.32 of
    queries, 4 LDS.64 of bank rows, 2 LDS.64 of means (4 addresses, so one access) and 19 other instructions. With
    copies, barriers and the loop, the shortest path of a step is STEP_INSTRUCTIONS.
    """
    warps = FILTER_THREADS // WARP
    items = p.classes * -(-p.queries // FILTER_QUERIES)
    tiles = items * -(-p.bank // FILTER_COLUMNS)
    steps = tiles * round_up(p.dim, FILTER_STEP) // 16
    clocks = device.processors * device.clock
    # 1 or 2 accesses for a pair per lane; staging writes every element once
    accesses = steps * (
        warps * (16 + 4 * size // 2 + 2) + FILTER_COLUMNS * 16 * size // SHARED_WIDTH
    )
    # selection: 4 per score
    issued = (
        steps * warps * STEP_INSTRUCTIONS // 2 + tiles * FILTER_QUERIES * FILTER_COLUMNS * 4 // WARP
    )
    flops = steps * FILTER_QUERIES * FILTER_COLUMNS * 16 * 2
    memory = p.classes * (p.bank * size + p.queries * 4) * p.dim
    return {
        "tensor cores": Need(flops, "FLOP", device.fp16 * device.mma_sync),
        "shared memory": Need(accesses, "accesses", clocks),
        "instruction issue": Need(issued, "instructions", clocks * SCHEDULERS * ISSUED),
        "L2": Need(items * p.bank * p.dim * size, "B", device.cache),
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


def small_kernels() -> Phase:
    return Phase("launches", {"launches": Need(LAUNCHES, "", 1 / LAUNCH_SECONDS)})


def filter_phases(device: Device, p: Problem, survivors: float, size: int = 4) -> list[Phase]:
    """Returns the phases of a search with the filter, from the bounds of bank rows to the scores of survivors."""
    kernel = "knn_filter_kernel<float>"
    warps = kernel_occupancy(device, kernel)["warps"]
    division = filter_division(device, p, kernel)
    lists = p.classes * p.queries * division.lists
    warp_clocks = device.processors * device.clock * warps
    waiting = (
        warp_clocks * LOADS_TOGETHER * WARP * size / LATENCY
    )  # B/s with every warp waiting for L2
    bank_bytes, row_bytes = p.classes * p.bank * p.dim * size, p.dim * size
    rows = lists * survivors * row_bytes
    setup, cuts = lists * SETUP_PASSES * PASS_CLOCKS, lists * CUTS * CUT_CLOCKS
    return [
        Phase("prepare", {"device memory": Need(bank_bytes, "B", device.memory)}),
        Phase("set up items", {"latency": Need(setup, "clocks", warp_clocks)}),
        Phase("products, selection", filter_needs(device, p, size), division.balance),
        Phase("cut lists", {"latency": Need(cuts, "clocks", warp_clocks)}),
        Phase(
            "score survivors",
            {"latency": Need(rows, "B", waiting), "L2": Need(rows, "B", device.cache)},
        ),
        small_kernels(),
    ]


def exact_phases(device: Device, p: Problem) -> list[Phase]:
    share = exact_division(device, p, "knn_exact_kernel<float, false>").balance
    return [Phase("products, selection", exact_needs(device, p), share), small_kernels()]


def matrix_phases(device: Device, p: Problem, peak: float) -> list[Phase]:
    """Returns the phases of cuBLAS and torch.topk: products, and passes over the float32 matrix."""
    elements = p.classes * p.queries * p.bank
    rows = p.classes * (p.bank + p.queries) * p.dim
    slots = device.processors * device.clock * SCHEDULERS * ISSUED
    return [
        Phase(
            "products",
            {
                "products": Need(elements * p.dim * 2, "FLOP", peak),
                "device memory": Need((elements + rows) * 4, "B", device.memory),
            },
        ),
        Phase(
            "topk, counting",
            {"device memory": Need(COUNTING_PASSES * elements * 4, "B", device.memory)},
        ),
        Phase(
            "topk, gathering",
            {
                "device memory": Need(elements * 4, "B", device.memory),
                "instruction issue": Need(elements * GATHER_INSTRUCTIONS, "instructions", slots),
            },
        ),
    ]


def estimates(survivors: float) -> Iterator[tuple[Problem, Device, str, list[Phase]]]:
    for p in PROBLEMS:
        for device in (A100, H100):
            yield p, device, "dgcl_ops, filter", filter_phases(device, p, survivors)
            yield p, device, "dgcl_ops, exact search", exact_phases(device, p)
            for name, peak in (("fp32", device.fp32), ("TF32", device.tf32)):
                yield p, device, f"cuBLAS {name} + topk", matrix_phases(device, p, peak)


def assumptions(survivors: float) -> list[str]:
    peaks = [
        f"{d.name}: {d.processors} multiprocessors, {d.clock / 1e9:.2f} GHz, {d.fp32 / 1e12:.1f} TFLOP/s float32, "
        f"{d.tf32 / 1e12:.0f} TF32, {d.fp16 / 1e12:.0f} float16 (dense), {d.memory / 1e12:.2f} TB/s"
        for d in (A100, H100)
    ]
    return [
        LABEL,
        f"Peaks as published. {'; '.join(peaks)}.",
        f"Assumed: shared memory {SHARED_WIDTH} B per clock, no bank conflicts, perfect overlap within a phase",
        f"  and none between phases. Kernels fill {ISSUED:.0%} of the issue slots (a guess).",
        f"Assumed: L2 {A100.bytes_per_clock} B per clock (A100's white paper; a guess for the H100).",
        f"Assumed: mma.sync reaches {H100.mma_sync:.0%} of the H100's tensor peak, which needs wgmma (a guess).",
        f"Assumed: {survivors:g} rows per query and part of the bank are scored exactly after the filter, and the",
        f"  list is cut {CUTS:g} times (emulated for 12 clusters). A wait for L2 takes {LATENCY} clocks, a cut",
        f"  {CUT_CLOCKS} that nothing hides, a pass over a query {PASS_CLOCKS} (guesses). Selection takes 4",
        "  instructions per score. Merging is not counted.",
        f"Assumed: {LAUNCHES} launches of {LAUNCH_SECONDS * 1e6:g} us each in addition (a guess).",
        "Classes share 8 x 129 x 129 pixels equally (both data sets), at most 10,000 each; float32 rows.",
        f"torch.topk: {COUNTING_PASSES} counting passes over the score matrix and one that gathers, as in its source,",
        f"  with {GATHER_INSTRUCTIONS} instructions of a warp per gathered element (a guess). TF32 is not exact.",
        "balance: the mean fraction of the resident blocks that have work.",
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
        "--survivors", type=float, default=SURVIVORS, help="rows per list that are scored exactly"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    print_occupancy()
    notes = assumptions(options.survivors)
    print("\n" + "\n".join(notes))
    rows = []
    for problem, device, method, phases in estimates(options.survivors):
        total = sum(phase.seconds for phase in phases) * 1e3
        print(f"\n{problem.name}, {device.name}, {method}: {total:.2f} ms")
        for phase in phases:
            print(
                f"    {phase.name:22}{phase.seconds * 1e3:8.3f} ms, limited by {phase.bound}, "
                f"balance {phase.balance:.2f}"
            )
            for resource, need in phase.needs.items():
                milliseconds = f"{need.seconds * 1e3:.4f}"
                print(
                    f"        {resource:20}{need.amount:10.3g} {need.unit:14}{milliseconds:>9} ms"
                )
                row = [LABEL, problem.name, device.name, method, phase.name, resource]
                row += [f"{need.amount:.4g}", need.unit, milliseconds]
                rows.append([*row, int(resource == phase.bound), f"{phase.balance:.3f}"])
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "gpu_estimate.csv").open("w", newline="") as file:
        file.writelines(f"# {note}\n" for note in notes)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
