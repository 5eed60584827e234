"""Small random inputs for the first checks on a GPU, and the tolerances for their results."""

import torch
from torch import Tensor

from dgcl_ops.doctor.compare import TOLERANCE

QUERIES, BANK, DIM = 230, 700, 67  # odd, and larger than a tile in each direction


class Draw:
    """Draws random inputs. Every instance draws the same numbers."""

    def __init__(self, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)

    def rows(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(dtype)

    def integers(
        self, low: int, high: int, shape: tuple, dtype: torch.dtype = torch.int64
    ) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator).to(dtype)


def tolerance(result: Tensor) -> float:
    """Returns the tolerance for a result. Both sides round, and narrow dtypes round once more."""
    narrow = result.dtype in (torch.float16, torch.bfloat16)
    return 2 * TOLERANCE + (torch.finfo(result.dtype).eps if narrow else 0.0)


def offset(rows: Tensor) -> Tensor:
    """Copies rows to an address that is not aligned to 16 bytes."""
    wider = torch.cat([rows.flatten()[:1], rows.flatten()])
    return wider[1:].view(rows.shape)


def strided(rows: Tensor) -> Tensor:
    """Copies rows to memory with strided elements."""
    return rows.transpose(-1, -2).contiguous().transpose(-1, -2)
