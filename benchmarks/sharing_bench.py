"""Measures what processes that share a memory bank send and receive per step, and the memory that each needs.

    python benchmarks/sharing_bench.py              # PASCAL VOC setting, 1, 2 and 4 processes; 10 GB of memory, minutes
    python benchmarks/sharing_bench.py --small      # seconds
    python benchmarks/sharing_bench.py --placement replicated

All processes run on this machine, with gloo. Volumes are counted at torch.distributed's collectives and include a
process's own part. They depend only on shapes, so NCCL sends the same. Times are not reported: the processes share a
few cores.

"published" is computed, not run: the published program gathers the labels and the dense float32 maps of features and
projections of all images.

The last lines limit the address space of each process. The bank does not fit into one process, but fits when it is
sharded over four processes with the same limit.
"""

import argparse
import gc
import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import MACHINE_COLUMNS, ROOT, append_rows, machine, print_table, say
from torch import Tensor, multiprocessing
from torch import distributed as dist

from dgcl_ops import DensityContrastLoss
from dgcl_ops.memory import PLACEMENTS

SIZES = ("classes", "dim", "capacity", "rows_per_push", "images", "map")
COLUMNS = (
    *(*MACHINE_COLUMNS, "placement", "processes", "exchange_dtype", *SIZES),
    *("bank_mb", "collectives", "sent_mb", "received_mb", "published_sent_mb", "synced"),
)
CASES = [
    ("local", 1, torch.float32),
    ("replicated", 2, torch.float32),
    ("replicated", 4, torch.float32),
    ("replicated", 4, torch.bfloat16),
    ("sharded", 2, torch.float32),
    ("sharded", 4, torch.float32),
]
MEGABYTE = 1e6


class Counted:
    """Counts what passes through the collectives that the bank uses."""

    def __init__(self):
        self.calls = self.sent = self.received = 0
        for name in ("all_gather_single", "all_to_all_single"):
            setattr(dist, name, self._counting(getattr(dist, name)))

    def _counting(self, collective: Callable) -> Callable:
        def counting(output: Tensor, sent: Tensor, **options: object) -> object:
            self.calls += 1
            self.sent += sent.nbytes
            self.received += output.nbytes
            return collective(output, sent, **options)

        return counting


def loss_of(options: argparse.Namespace, placement: str) -> DensityContrastLoss:
    return DensityContrastLoss(
        options.classes,
        options.dim,
        bank_capacity=options.capacity,
        rows_per_push=options.rows_per_push,
        max_candidates=10_000,
        placement=placement,
        exchange_dtype=options.exchange_dtype,
        seed=0,
    )


