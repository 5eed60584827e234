"""The dtype in which a step computes, also under autocast."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any of the tensors is float64, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


# Looked up at import: Dynamo cannot trace the call in PyTorch 2.10 and 2.11.
AUTOCAST = {k: torch.amp.is_autocast_available(k) for k in ("cpu", "cuda", "meta", "mps", "xpu")}


def no_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """A context in which operations on the tensor's device keep the dtypes of their inputs."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if _has_autocast(kind) else contextlib.nullcontext()


def autocast_enabled(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device."""
    kind = tensor.device.type
    return _has_autocast(kind) and torch.is_autocast_enabled(kind)


def _has_autocast(kind: str) -> bool:
    return AUTOCAST[kind] if kind in AUTOCAST else torch.amp.is_autocast_available(kind)


class FixedDtypeModule(nn.Module):
    """A module whose buffers keep their dtype under `.half()` and `.to(dtype)`, and that refuses DataParallel.

    A cast to half precision would break two things: unit rows that are unit to float32's last bit, and a state that
    resumes exactly. Moves between devices work as usual. `to_empty` resets a module that was built on the meta device,
    since the new memory is uninitialised.
    """

    def reset_parameters(self) -> None:
        """Resets the buffers to the state of a new module."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def apply_without_cast(tensor: Tensor) -> Tensor:
            probe = fn(tensor.new_empty(0))  # finds device and dtype without casting the whole bank
            return fn(tensor) if probe.dtype == tensor.dtype else tensor.to(probe.device)

        was_meta = any(buffer.is_meta for buffer in self.buffers(recurse=False))
        moved: nn.Module = super()._apply(apply_without_cast, recurse)
        if was_meta and not any(buffer.is_meta for buffer in self.buffers(recurse=False)):
            self.reset_parameters()
        return moved

    def _replicate_for_data_parallel(self) -> nn.Module:
        raise RuntimeError(
            f"{type(self).__name__}: torch.nn.DataParallel is not supported: it discards its replicas after each "
            "forward, and the rows pushed into them are lost; use torch.nn.parallel.DistributedDataParallel, or call "
            "the loss outside the replicated model"
        )
