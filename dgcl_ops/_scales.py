"""The weights of a multi-scale density."""

import torch
from torch import Tensor


def scale_weights(scales, found: Tensor, ranks: int) -> Tensor:
    """Weights w[m, r] with which query m's sorted scores sum to its multi-scale density.

    w_r = (1/|K|) sum over {k in K : k' >= r} of 1/k', where k' = min(k, found) (derived in csrc/math/density.h). In
    float64, except on Apple GPUs, which have none.

    Shape: found [M] int64, the neighbours each query has -> [M, ranks].
    """
    wide = torch.float32 if found.device.type == "mps" else torch.float64
    rank = torch.arange(1, ranks + 1, device=found.device)
    weights = torch.zeros((found.shape[0], ranks), dtype=wide, device=found.device)
    for k in scales:
        clamped = found.clamp(max=k).unsqueeze(1)
        weights = weights + (rank <= clamped) / clamped.clamp(min=1).to(wide)
    return weights / len(scales)
