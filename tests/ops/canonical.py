"""The score that decides a selection, implemented a second time in numpy.

The canonical dot product has 32 lanes. Lane l sums elements l, l + 32, ... in increasing order with fused multiply-add.
Then lanes are added pairwise at distance 16, 8, 4, 2, 1. A norm is the square root of such a sum, and a unit row is an
elementwise division. l2 is the same sum of squared float differences. Every backend and instruction set must give
exactly these bits.
"""

import math
from fractions import Fraction

import numpy as np
import torch

METRICS = ("cosine", "dot", "l2")
LANES = 32


def fma(a, b, c):
    """a * b + c in float32 with one rounding, elementwise.

    The product of two float32 is exact in float64. The sum is rounded to odd there: truncated, with the last
    bit set if anything was lost. Float64 has more than 2 * 24 + 2 bits, so rounding that to float32 equals
    rounding the exact sum (Boldo and Melquiond, 2008).
    """
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    even = (total.view(np.int64) & 1) == 0
    toward = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where((error != 0) & even, toward, total).astype(np.float32)


def fma_double(a, b, c):
    """The same in float64, with exact fractions that are rounded once. Slow, so only for few numbers."""
    out = np.empty(np.broadcast_shapes(a.shape, b.shape, c.shape))
    for at, (x, y, z) in zip(np.ndindex(out.shape), np.nditer([a, b, c]), strict=True):
        out[at] = float(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)))
    return out


def canonical_dot(a, b):
    """[..., D] x [..., D] -> [...]."""
    a, b = np.broadcast_arrays(a, b)
    steps = -(-a.shape[-1] // LANES)
    fused = fma if a.dtype == np.float32 else fma_double
    lanes = np.zeros((*a.shape[:-1], LANES), dtype=a.dtype)
    for step in range(steps):
        part = slice(step * LANES, min((step + 1) * LANES, a.shape[-1]))
        width = part.stop - part.start
        lanes[..., :width] = fused(a[..., part], b[..., part], lanes[..., :width])
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def unit_rows(rows):
    """If the sum of squares leaves the safe range, rows are first scaled by a power of two."""
    square = canonical_dot(rows, rows)[:, None]
    smallest = np.exp2(-90 if rows.dtype == np.float32 else -900)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    rescue = ~((square >= smallest) & np.isfinite(square)) & (largest > 0)
    _, exponent = np.frexp(largest)
    rows = np.where(rescue, np.ldexp(rows, 1 - exponent), rows)
    norm = np.sqrt(canonical_dot(rows, rows))[:, None]
    return np.divide(rows, norm, out=np.zeros_like(rows), where=norm != 0)


def canonical_scores(queries, bank, metric):
    """[M, D] x [N, D] -> [M, N]."""
    if metric == "cosine":
        queries, bank = unit_rows(queries), unit_rows(bank)
    if metric == "l2":
        difference = queries[:, None] - bank[None]
        return -np.sqrt(canonical_dot(difference, difference))
    return canonical_dot(queries[:, None], bank[None])


def as_numpy(tensor, other=None):
    """In the compute type of both tensors."""
    wide = torch.float64 in (tensor.dtype, tensor.dtype if other is None else other.dtype)
    return tensor.cpu().to(torch.float64 if wide else torch.float32).numpy()


def round_to(exact, dtype) -> float:
    """A fraction, rounded once to the nearest float of `dtype` (ties to even)."""
    double = float(exact)
    if dtype == torch.float64:
        return double
    single = torch.tensor(double, dtype=torch.float64).float()
    near = [
        single,
        torch.nextafter(single, torch.tensor(math.inf)),
        torch.nextafter(single, torch.tensor(-math.inf)),
    ]
    even = [int(x.view(torch.int32)) & 1 for x in near]
    ranked = sorted(
        zip(near, even, strict=True),
        key=lambda pair: (abs(Fraction(pair[0].item()) - exact), pair[1]),
    )
    return ranked[0][0].item()
