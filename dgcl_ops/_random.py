"""The state of the random numbers, and numbers below a bound. `ops.random_bits` draws the words.

The state is two words in a buffer. So a checkpoint continues exactly, all devices draw the same numbers, and a compiled
graph carries no generator.
"""

import torch
from torch import Tensor


def new_rng_state(seed: int | None, device: torch.device | str | None = None) -> Tensor:
    """[2] int64: (seed, step 0). Without a seed, torch's global generator draws one."""
    if seed is None:
        seed = int(torch.randint(0, 2**62, ()))
    return torch.tensor([seed, 0], dtype=torch.int64, device=device)


def random_below(bits: Tensor, sizes: Tensor) -> Tensor:
    """Maps 32 random bits to [0, size) by multiply and shift, for sizes < 2^31. The bias is below size / 2^32."""
    return (bits * sizes) >> 32
