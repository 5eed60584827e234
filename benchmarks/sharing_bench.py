"""What processes that share a memory bank send each other in a step, and what each of them holds.

    python benchmarks/sharing_bench.py              # PASCAL VOC setting, 1, 2 and 4 processes; 10 GB of memory, minutes
    python benchmarks/sharing_bench.py --small      # seconds

The processes are of this machine, with gloo. Volumes are counted at torch.distributed's collectives: what a process
gives and what it gets, of its own part as well. They depend on shapes alone, and are the same with NCCL. Times would
be those of processes that share two cores, and are not told.

"published" is arithmetic: the published program gathers the dense float32 maps of features and projections and
their labels, of all images.

The last lines: a process whose address space may grow by less than the bank's size cannot have the bank, and four
processes under the same limit can, each with a window of every ring.
"""

import argparse
import gc
import os
import resource
import tempfile
from pathlib import Path

import torch
from common import MACHINE_COLUMNS, ROOT, append_rows, machine, print_table, say
from torch import distributed as dist
from torch import multiprocessing

from dgcl_ops import DensityContrastLoss

SIZES = ("classes", "dim", "capacity", "rows_per_push", "images", "map")
COLUMNS = (
    *(*MACHINE_COLUMNS, "placement", "processes", *SIZES),
    *("bank_mb", "collectives", "given_mb", "got_mb", "published_given_mb", "synced"),
)
CASES = [("local", 1), ("replicated", 2), ("replicated", 4), ("sharded", 2), ("sharded", 4)]
MEGABYTE = 1e6


class Counted:
    """Counts what goes through the collectives that the bank uses."""

    def __init__(self):
        self.calls = self.given = self.got = 0
        for name in ("all_gather_single", "all_to_all_single"):
            setattr(dist, name, self._counting(getattr(dist, name)))

    def _counting(self, collective):
        def counting(output, given, **options):
            self.calls += 1
            self.given += given.nbytes
            self.got += output.nbytes
            return collective(output, given, **options)

        return counting


def loss_of(options, placement: str) -> DensityContrastLoss:
    return DensityContrastLoss(
        options.classes,
        options.dim,
        bank_capacity=options.capacity,
        rows_per_push=options.rows_per_push,
        max_candidates=10_000,
        placement=placement,
        seed=0,
    )


def batch_of(options, rank: int):
    generator = torch.Generator().manual_seed(rank)
    shape = (options.images, options.dim, options.map, options.map)
    features, projections = (torch.randn(shape, generator=generator) for _ in range(2))
    sizes = (options.images, options.map, options.map)
    return projections, torch.randint(options.classes, sizes, generator=generator), features


def process(rank: int, size: int, folder: str, options, placement: str, function) -> None:
    torch.set_num_threads(1)
    where = f"file://{folder}/group"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=size)
    told = function(rank, options, placement)
    if rank == 0:
        torch.save(told, f"{folder}/told.pt")
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def on_processes(size: int, options, placement: str, function) -> dict:
    """What rank 0 told."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (size, folder, options, placement, function)
        multiprocessing.spawn(process, args=arguments, nprocs=size)
        return torch.load(f"{folder}/told.pt")


def volumes(rank: int, options, placement: str) -> dict:
    """Two steps; the second, in which all classes take part, is counted."""
    loss, batch = loss_of(options, placement), batch_of(options, rank)
    loss(*batch)
    counted = Counted()
    value = loss(*batch)
    told = {"collectives": counted.calls, "given": counted.given, "got": counted.got}
    loss.bank.assert_synced()
    rows = (loss.bank.features, loss.bank.projections, loss.bank.density)
    assert value > 0, "no class took part: what was counted is not a whole step"
    return {**told, "bank": sum(buffer.nbytes for buffer in rows)}


def under_limit(rank: int, options, placement: str) -> dict:
    """Whether a bank of this placement fits when the address space may grow by 0.7 of the whole bank."""
    # What PyTorch and gloo take once, they take before.
    loss = DensityContrastLoss(
        2, 4, bank_capacity=8, rows_per_push=4, scales=(2,), placement=placement
    )
    loss(torch.randn(8, 4), torch.arange(8) % 2)
    size = options.classes * options.capacity * (2 * options.dim + 1) * 4
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = now + int(0.7 * size)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    told = {"bank": size, "limit": limit - now}
    try:
        loss = loss_of(options, placement)
    except RuntimeError as error:
        return {**told, "fits": False, "error": str(error).splitlines()[0]}
    rows = 4 * options.classes
    projections = torch.randn(rows, options.dim)
    for _ in range(2):
        value = loss(projections, torch.arange(rows) % options.classes, projections)
    return {**told, "fits": True, "counts": int(loss.bank.counts.sum()), "value": float(value)}


def main(arguments=None) -> None:
    options = parse(arguments)
    maps = options.images * options.map**2
    published = maps * (2 * options.dim * 4 + 8) / MEGABYTE
    rows = []
    for placement, size in CASES:
        say(f"{placement}, {size} process{'es' if size > 1 else ''}")
        told = on_processes(size, options, placement, volumes)
        rows.append(
            {
                **machine(torch.device("cpu"), None),
                "threads": 1,
                "placement": placement,
                "processes": size,
                **{name: getattr(options, name) for name in SIZES},
                "bank_mb": round(told["bank"] / MEGABYTE, 1),
                "collectives": told["collectives"],
                "given_mb": round(told["given"] / MEGABYTE, 2),
                "got_mb": round(told["got"] / MEGABYTE, 2),
                "published_given_mb": round(published, 1) if size > 1 else 0,
                "synced": "yes",
            }
        )
    append_rows(options.out / "sharing_bench.csv", COLUMNS, rows)
    print(
        f"One step, {options.images} maps of {options.map} x {options.map} in each process, MB per process"
    )
    shown = (
        "placement",
        "processes",
        "bank_mb",
        "collectives",
        "given_mb",
        "got_mb",
        "published_given_mb",
    )
    print_table(shown, [tuple(str(row[name]) for name in shown) for row in rows])
    if Path("/proc/self/statm").exists():
        for placement, size in (("local", 1), ("replicated", 4), ("sharded", 4)):
            told = on_processes(size, options, placement, under_limit)
            end = "fits" if told["fits"] else f"does not fit: {told['error'][:90]}"
            sizes = f"{told['bank'] / MEGABYTE:.0f} MB, {told['limit'] / MEGABYTE:.0f} MB allowed"
            number = f"{size} process{'es' if size > 1 else ''}"
            print(f"a bank of {sizes} to each process: {placement}, {number}: {end}")


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--dim", type=int, default=256, help="of features and of projections")
    parser.add_argument("--capacity", type=int, default=10_000)
    parser.add_argument("--rows-per-push", type=int, default=1_000)
    parser.add_argument("--images", type=int, default=8, help="maps of each process")
    parser.add_argument("--map", type=int, default=129, help="height and width")
    parser.add_argument("--small", action="store_true", help="sizes that take seconds")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    if options.small:
        options.classes, options.dim, options.capacity = 16, 128, 12_000
        options.rows_per_push, options.images, options.map = 100, 1, 24
    return options


if __name__ == "__main__":
    main()
