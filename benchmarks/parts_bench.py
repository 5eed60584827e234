"""Parts of a step of the loss, and the top-k that plain PyTorch needs after a matrix product, each alone.

    python benchmarks/parts_bench.py --device cuda    # PASCAL VOC size
    python benchmarks/parts_bench.py --tiny           # to see that it runs

The parts do not compete. One run measures them in turn, so all have the same conditions. Each part's result is compared
with plain PyTorch's first. How time and memory are taken: common.py, on_cuda.py, peak_memory.py.
"""

import argparse
import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import on_cuda
import torch
from common import (
    CALM_HELP,
    MACHINE_COLUMNS,
    Disagreement,
    alternate,
    append_rows,
    machine,
    number,
    print_table,
    say,
    seconds,
    set_threads,
)
from peak_memory import MEGABYTE, memory_method, peak_beyond_inputs
from torch import Tensor

from dgcl_ops._step.batch import finite_rows
from dgcl_ops.ops import gather_rows

COLUMNS = (
    *MACHINE_COLUMNS,
    *("part", "size", "repeats", "median_ms", "min_ms", "max_ms", "extra_mb", "memory_method"),
)
SIZES = {  # batch, side, channels, classes, anchors a class, candidates, rows of the score matrix, k
    "voc": (8, 129, 256, 21, 200, 133_119, 10_000, 32),
    "tiny": (1, 15, 8, 3, 10, 100, 50, 5),
}


@dataclass(frozen=True)
class Part:
    """`run` takes one set of inputs; `copy` makes another; `expected` computes the same in plain PyTorch."""

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
    """The gradient of gather_rows, with the forward pass, which autograd needs and which costs little."""
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
    # in no order, as the loss takes them within a class
    many = order[:candidates].to(device)
    gradient = torch.randn(*few.shape, dim, generator=generator).to(device)
    scores = torch.randn(rows, rows, generator=generator).to(device)
    narrow = scores.bfloat16()

    def best(matrix: Tensor) -> Tensor:
        return matrix.topk(k, dim=1).values

    def sorted_best(matrix: Tensor) -> Tensor:
        return matrix.sort(1, descending=True).values[:, :k]

    given = maps.clone().requires_grad_()
    # up to a handful of gradients meet in a pixel, each sum rounded to 6e-8
    return {
        "gather_rows forward and backward": Part(
            (given, few, gradient), gathered_gradient, plain_gradient, 1e-5
        ),
        "candidates' gather": Part((maps, many), gather_rows, plain_rows),
        "finite rows of one map": Part((maps,), finite_rows, plain_finite),
        "topk alone, fp32": Part((scores,), best, sorted_best),
        "topk alone, bf16": Part((narrow,), best, sorted_best),
    }


def check(name: str, part: Part) -> None:
    ours, theirs = part.run(*part.inputs).double(), part.expected(*part.inputs).double()
    error = (ours - theirs).abs().max().item()
    if ours.shape != theirs.shape or not error <= part.tolerance:
        raise Disagreement(
            f"{name}: must be within {part.tolerance:g} of plain PyTorch, got {error:g}"
        )


def measure(size: str, options: argparse.Namespace) -> list[dict]:
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
        given = next(inputs[name])
        timing = seconds(lambda: every[name].run(*given), device)
        return {"total": timing.seconds, "ahead": timing.ahead}

    runs = {name: functools.partial(timed, name) for name in every}
    for run in runs.values():  # the allocator's pools and the clocks
        run()
    measured, others = alternate(runs, options.repeats, options.calm)
    facts, rows = machine(device, others), []
    for name, results in measured.items():
        ms = [1e3 * result["total"] for result in results]
        row = {**facts, "part": name, "size": size, "repeats": options.repeats}
        row |= {"median_ms": round(statistics.median(ms), 4), "min_ms": round(min(ms), 4)}
        row |= {"max_ms": round(max(ms), 4), "extra_mb": extra.get(name)}
        row["memory_method"] = memory_method(device) if name in extra else "not measured"
        if device.type == "cuda":
            row["input_sets"] = sets[name]
            row["host"] = on_cuda.host_told([result["ahead"] for result in results])
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--calm", type=float, help=CALM_HELP)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
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
