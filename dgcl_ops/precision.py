"""In which dtype a step computes, under autocast too."""

import contextlib

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any of the tensors is float64, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


# Looked up at import: Dynamo cannot trace the call in PyTorch 2.10 and 2.11.
AUTOCAST = {k: torch.amp.is_autocast_available(k) for k in ("cpu", "cuda", "meta", "mps", "xpu")}


def no_autocast(tensor: Tensor):
    """A context in which operations on the tensor's device keep the dtypes they are given."""
    kind = tensor.device.type
    has_autocast = AUTOCAST[kind] if kind in AUTOCAST else torch.amp.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if has_autocast else contextlib.nullcontext()
