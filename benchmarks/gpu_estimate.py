"""Estimates the time of the search's CUDA kernels on four GPUs: arithmetic, not measurement.

    python benchmarks/gpu_estimate.py [--survivors 38] [--out benchmarks/results]

gpu_model.py has the arithmetic.
"""

import argparse
import csv
from pathlib import Path

from gpu_devices import A100, DEVICES, H100
from gpu_model import (
    COUNTING_PASSES,
    CUT_CLOCKS,
    CUTS,
    GATHER_INSTRUCTIONS,
    ISSUED,
    LATENCY,
    LAUNCH_SECONDS,
    LAUNCHES,
    PASS_CLOCKS,
    PROBLEMS,
    STEP_INSTRUCTIONS,
    SURVIVORS,
    estimates,
    filter_phases,
)
from gpu_occupancy import (
    DYNAMIC,
    SHARED_WIDTH,
    filter_kernel,
    filter_step,
    kernel_occupancy,
)

ROOT = Path(__file__).resolve().parent.parent
LABEL = "ESTIMATE: nothing here has run on a GPU"
OTHERS = (
    *("density_contrast_kernel<float>", "contrast_gradient_kernel<float, true>"),
    *("knn_query_gradient_kernel<float>", "knn_topk_kernel<float>", "silhouette_sums_kernel"),
)
COLUMNS = (
    *("kind", "problem", "device", "method", "phase", "resource"),
    *("amount", "unit", "ms", "is_bound", "balance"),
)


def assumptions(survivors: float) -> list[str]:
    peaks = [
        f"{d.name}: {d.processors} multiprocessors, {d.clock / 1e9:.2f} GHz, {d.fp32 / 1e12:.1f} TFLOP/s float32, "
        f"{d.tf32 / 1e12:.0f} TF32, {d.fp16 / 1e12:.0f} float16 (dense), {d.memory / 1e12:.2f} TB/s"
        for d in DEVICES
    ]
    return [
        LABEL,
        f"Peaks as published. {'; '.join(peaks)}.",
        f"Assumed: shared memory {SHARED_WIDTH} B per clock, no bank conflicts, perfect overlap within a phase",
        f"  and none between phases. Kernels fill {ISSUED:.0%} of the issue slots (a guess).",
        f"Assumed: L2 {A100.bytes_per_clock} B per clock (A100's white paper; a guess for the H100), and "
        + " and ".join(f"{d.bytes_per_clock} ({d.name}, a guess)" for d in DEVICES[1:3])
        + ".",
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
        for device in DEVICES:
            print(line.format(kernel, device.name, *kernel_occupancy(device, kernel).values()))


def print_steps(survivors: float) -> None:
    """Prints cost and gain of the columns per step, for the filter of a VOC step."""
    print(f"\nColumns per step, {PROBLEMS[1].name}: ms of the filter; * marks the plan's choice\n")
    for (size, step), instructions in STEP_INSTRUCTIONS.items():
        for device in DEVICES:
            occupied = kernel_occupancy(device, filter_kernel(size, step))
            blocks, time = occupied["blocks"], "does not fit"
            if blocks:
                phases = filter_phases(device, PROBLEMS[1], survivors, size, step)
                time = f"{sum(phase.seconds for phase in phases) * 1e3:.2f} ms"
            chosen = "*" if filter_step(device, size) == step else ""
            print(
                f"{8 * size}-bit rows, {step} columns, {instructions / step:.1f} instructions per column, "
                f"{device.name}: {occupied['shared']} B shared, {blocks} blocks, {time} {chosen}".rstrip()
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--survivors", type=float, default=SURVIVORS, help="rows per list that are scored exactly"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    print_occupancy()
    print_steps(options.survivors)
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
