"""What the phases of a search need from a GPU: arithmetic, not measurement. gpu_estimate.py prints it.

A phase takes as long as the resource that it needs longest. Phases do not overlap, so the estimate of a method is their
sum. Occupancy comes from the compiled kernels (gpu_occupancy.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gpu_devices import DEVICES, Device
from gpu_occupancy import (
    EXACT_COLUMNS,
    EXACT_QUERIES,
    EXACT_THREADS,
    FILTER_COLUMNS,
    FILTER_QUERIES,
    FILTER_THREADS,
    NARROW_STEP,
    SCHEDULERS,
    SHARED_WIDTH,
    WARP,
    WIDE_STEP,
    Problem,
    constant,
    exact_division,
    filter_division,
    filter_kernel,
    filter_step,
    kernel_occupancy,
    round_up,
)

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
# Of a warp, in the code for sm_80: .ci/count_instructions. By bytes of an element and columns of a step.
STEP_INSTRUCTIONS = {(4, NARROW_STEP): 296, (4, WIDE_STEP): 478, (2, WIDE_STEP): 440}
# Guesses of ours. Clocks of a wait for L2, of cutting a list (half of it hidden), and of a warp's pass over a query.
LATENCY, CUT_CLOCKS, PASS_CLOCKS = 400, 1500, 700
SETUP_PASSES = 4  # over the queries of an item: norm, square, length, copy in float16
ISSUED = 0.85  # share of the issue slots that a kernel fills at best
LAUNCHES, LAUNCH_SECONDS = 6, 2.3e-6  # one clear and five kernels; a small kernel's time
# torch.topk on rows of 4,000 and more: its source has counting passes, and a gathering pass with two block scans per
# 256 elements. The instructions of the gathering pass are a guess.
COUNTING_PASSES, GATHER_INSTRUCTIONS = 4, 6  # instructions of a warp per element


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


def filter_needs(device: Device, p: Problem, size: int, step: int) -> dict[str, Need]:
    """Returns what the products and the selection of knn_filter_kernel need. Bank elements have `size` bytes.

    A step is `step` columns of a tile. For 16 of them, each warp has 8 mma, 16 LDS.32 of queries, 4 LDS.64 of float32
    bank rows, 2 LDS.64 of means (4 addresses, so one access) and 20 other instructions. With copies, barriers and the
    loop, the shortest path of a step is STEP_INSTRUCTIONS.
    """
    warps = FILTER_THREADS // WARP
    items = p.classes * -(-p.queries // FILTER_QUERIES)
    tiles = items * -(-p.bank // FILTER_COLUMNS)
    steps = tiles * round_up(p.dim, 16) // 16
    clocks = device.processors * device.clock
    # 1 or 2 accesses for a pair per lane; staging writes every element once
    accesses = steps * (
        warps * (16 + 4 * size // 2 + 2) + FILTER_COLUMNS * 16 * size // SHARED_WIDTH
    )
    # products, and selection: 4 per score
    issued = steps * warps * STEP_INSTRUCTIONS[size, step] * 16 // step
    issued += tiles * FILTER_QUERIES * FILTER_COLUMNS * 4 // WARP
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


def filter_phases(
    device: Device, p: Problem, survivors: float, size: int = 4, step: int = 0
) -> list[Phase]:
    """Returns the phases of a search with the filter, from the bounds of bank rows to the scores of survivors.

    `step`: columns at a time, by default the plan's.
    """
    step = step or filter_step(device, size)
    kernel = filter_kernel(size, step)
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
        Phase("products, selection", filter_needs(device, p, size, step), division.balance),
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
        for device in DEVICES:
            yield p, device, "dgcl_ops, filter", filter_phases(device, p, survivors)
            yield p, device, "dgcl_ops, exact search", exact_phases(device, p)
            for name, peak in (("fp32", device.fp32), ("TF32", device.tf32)):
                yield p, device, f"cuBLAS {name} + topk", matrix_phases(device, p, peak)
