"""The weights of a multi-scale density."""

from collections.abc import Sequence

import torch
from torch import Tensor


def scale_weights(scales: Sequence[int], neighbours: Tensor, width: int) -> Tensor:
    """Weights that sum the sorted scores of a query to its multi-scale density.

    w_r = (1/|K|) sum over {k in K : k' >= r} of 1/k', with k' = min(k, neighbours). See csrc/math/density.h for the
    derivation. In float64, except on Apple GPUs, which have none.

    Args:
        scales: K.
        neighbours: [M] int64, the number of neighbours each query has.
        width: number of scores R of each query.

    Returns:
        [M, R]: weight of the r-th best score of query m.
    """
    wide = torch.float32 if neighbours.device.type == "mps" else torch.float64
    rank = torch.arange(1, width + 1, device=neighbours.device)
    weights = torch.zeros((neighbours.shape[0], width), dtype=wide, device=neighbours.device)
    for k in scales:
        clamped = neighbours.clamp(max=k).unsqueeze(1)
        weights = weights + (rank <= clamped) / clamped.clamp(min=1).to(wide)
    return weights / len(scales)
