"""Several processes, as `torchrun` starts them; alone, each function does what one process needs."""

import gc
import os

import torch
from torch import distributed as dist
from torch import nn

from dgcl_ops._bank.exchange import gather, ranks_of


def start(device: str) -> str:
    """Joins the group that `torchrun` describes, if it does; returns the device of this rank.

    Raises:
        ValueError: `torchrun` may restart the processes, and they would find the addresses of those before them.
    """
    if "LOCAL_RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return device
    # PyTorch 2.13: by default the store of the addresses outlives the processes, and is read before it is rewritten.
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ValueError(
            "torchrun --max-restarts needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, and --standalone "
            f"or --rdzv-backend=c10d, got {restarts} restarts without"
        )
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
    return bool((gather(ranks_of(None), torch.tensor(number, device=device)) == number).all())
