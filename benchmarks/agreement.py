"""The check before any timing: every contender computes the same, and that is what float64 brute force finds.

Densities of all contenders, on a random subset of the queries. For ours the neighbour sets of `knn_topk` too: scores
are off by rounding, so which rows must be found, and which must not, is known but for those within twice the
rounding of the k-th.
"""

from typing import NamedTuple

import torch
from common import Disagreement
from problem import Problem, density_of
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops._precision import compute_dtype

CHECKED_QUERIES = 64
# Errors allowed, per size of the scores. Ours: the tests' 64 roundings of float32. Others: enough to tell a
# like quantity from another; a matrix product of 16-bit rows rounds each score to 8 or 11 bits.
OUR_TOLERANCE = 64 * 2.0**-24
TOLERANCES = {"float64": 1e-3, "float32": 1e-3, "float16": 1e-2, "bfloat16": 3e-2}
TF32_TOLERANCE = 2e-3  # both factors rounded to 11 bits


class Exact(NamedTuple):
    """What float64 brute force finds for some of the queries."""

    chosen: Tensor  # [m] which queries, ascending
    classes: Tensor  # [m] the class of each; 0 if not grouped
    scores: Tensor  # [m, k] of the k = max(scales) nearest rows, sorted downward
    indices: Tensor  # [m, k] into the rows of the class
    density: Tensor  # [m]


def brute_force(problem: Problem) -> Exact:
    """Some queries of each class, ties to the lower index."""
    generator = torch.Generator().manual_seed(1)
    parts, device = problem.classes(), problem.queries.device
    share = -(-CHECKED_QUERIES // len(parts))
    chosen, classes, scores, indices = [], [], [], []
    for c, (begin, part) in enumerate(zip(problem.cuts or (0,), parts, strict=False)):
        own = torch.randperm(part.queries.shape[0], generator=generator)[:share].sort().values
        own = own.to(device)
        queries, bank = part.queries[own].double(), part.bank.double()
        found = reference.knn_topk(queries, bank, max(problem.scales), problem.metric)
        chosen.append(own + begin)
        classes.append(torch.full_like(own, c))
        scores.append(found[0])
        indices.append(found[1])
    best = torch.cat(scores)
    density = density_of(best, problem.scales)
    return Exact(torch.cat(chosen), torch.cat(classes), best, torch.cat(indices), density)


def score_size(problem: Problem) -> float:
    """How large the scores' summands get: what rounding errors are in proportion to."""
    if problem.metric == "cosine":
        return 1.0
    norms = [rows.double().norm(dim=-1).max().item() for rows in (problem.queries, problem.bank)]
    return norms[0] * norms[1] if problem.metric == "dot" else norms[0] + norms[1]


def check_agreement(
    name: str, density: Tensor, problem: Problem, exact: Exact, dtype: str
) -> float:
    """Largest error over the chosen queries; Disagreement if it is more than rounding explains."""
    m = problem.queries.shape[0]
    if density.shape != (m,):
        raise Disagreement(f"{name}: densities must have shape [{m}], got {list(density.shape)}")
    error = (density[exact.chosen].double() - exact.density).abs().max().item()
    allowed = OUR_TOLERANCE if name.startswith("dgcl_ops") else TOLERANCES[dtype]
    if "TF32" in name:
        allowed = TF32_TOLERANCE
    if "bf16" in name:  # rows and scores rounded to 8 bits, as with a bank of that dtype
        allowed = TOLERANCES["bfloat16"]
    if name == "dgcl_ops, unit bank":
        allowed *= 2  # the bank's rows were rounded to unit rows before
    allowed *= score_size(problem)
    if not error <= allowed:  # NaN too
        raise Disagreement(
            f"{name}: densities must be within {allowed:.1e} of float64 brute force, got error {error:.1e}"
        )
    return error


# ---- neighbour sets ---------------------------------------------------------------------------------


def rounding(problem: Problem) -> float:
    """How far a score can be from the exact one, by the roundings on the way to it (csrc/math/canonical.h).

    32 lanes and their tree add D / 32 + 6 roundings in sequence. For cosine, the square root of such a sum divides each
    of the two rows, which adds half as many of each, a square root and a division; l2 stays below that. The brute
    force itself adds up to D + D / 32 + 16 of float64.
    """
    dim = problem.queries.shape[1]
    wide = compute_dtype(problem.queries, problem.bank) == torch.float64
    ours = (2 * (dim / 32 + 6) + 4) * (2.0**-53 if wide else 2.0**-24)
    return score_size(problem) * 1.01 * (ours + (dim + dim / 32 + 16) * 2.0**-53)


def _scores_of(problem: Problem, exact: Exact, indices: Tensor) -> Tensor:
    """Float64 scores of the chosen queries with the bank rows [m, k] of their class."""
    bank = problem.bank if problem.bank.dim() == 3 else problem.bank[None]
    queries = problem.queries[exact.chosen].double()[:, None]
    rows = bank[exact.classes[:, None], indices].double()
    if problem.metric == "l2":
        return -(queries - rows).norm(dim=-1)
    if problem.metric == "cosine":
        queries, rows = reference.unit_rows(queries), reference.unit_rows(rows)
    return (queries * rows).sum(-1)


def check_neighbours(name: str, found: tuple[Tensor, Tensor], problem: Problem, exact: Exact):
    """Disagreement if a set of neighbours, its scores or its order differ by more than rounding explains."""
    values, indices = (t[exact.chosen] for t in found)
    values, rows, k = values.double(), problem.bank.shape[-2], exact.scores.shape[1]

    def demand(right: Tensor, rule: str):
        if not right.all():
            wrong = (~right.reshape(len(right), -1).all(1)).nonzero()[0, 0]
            query = exact.chosen[wrong].item()
            raise Disagreement(f"{name}: neighbours: {rule}; not so for query {query}")

    ranked = indices.sort(1).values
    demand((indices >= 0) & (indices < rows), f"indices must lie in [0, {rows})")
    demand(ranked[:, 1:] > ranked[:, :-1], "a row must be found once only")
    error = rounding(problem)
    scores, kth = _scores_of(problem, exact, indices), exact.scores[:, -1:]
    demand((values - scores).abs() <= error, f"scores must be within {error:.1e} of float64's")
    demand(scores >= kth - 2 * error, f"no row may be worse than number {k} by {2 * error:.1e}")
    present = (exact.indices[:, :, None] == indices[:, None, :]).any(2)
    must = exact.scores > kth + 2 * error
    demand(
        present | ~must, f"a row better than number {k} by more than {2 * error:.1e} must be there"
    )
    falling = values[:, 1:] < values[:, :-1]
    tied = (values[:, 1:] == values[:, :-1]) & (indices[:, 1:] > indices[:, :-1])
    demand(falling | tied, "scores must fall, and of equal ones the lower index come first")
