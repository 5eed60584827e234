"""Times single parts of a step of the loss, and the top-k that plain PyTorch needs after a matrix product.

    python benchmarks/parts_bench.py --device cuda    # PASCAL VOC size
    python benchmarks/parts_bench.py --tiny           # only checks that it runs

The parts do not compete. One run measures them in turn, under the same conditions. Each part's result is first compared
with plain PyTorch. common.py, on_cuda.py and peak_memory.py describe how time and memory are measured.
"""

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass

import on_cuda
import torch
from common import (
    MACHINE_COLUMNS,
    Disagreement,
    alternate,
    append_rows,
    machine,
    milliseconds,
    number,
    parser_of,
    print_table,
    say,
    seconds,
    set_threads,
)
from peak_memory import MEGABYTE, memory_method, peak_beyond_inputs
from torch import Tensor

from dgcl_ops.ops import finite_rows, gather_rows

COLUMNS = (
    *MACHINE_COLUMNS,
    *("part", "size", "repeats", "median_ms", "min_ms", "max_ms", "extra_mb", "memory_method"),
)
SIZES = {  # batch, side, channels, classes, anchors per class, candidates, rows of the score matrix, k
    "voc": (8, 129, 256, 21, 200, 133_119, 10_000, 32),
    "tiny": (1, 15, 8, 3, 10, 100, 50, 5),
}


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        inputs: arguments of `run`.
        run: the part.
        expected: the same in plain PyTorch.
        tolerance: allowed absolute error.
    """

    inputs: tuple
    run: Callable
    expected: Callable
    tolerance: float = 0.0

    def copy(self, inputs: tuple) -> tuple:
        return tuple(copied(part) for part in inputs)

    def input_bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.inputs)


def copied(part: Tensor) -> Tensor:
    return part.detach().clone().requires_grad_(part.requires_grad)


def gathered_gradient(maps: Tensor, pixels: Tensor, dL_drows: Tensor) -> Tensor:
    """Returns the gradient of gather_rows. The time includes the forward pass, which is cheap."""
    return torch.autograd.grad(gather_rows(maps, pixels), maps, dL_drows)[0]


def plain_gradient(maps: Tensor, pixels: Tensor, dL_drows: Tensor) -> Tensor:
    images, dim, height, width = maps.shape
    rows = maps.new_zeros(images * height * width, dim, dtype=torch.float64)
    rows.index_add_(0, pixels.flatten(), dL_drows.flatten(0, -2).double())
    return rows.view(images, height, width, dim).permute(0, 3, 1, 2)


def plain_rows(maps: Tensor, pixels: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).flatten(0, 2)[pixels]


def plain_finite(maps: Tensor) -> Tensor:
    return torch.isfinite(maps).all(1).reshape(-1)


def parts(size: str, device: torch.device) -> dict[str, Part]:
    batch, side, dim, classes, anchors, candidates, rows, k = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(batch, dim, side, side, generator=generator).to(device)
    order = torch.randperm(batch * side * side, generator=generator)
    few = order[: classes * anchors].view(classes, -1).to(device)
    # in random order, as in the loss
    many = order[:candidates].to(device)
    gradient = torch.randn(*few.shape, dim, generator=generator).to(device)
    scores = torch.randn(rows, rows, generator=generator).to(device)
    narrow = scores.bfloat16()

    def best(matrix: Tensor) -> Tensor:
        return matrix.topk(k, dim=1).values

    def sorted_best(matrix: Tensor) -> Tensor:
        return matrix.sort(1, descending=True).values[:, :k]

    differentiable = maps.clone().requires_grad_()
    # a pixel sums up to a handful of gradients, each sum rounded to 6e-8
    return {
        "gather_rows forward and backward": Part(
            (differentiable, few, gradient), gathered_gradient, plain_gradient, 1e-5
        ),
        "candidates' gather": Part((maps, many), gather_rows, plain_rows),
        "finite rows of one map": Part((maps,), finite_rows, plain_finite),
        "topk alone, fp32": Part((scores,), best, sorted_best),
        "topk alone, bf16": Part((narrow,), best, sorted_best),
    }


def check(name: str, part: Part) -> None:
    """Raises Disagreement if a part differs from plain PyTorch."""
    ours, theirs = part.run(*part.inputs).double(), part.expected(*part.inputs).double()
    error = (ours - theirs).abs().max().item()
    if ours.shape != theirs.shape or not error <= part.tolerance:
        raise Disagreement(
            f"{name}: must be within {part.tolerance:g} of plain PyTorch, got {error:g}"
        )


def measure(size: str, options: argparse.Namespace) -> list[dict]:
    """Measures all parts and returns one row for each."""
    device = torch.device(options.device)
    every, sets, inputs, extra = parts(size, device), {}, {}, {}
    for name, part in every.items():
        check(name, part)
        sets[name] = on_cuda.input_sets(part.input_bytes(), device)
        inputs[name] = on_cuda.rotation(part.inputs, part.copy, sets[name])
        if device.type == "cuda":
            work = functools.partial(part.run, *part.inputs)
            extra[name] = round(peak_beyond_inputs(work, device) / MEGABYTE, 2)

    def timed(name: str) -> dict:
        current = next(inputs[name])
        timing = seconds(lambda: every[name].run(*current), device)
        return {"total": timing.seconds, "ahead": timing.ahead}

    runs = {name: functools.partial(timed, name) for name in every}
    for run in runs.values():  # warms up the allocator's pools and the clocks
        run()
    measured, others = alternate(runs, options.repeats, options.calm)
    facts, rows = machine(device, others), []
    for name, results in measured.items():
        row = {**facts, "part": name, "size": size, "repeats": options.repeats}
        row |= milliseconds([result["total"] for result in results], digits=4)
        row["extra_mb"] = extra.get(name)
        row["memory_method"] = memory_method(device) if name in extra else "not measured"
        if device.type == "cuda":
            row["input_sets"] = sets[name]
            row["host"] = on_cuda.host_column([result["ahead"] for result in results])
        rows.append(row)
    return rows


def report(rows: list[dict]) -> None:
    print(f"\nParts of a step, size {rows[0]['size']}; {on_cuda.described(rows[0])}")
    headers = ("part", "median ms", "min", "max", "extra MB", "host")
    table = []
    for row in rows:
        times = (number(row[f"{which}_ms"], 3) for which in ("median", "min", "max"))
        table.append((row["part"], *times, number(row["extra_mb"]), row.get("host", "-")))
    print_table(headers, table)


def main(arguments: list[str] | None = None) -> int:
    parser = parser_of(__doc__, repeats=7)
    parser.add_argument("--tiny", action="store_true", help="only check that it runs")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if reason := on_cuda.why_not(options.device):
        say(f"parts_bench: {reason}")
        return 2
    cuda = torch.device(options.device).type == "cuda"
    columns, suffix = (COLUMNS + on_cuda.COLUMNS, "_cuda") if cuda else (COLUMNS, "")
    set_threads(options.threads)
    try:
        rows = measure("tiny" if options.tiny else "voc", options)
    except Disagreement as error:
        say(f"DISAGREEMENT, nothing was recorded: {error}")
        return 1
    report(rows)
    append_rows(options.out / f"parts_bench{suffix}.csv", columns, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
