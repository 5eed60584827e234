"""Random words of a counter-based generator."""

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops.ops import _arguments, _registry

_OP = "dgcl_ops::random_bits"
_registry.define(
    "random_bits(Tensor rng_state, int stream, SymInt count) -> Tensor",
    reference.random_bits,
)


def random_bits(rng_state: Tensor, stream: int, count: int) -> Tensor:
    """Random words of 32 bits, each a hash of seed, step, stream and index.

    The same numbers on every device. Nothing is stored: the same arguments give the same words, and the words of a
    smaller `count` are the first ones of a larger.

    Args:
        rng_state: [2] int64, seed and step. Any values.
        stream: distinguishes the draws of one step. An int64; it counts modulo 2^32.
        count: number of words, less than 2^32.

    Returns:
        The words, [count] int64 in [0, 2^32).

    Raises:
        TypeError: If `rng_state` is not a tensor, or `stream` is not an integer.
        RuntimeError: If shape or dtype of `rng_state` are wrong, or `count` is out of range.
    """
    _arguments.tensors("random_bits", rng_state=rng_state)
    stream = _arguments.integral("random_bits", "stream", stream)
    return torch.ops.dgcl_ops.random_bits(rng_state, stream, count)


@_registry.register_fake(_OP)
def _fake(rng_state: Tensor, stream: int, count: int) -> Tensor:
    return rng_state.new_empty((count,), dtype=torch.int64)


_registry.refuse_vmap("random_bits", "call it once per batch element")
