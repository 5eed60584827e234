"""Process groups started by `torchrun`. Every function also works in a single process."""

import gc
import os

import torch
from torch import Tensor, nn
from torch import distributed as dist


def start(device: str) -> str:
    """Joins the process group of `torchrun`, if there is one.

    Args:
        device: "cpu", "cuda" or a device with an index.

    Returns:
        The device of this rank.

    Raises:
        ValueError: If `torchrun` may restart the processes, but its settings make restarted processes read stale
            addresses.
    """
    if "LOCAL_RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return device
    # PyTorch 2.13: by default the address store outlives the processes, and a restarted process reads the old entries.
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ValueError(
            "torchrun --max-restarts needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, and --standalone "
            f"or --rdzv-backend=c10d, got {restarts} restarts without them"
        )
    if torch.device(device).type == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return device


def stop() -> None:
    """Waits for all ranks and leaves the process group."""
    if dist.is_available() and dist.is_initialized():
        gc.collect()  # DDP's modules lie in reference cycles and hold the group
        dist.barrier()
        dist.destroy_process_group()


def rank_and_world_size() -> tuple[int, int]:
    """Returns (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def ranks_that_share_batch_norm(device: str | torch.device) -> int:
    """Returns how many ranks normalise together. PyTorch's SyncBatchNorm needs CUDA."""
    return rank_and_world_size()[1] if torch.device(device).type == "cuda" else 1


def with_shared_batch_norm(network: nn.Module, device: str | torch.device) -> nn.Module:
    """Returns the network with batch statistics over all ranks where PyTorch supports it."""
    if ranks_that_share_batch_norm(device) == 1:
        return network
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)


def barrier() -> None:
    """Waits for all ranks. A no-op without a process group."""
    if rank_and_world_size()[1] > 1:
        dist.barrier()


def gather(tensor: Tensor) -> Tensor:
    """Gathers a tensor of one shape from all ranks: [...] -> [W, ...]."""
    world_size = rank_and_world_size()[1]
    if world_size == 1:
        return tensor.unsqueeze(0)
    received = [torch.empty_like(tensor) for _ in range(world_size)]
    dist.all_gather(received, tensor.contiguous())
    return torch.stack(received)


def agree(number: int, device: str | torch.device) -> bool:
    """Returns whether all ranks have the same number."""
    return bool((gather(torch.tensor(number, device=device)) == number).all())
