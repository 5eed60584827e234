"""Several processes, as `torchrun` starts them; alone, each function does what one process needs."""

import gc
import os
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn


def start(device: str) -> str:
    """Joins the group that `torchrun` describes, if it does; returns the device of this rank."""
    if "LOCAL_RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return device
    if torch.device(device).type == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return device


def stop() -> None:
    if dist.is_available() and dist.is_initialized():
        gc.collect()  # DDP's modules lie in reference cycles and hold the group
        dist.barrier()
        dist.destroy_process_group()


def rank_and_ranks() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def with_shared_batch_norm(network: nn.Module, device: str) -> nn.Module:
    """With batch statistics over all ranks. PyTorch has it for CUDA alone; elsewhere each rank has its own."""
    if rank_and_ranks()[1] == 1 or torch.device(device).type != "cuda":
        return network
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)


def barrier() -> None:
    if rank_and_ranks()[1] > 1:
        dist.barrier()


def agree(number: int, device) -> bool:
    """Whether all ranks have the same number."""
    if rank_and_ranks()[1] == 1:
        return True
    limits = torch.tensor([number, -number], device=device)
    dist.all_reduce(limits, dist.ReduceOp.MAX)
    return int(limits[0]) == -int(limits[1])


def path_of_rank(path: Path, rank: int) -> Path:
    return path.with_suffix(f".rank{rank}{path.suffix}") if rank else path
