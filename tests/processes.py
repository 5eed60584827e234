"""Runs a function in several processes with a gloo group.

The processes are forks of a server that has imported PyTorch and started no thread, so they start at once.
"""

import gc
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist
from torch import multiprocessing

RESULT_FILE = "result.{}.pt"
multiprocessing.set_forkserver_preload(["torch._dynamo", "dgcl_ops", "hypothesis", "pytest"])


def on_ranks(size: int, folder: Path, function, *arguments) -> list:
    """Runs function(rank, folder, *arguments) in `size` processes with a process group and returns the results by rank.

    The function must live in a module and return only tensors, numbers, strings, lists and dicts.
    """
    arguments = (size, str(folder), function, arguments)
    multiprocessing.start_processes(_process, arguments, nprocs=size, start_method="forkserver")
    return [torch.load(Path(folder) / RESULT_FILE.format(rank)) for rank in range(size)]


def _process(rank: int, size: int, folder: str, function, arguments) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    where = f"file://{folder}/group"
    # If processes wait for each other in vain, the error should come soon, but others may still be compiling.
    patience = timedelta(minutes=30)
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=size, timeout=patience)
    result = function(rank, Path(folder), *arguments)
    torch.save(result, Path(folder) / RESULT_FILE.format(rank))
    # Modules in reference cycles keep the group alive, and its threads must not outlive the interpreter.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
