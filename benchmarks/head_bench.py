"""One step of projection head and loss (forward, push, backward): the head on maps against the head on chosen rows.

    python benchmarks/head_bench.py --threads 1    # PASCAL VOC size
    python benchmarks/head_bench.py --tiny         # only checks that it runs

Both get the same features, labels, full banks and head. The features require a gradient, as in a trainer. In eval mode
a projection depends on its own pixel only, so the losses of both must agree. The run ends if they differ. In training
mode, which is timed, the batch norm's statistics differ. common.py, on_cuda.py and peak_memory.py describe how time and
memory are measured.
"""

import copy
import functools

import torch
from common import (
    MACHINE_COLUMNS,
    Disagreement,
    alternate,
    append_rows,
    machine,
    median_ratio,
    milliseconds,
    number,
    parser_of,
    print_table,
    say,
    seconds,
    set_threads,
    shared_with,
)
from loss_steps import SEED, SIZES, OurStep, Size, make_batch
from peak_memory import MEGABYTE, extra_memory, memory_method, peak_beyond_inputs
from torch import Tensor

from dgcl_ops import ProjectionHead

MAPS, ROWS = "head on maps", "head on chosen rows"
COLUMNS = (
    *MACHINE_COLUMNS,
    *("size", "contender", "repeats", "median_ms", "min_ms", "max_ms", "time_over_rows"),
    *("extra_mb", "memory_over_rows", "memory_method"),
)
CPU = torch.device("cpu")
TOLERANCE = 1e-5  # relative, of a float32 loss


class Step:
    """Head and loss at a size, with a full bank."""

    def __init__(self, size: Size):
        torch.manual_seed(SEED)
        self.loss = OurStep(size, CPU).loss
        self.head = ProjectionHead(size.dim, size.dim, size.dim)
        _, self.labels, features = make_batch(size, size.usual_present[0], None, CPU)
        self.features = features.requires_grad_()

    def value(self, name: str) -> Tensor:
        projections = self.head if name == ROWS else self.head(self.features)
        return self.loss(projections, self.labels, self.features)

    def run(self, name: str) -> None:
        self.value(name).backward()
        self.features.grad = None


def check_agreement(step: Step) -> None:
    """Raises Disagreement unless both losses agree in eval mode, where nothing is pushed."""
    step.loss.eval()
    head, step.head = step.head, copy.deepcopy(step.head).eval()
    with torch.no_grad():
        maps, rows = (step.value(name).item() for name in (MAPS, ROWS))
    step.head = head
    step.loss.train()
    if not abs(maps - rows) <= TOLERANCE * abs(maps) or maps == 0:
        raise Disagreement(f"losses must agree within {TOLERANCE:.0e}, got {maps} and {rows}")


def memory_of(name: str, size: Size, threads: int) -> int:
    """Returns the extra memory of one whole step, including the features' gradient."""
    set_threads(threads)
    Step(SIZES["tiny"]).run(name)  # loads libraries, starts threads
    step = Step(size)
    return peak_beyond_inputs(lambda: step.run(name), CPU)


def measure(size: Size, repeats: int, threads: int, calm: float | None) -> list[dict]:
    """Measures both and returns one row for each."""
    step = Step(size)
    check_agreement(step)

    def timed(name: str) -> dict:
        return {"total": seconds(lambda: step.run(name), CPU).seconds}

    runs = {name: functools.partial(timed, name) for name in (MAPS, ROWS)}
    for run in runs.values():
        run()
    measured, others = alternate(runs, repeats, calm)
    times = {name: [result["total"] for result in results] for name, results in measured.items()}
    extra = {name: extra_memory(memory_of, CPU, name, size, threads) for name in runs}
    return [
        {
            **machine(CPU, others),
            "size": size.name,
            "contender": name,
            "repeats": repeats,
            **milliseconds(times[name]),
            "time_over_rows": round(median_ratio(times[name], times[ROWS]), 3),
            "extra_mb": round(extra[name] / MEGABYTE, 1) if extra[ROWS] else None,
            "memory_over_rows": round(extra[name] / extra[ROWS], 3) if extra[ROWS] else None,
            "memory_method": memory_method(CPU),
        }
        for name in runs
    ]


def report(rows: list[dict], size: Size) -> None:
    first = rows[0]
    print(
        f"\nHead and loss, {size.batch} x {size.side} x {size.side} pixels, D = E = {size.dim}, "
        f"{size.classes} classes; {first['cpu']}, {first['threads']} threads{shared_with(first)}"
    )
    table = [
        (
            row["contender"],
            *(number(row[f"{which}_ms"]) for which in ("median", "min", "max")),
            number(row["time_over_rows"], 2) + "x",
            number(row["extra_mb"]),
            number(row["memory_over_rows"], 2) + "x",
        )
        for row in rows
    ]
    print_table(("", "median ms", "min", "max", "time / rows", "extra MB", "memory / rows"), table)
    gradient = size.batch * size.side**2 * size.dim * 4 / MEGABYTE
    print(f"The features' gradient takes {gradient:.0f} MB of each extra memory.")


def main(arguments: list[str] | None = None) -> int:
    parser = parser_of(__doc__, repeats=5)
    parser.add_argument("--tiny", action="store_true", help="only check that it runs")
    options = parser.parse_args(arguments)
    set_threads(options.threads)
    size = SIZES["tiny" if options.tiny else "voc"]
    try:
        rows = measure(size, options.repeats, options.threads, options.calm)
    except Disagreement as error:
        say(f"DISAGREEMENT, nothing was recorded: {error}")
        return 1
    report(rows, size)
    append_rows(options.out / "head_bench.csv", COLUMNS, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
