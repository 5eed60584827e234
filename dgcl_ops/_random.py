"""Counter-based random numbers: each is a hash of (seed, step, stream, index).

The state is two words in a buffer. So a checkpoint continues exactly, all devices draw the same numbers, and a compiled
graph carries no generator.
"""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF  # random words are 32 bits wide, held in int64
# The multipliers are below 2^31, so word * multiplier stays below 2^63 and int64 never overflows. A search for the
# least avalanche bias chose them: flipping an input bit flips each output bit half the time, within the noise of
# 32,768 samples.
_MULTIPLIERS = (0x4777BA65, 0x727CB4EF)
_OFFSETS = (0x6D2B79F5, 0x3C6EF372)  # moves 0, which the mixer maps to itself, off the fixed point


def new_rng_state(seed: int | None, device: torch.device | str | None = None) -> Tensor:
    """[2] int64: (seed, step 0). Without a seed, torch's global generator draws one."""
    if seed is None:
        seed = int(torch.randint(0, 2**62, ()))
    return torch.tensor([seed, 0], dtype=torch.int64, device=device)


def mix(word: Tensor) -> Tensor:
    """A bijection of [0, 2^32). Each output bit looks independent of each input bit."""
    word = ((word ^ (word >> 14)) * _MULTIPLIERS[0]) & _WORD
    word = ((word ^ (word >> 16)) * _MULTIPLIERS[1]) & _WORD
    return word ^ (word >> 17)


def random_bits(rng_state: Tensor, stream: int, shape: tuple[int, ...]) -> Tensor:
    """Random words of 32 bits: the hash of (seed, step, stream, index of the element).

    There are two key words. One is xored before two rounds of `mix`, the other is added between them. With only one
    key word, two streams would be permutations of each other.

    Args:
        rng_state: [2] int64, seed and step.
        stream: distinguishes the draws of one step.
        shape: shape of the result, with fewer than 2^32 elements.

    Returns:
        int64 in [0, 2^32), the same numbers on every device.
    """
    low, high = rng_state & _WORD, (rng_state >> 32) & _WORD  # [2]: of seed and step
    first = mix((low[0] + (_OFFSETS[0] + stream * _OFFSETS[1]) % (_WORD + 1)) & _WORD)
    first = mix(first ^ high[0])
    first = mix((first + low[1]) & _WORD)
    second = mix(((first + _OFFSETS[1]) & _WORD) ^ high[1])
    size = 1
    for extent in shape:
        size *= extent
    index = torch.arange(size, device=rng_state.device)
    return mix((mix(index ^ first) + second) & _WORD).view(shape)


def random_below(bits: Tensor, sizes: Tensor) -> Tensor:
    """Maps 32 random bits to [0, size) by multiply and shift, for sizes < 2^31. The bias is below size / 2^32."""
    return (bits * sizes) >> 32
