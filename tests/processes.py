"""Several processes with a gloo group, and what each of them returns."""

import gc
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist
from torch import multiprocessing

TOLD = "result.{}.pt"


def on_ranks(size: int, folder: Path, function, *arguments) -> list:
    """function(rank, folder, *arguments) in each of `size` processes with a group; what it returned, by rank.

    The function has to be one of a module, and to return tensors, numbers, strings, lists and dicts alone.
    """
    multiprocessing.spawn(_process, args=(size, str(folder), function, arguments), nprocs=size)
    return [torch.load(Path(folder) / TOLD.format(rank)) for rank in range(size)]


def _process(rank: int, size: int, folder: str, function, arguments) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    where = f"file://{folder}/group"
    # Of processes that wait for each other in vain, the error should come soon; others may be compiling meanwhile.
    patience = timedelta(minutes=30)
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=size, timeout=patience)
    told = function(rank, Path(folder), *arguments)
    torch.save(told, Path(folder) / TOLD.format(rank))
    # Modules that lie in reference cycles hold the group, whose threads must not outlive the interpreter.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
