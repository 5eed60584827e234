"""The state of the random numbers, and numbers below a bound. `ops.random_bits` draws the words.

The state is two words in a buffer. So a checkpoint continues exactly, all devices draw the same numbers, and a compiled
graph carries no generator.
"""

import torch
from torch import Tensor


def new_rng_state(seed: int | None, device: torch.device | str | None = None) -> Tensor:
    """[2] int64: (seed, step 0). Without a seed, torch's global generator draws one."""
    return torch.tensor([new_seed() if seed is None else seed, 0], dtype=torch.int64, device=device)


def new_seed() -> int:
    """A seed from torch's global generator: the CPU's, if modules are built on the meta device."""
    on_meta = torch.get_default_device().type == "meta"
    return int(torch.randint(0, 2**62, (), device="cpu" if on_meta else None))


def random_below(bits: Tensor, sizes: Tensor) -> Tensor:
    """Maps 32 random bits to [0, size) by multiply and shift, for sizes < 2^31. The bias is below size / 2^32."""
    return (bits * sizes) >> 32