def batch_of(options: argparse.Namespace, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    shape = (options.images, options.dim, options.map, options.map)
    features, projections = (torch.randn(shape, generator=generator) for _ in range(2))
    sizes = (options.images, options.map, options.map)
    return projections, torch.randint(options.classes, sizes, generator=generator), features


def process(
    rank: int,
    size: int,
    folder: str,
    options: argparse.Namespace,
    placement: str,
    function: Callable,
) -> None:
    torch.set_num_threads(1)
    where = f"file://{folder}/group"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=size)
    result = function(rank, options, placement)
    if rank == 0:
        torch.save(result, f"{folder}/result.pt")
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def on_processes(
    size: int, options: argparse.Namespace, placement: str, function: Callable
) -> dict:
    """Runs a function in a group of processes and returns rank 0's result."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (size, folder, options, placement, function)
        multiprocessing.spawn(process, args=arguments, nprocs=size)
        return torch.load(f"{folder}/result.pt")


def volumes(rank: int, options: argparse.Namespace, placement: str) -> dict:
    """Runs two steps and counts the second one, where all classes take part."""
    loss, batch = loss_of(options, placement), batch_of(options, rank)
    loss(*batch)
    counted = Counted()
    value = loss(*batch)
    volume = {"collectives": counted.calls, "sent": counted.sent, "received": counted.received}
    loss.bank.assert_synced()
    rows = (loss.bank.features, loss.bank.projections, loss.bank.density)
    assert value > 0, "no class took part, so this was not a whole step"
    return {**volume, "bank": sum(buffer.nbytes for buffer in rows)}


def under_limit(rank: int, options: argparse.Namespace, placement: str) -> dict:
    """Checks whether a bank fits when the address space may grow by 0.7 of the whole bank's size."""
    # In the first step, PyTorch and gloo make their one-time allocations.
    loss = DensityContrastLoss(
        2, 4, bank_capacity=8, rows_per_push=4, scales=(2,), placement=placement
    )
    loss(torch.randn(8, 4), torch.arange(8) % 2)
    size = options.classes * options.capacity * (2 * options.dim + 1) * 4
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = now + int(0.7 * size)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sizes = {"bank": size, "limit": limit - now}
    try:
        loss = loss_of(options, placement)
    except RuntimeError as error:
        return {**sizes, "fits": False, "error": str(error).splitlines()[0]}
    rows = 4 * options.classes
    projections = torch.randn(rows, options.dim)
    for _ in range(2):
        value = loss(projections, torch.arange(rows) % options.classes, projections)
    return {**sizes, "fits": True, "counts": int(loss.bank.counts.sum()), "value": float(value)}


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    maps = options.images * options.map**2
    published = maps * (2 * options.dim * 4 + 8) / MEGABYTE
    rows = []
    for placement, size, options.exchange_dtype in CASES:
        if options.placement not in (None, placement):
            continue
        dtype = str(options.exchange_dtype).removeprefix("torch.")
        say(f"{placement}, {size} process{'es' if size > 1 else ''}, {dtype}")
        volume = on_processes(size, options, placement, volumes)
        rows.append(
            {
                **machine(torch.device("cpu"), None),
                "threads": 1,
                "placement": placement,
                "processes": size,
                "exchange_dtype": dtype,
                **{name: getattr(options, name) for name in SIZES},
                "bank_mb": round(volume["bank"] / MEGABYTE, 1),
                "collectives": volume["collectives"],
                "sent_mb": round(volume["sent"] / MEGABYTE, 2),
                "received_mb": round(volume["received"] / MEGABYTE, 2),
                "published_sent_mb": round(published, 1) if size > 1 else 0,
                "synced": "yes",
            }
        )
    append_rows(options.out / "sharing_bench.csv", COLUMNS, rows)
    print(
        f"One step, {options.images} maps of {options.map} x {options.map} per process, MB per process"
    )
    shown = (
        "placement",
        "processes",
        "exchange_dtype",
        "bank_mb",
        "collectives",
        "sent_mb",
        "received_mb",
        "published_sent_mb",
    )
    print_table(shown, [tuple(str(row[name]) for name in shown) for row in rows])
    options.exchange_dtype = None
    if Path("/proc/self/statm").exists() and options.placement is None:
        for placement, size in (("local", 1), ("replicated", 4), ("sharded", 4)):
            result = on_processes(size, options, placement, under_limit)
            verdict = "fits" if result["fits"] else f"does not fit: {result['error'][:90]}"
            bank, limit = (f"{result[name] / MEGABYTE:.0f} MB" for name in ("bank", "limit"))
            number = f"{size} process{'es' if size > 1 else ''}"
            print(f"bank of {bank}, limit {limit} per process, {placement}, {number}: {verdict}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument(
        "--dim", type=int, default=256, help="channels of features and of projections"
    )
    parser.add_argument("--capacity", type=int, default=10_000)
    parser.add_argument("--rows-per-push", type=int, default=1_000)
    parser.add_argument("--images", type=int, default=8, help="maps per process")
    parser.add_argument("--map", type=int, default=129, help="height and width of a map")
    parser.add_argument(
        "--placement",
        choices=PLACEMENTS,
        help="count for this one only, and run nothing under a limit",
    )
    parser.add_argument("--small", action="store_true", help="small sizes, which take seconds")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    options.exchange_dtype = None  # the bank's
    if options.small:
        options.classes, options.dim, options.capacity = 16, 128, 12_000
        options.rows_per_push, options.images, options.map = 100, 1, 24
    return options


if __name__ == "__main__":
    main()
