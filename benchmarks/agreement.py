"""Checks, before any timing, that all contenders agree with a float64 brute force on a random subset of the queries.

It compares the densities of every contender, and the neighbour sets of our `knn_topk`. Scores have rounding errors. So
the right neighbours are known, except for rows that score within twice the rounding bound of the k-th.
"""

from typing import NamedTuple

import torch
from common import Disagreement
from torch import Tensor
from workloads import Problem, density_of

from dgcl_ops import reference
from dgcl_ops._precision import compute_dtype

CHECKED_QUERIES = 64
# Allowed errors, relative to the size of the scores. Ours: 64 roundings of float32, as in the tests. Others: small
# enough to exclude a different quantity. A matrix product of 16-bit rows rounds each score to 8 or 11 bits.
OUR_TOLERANCE = 64 * 2.0**-24
TOLERANCES = {"float64": 1e-3, "float32": 1e-3, "float16": 1e-2, "bfloat16": 3e-2}
TF32_TOLERANCE = 2e-3  # both factors rounded to 11 bits


class Exact(NamedTuple):
    """The results of the brute force for some of the queries.

    Attributes:
        chosen: [m], indices of the queries, ascending.
        classes: [m], their classes. 0 if not grouped.
        scores: [m, k] of the k = max(scales) nearest rows, descending.
        indices: [m, k] of these rows in their class.
        density: [m].
    """

    chosen: Tensor
    classes: Tensor
    scores: Tensor
    indices: Tensor
    density: Tensor


def brute_force(problem: Problem) -> Exact:
    """Searches in float64 for some queries of each class. Ties go to the lower index."""
    generator = torch.Generator().manual_seed(1)
    parts, device = problem.classes(), problem.queries.device
    per_class = -(-CHECKED_QUERIES // len(parts))
    chosen, classes, scores, indices = [], [], [], []
    for c, (begin, part) in enumerate(zip(problem.cuts or (0,), parts, strict=False)):
        own = torch.randperm(part.queries.shape[0], generator=generator)[:per_class].sort().values
        own = own.to(device)
        queries, bank = part.queries[own].double(), part.bank.double()
        nearest = reference.knn_topk(queries, bank, max(problem.scales), problem.metric)
        chosen.append(own + begin)
        classes.append(torch.full_like(own, c))
        scores.append(nearest[0])
        indices.append(nearest[1])
    best = torch.cat(scores)
    density = density_of(best, problem.scales)
    return Exact(torch.cat(chosen), torch.cat(classes), best, torch.cat(indices), density)


def score_size(problem: Problem) -> float:
    """Returns how large the terms of a score can be. Rounding errors are proportional to that."""
    if problem.metric == "cosine":
        return 1.0
    norms = [rows.double().norm(dim=-1).max().item() for rows in (problem.queries, problem.bank)]
    return norms[0] * norms[1] if problem.metric == "dot" else norms[0] + norms[1]


def check_agreement(
    name: str, density: Tensor, problem: Problem, exact: Exact, dtype: str
) -> float:
    """Compares densities with the brute force.

    Args:
        name: the contender's name.
        density: [M].
        problem: the problem.
        exact: the brute force's results.
        dtype: name of the rows' data type.

    Returns:
        The largest error over the chosen queries.

    Raises:
        Disagreement: the error is larger than rounding explains.
    """
    m = problem.queries.shape[0]
    if density.shape != (m,):
        raise Disagreement(f"{name}: densities must have shape [{m}], got {list(density.shape)}")
    error = (density[exact.chosen].double() - exact.density).abs().max().item()
    allowed = OUR_TOLERANCE if name.startswith("dgcl_ops") else TOLERANCES[dtype]
    if "TF32" in name:
        allowed = TF32_TOLERANCE
    if "bf16" in name:  # rounds rows and scores to 8 bits, as a bank of that dtype does
        allowed = TOLERANCES["bfloat16"]
    if name == "dgcl_ops, unit bank":
        allowed *= 2  # the unit rows of the bank are rounded already
    allowed *= score_size(problem)
    if not error <= allowed:  # NaN too
        raise Disagreement(
            f"{name}: densities must be within {allowed:.1e} of float64 brute force, got error {error:.1e}"
        )
    return error


# ---- neighbour sets ---------------------------------------------------------------------------------


def rounding(problem: Problem) -> float:
    """Bounds the rounding error of a score (csrc/math/canonical.h).

    A sum takes D / 32 + 6 roundings in sequence: 32 lanes, then a tree. For cosine, each of the two rows is divided by
    the square root of such a sum. That adds half as many roundings for each row, a square root and a division. l2 stays
    below this. The brute force itself adds up to D + D / 32 + 16 roundings of float64.
    """
    dim = problem.queries.shape[1]
    wide = compute_dtype(problem.queries, problem.bank) == torch.float64
    ours = (2 * (dim / 32 + 6) + 4) * (2.0**-53 if wide else 2.0**-24)
    return score_size(problem) * 1.01 * (ours + (dim + dim / 32 + 16) * 2.0**-53)


def _scores_of(problem: Problem, exact: Exact, indices: Tensor) -> Tensor:
    """Returns float64 scores [m, k] of the chosen queries with bank rows of their class.

    Args:
        problem: the problem.
        exact: the brute force's results.
        indices: [m, k], the bank rows.
    """
    bank = problem.bank if problem.bank.dim() == 3 else problem.bank[None]
    queries = problem.queries[exact.chosen].double()[:, None]
    rows = bank[exact.classes[:, None], indices].double()
    if problem.metric == "l2":
        return -(queries - rows).norm(dim=-1)
    if problem.metric == "cosine":
        queries, rows = reference.unit_rows(queries), reference.unit_rows(rows)
    return (queries * rows).sum(-1)


def check_neighbours(
    name: str, neighbours: tuple[Tensor, Tensor], problem: Problem, exact: Exact
) -> None:
    """Compares neighbour sets with the brute force.

    Args:
        name: the contender's name.
        neighbours: scores and indices, [M, k] each.
        problem: the problem.
        exact: the brute force's results.

    Raises:
        Disagreement: a set, its scores or its order differ by more than rounding explains.
    """
    values, indices = (t[exact.chosen] for t in neighbours)
    values, rows, k = values.double(), problem.bank.shape[-2], exact.scores.shape[1]

    def demand(holds: Tensor, rule: str) -> None:
        if not holds.all():
            wrong = (~holds.reshape(len(holds), -1).all(1)).nonzero()[0, 0]
            query = exact.chosen[wrong].item()
            raise Disagreement(f"{name}: neighbours: {rule}, violated by query {query}")

    ranked = indices.sort(1).values
    demand((indices >= 0) & (indices < rows), f"indices must lie in [0, {rows})")
    demand(ranked[:, 1:] > ranked[:, :-1], "a row must occur only once")
    error = rounding(problem)
    scores, kth = _scores_of(problem, exact, indices), exact.scores[:, -1:]
    demand((values - scores).abs() <= error, f"scores must be within {error:.1e} of float64's")
    demand(scores >= kth - 2 * error, f"no row may score {2 * error:.1e} below the k-th, k = {k}")
    present = (exact.indices[:, :, None] == indices[:, None, :]).any(2)
    must = exact.scores > kth + 2 * error
    demand(
        present | ~must,
        f"a row that scores more than {2 * error:.1e} above the k-th must be present, k = {k}",
    )
    falling = values[:, 1:] < values[:, :-1]
    tied = (values[:, 1:] == values[:, :-1]) & (indices[:, 1:] > indices[:, :-1])
    demand(falling | tied, "scores must descend, and equal scores must have ascending indices")
