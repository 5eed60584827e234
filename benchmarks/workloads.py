"""Inputs of knn_bench.py, and the check that all contenders compute the same from them."""

import torch
from common import Disagreement
from contenders import Problem
from torch import Tensor

from dgcl_ops import reference

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
CENTRES = 12
# Noise around a centre, per unit of the centre's own spread: cosine 1 / (1 + spread^2) inside a cluster.
# Cosine 0.55 in 12 clusters; 0.96 in one; 0.9999, where float32 sums hardly tell rows apart.
SPREADS = {"clusters": 0.905, "tight": 0.204, "near_equal": 0.01}
CHECKED_QUERIES = 64
# Errors allowed, per size of the scores. Ours: the tests' 64 roundings of float32. Others: enough to tell a
# like quantity from another; a matrix product of 16-bit rows rounds each score to 8 or 11 bits.
OUR_TOLERANCE = 64 * 2.0**-24
TOLERANCES = {"float64": 1e-3, "float32": 1e-3, "float16": 1e-2, "bfloat16": 3e-2}
TF32_TOLERANCE = 2e-3  # both factors rounded to 11 bits


# ---- data -------------------------------------------------------------------------------------------


def random_rows(data: str, rows: int, dim: int, generator: torch.Generator) -> Tensor:
    """[rows, D]: rows of one distribution. "uniform" are uniform directions."""
    noise = torch.randn(rows, dim, generator=generator)
    if data == "uniform":
        return noise
    centres = torch.randn(CENTRES if data == "clusters" else 1, dim, generator=generator)
    chosen = torch.randint(len(centres), (rows,), generator=generator)
    return noise.mul_(SPREADS[data]).add_(centres[chosen])


def unequal_offsets(total: int, classes: int) -> Tensor:
    """[C + 1]: class c gets a share in proportion to 1 / (c + 2)."""
    share = 1.0 / torch.arange(2, classes + 2, dtype=torch.float64)
    ends = (share.cumsum(0) / share.sum() * total).round().to(torch.int64)
    return torch.nn.functional.pad(ends, (1, 0))


def build(case: dict) -> Problem:
    """The same inputs whenever it is called with the same case."""
    m, n, dim, classes = case["queries"], case["bank"], case["dim"], case["classes"]
    generator = torch.Generator().manual_seed(0)
    offsets = unequal_offsets(m, classes) if classes else torch.tensor([0, m])
    queries, banks = torch.empty(m, dim), torch.empty(max(1, classes), n, dim)
    for c in range(len(banks)):
        begin, end = offsets[c], offsets[c + 1]
        rows = random_rows(case["data"], n + int(end - begin), dim, generator)
        banks[c], queries[begin:end] = rows[:n], rows[n:]
    bank = banks if classes else banks[0]
    unit_bank = torch.nn.functional.normalize(bank, dim=-1)
    device, dtype = case["device"], DTYPES[case["dtype"]]
    queries, bank, unit_bank = (t.to(device, dtype) for t in (queries, bank, unit_bank))
    cuts = tuple(offsets.tolist()) if classes else ()
    offsets = offsets.to(device) if classes else None
    return Problem(queries, bank, unit_bank, tuple(case["scales"]), case["metric"], offsets, cuts)


# ---- agreement --------------------------------------------------------------------------------------


def exact_densities(problem: Problem) -> tuple[Tensor, Tensor]:
    """A random subset of the queries, ascending, and their densities by float64 brute force."""
    m = problem.queries.shape[0]
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randperm(m, generator=generator)[:CHECKED_QUERIES].sort().values
    chosen = chosen.to(problem.queries.device)
    offsets = problem.offsets
    if offsets is not None:
        offsets = torch.searchsorted(chosen, offsets)
    expected = reference.knn_density(
        problem.queries[chosen].double(),
        problem.bank.double(),
        problem.scales,
        problem.metric,
        query_offsets=offsets,
    )
    return chosen, expected


def score_size(problem: Problem) -> float:
    """How large the scores' summands get: what rounding errors are in proportion to."""
    if problem.metric == "cosine":
        return 1.0
    norms = [rows.double().norm(dim=-1).max().item() for rows in (problem.queries, problem.bank)]
    return norms[0] * norms[1] if problem.metric == "dot" else norms[0] + norms[1]


def check_agreement(
    name: str, density: Tensor, problem: Problem, chosen: Tensor, expected: Tensor, dtype: str
) -> float:
    """Largest error over the chosen queries; Disagreement if it is more than rounding explains."""
    m = problem.queries.shape[0]
    if density.shape != (m,):
        raise Disagreement(f"{name}: densities must have shape [{m}], got {list(density.shape)}")
    error = (density[chosen].double() - expected).abs().max().item()
    allowed = OUR_TOLERANCE if name.startswith("dgcl_ops") else TOLERANCES[dtype]
    if "TF32" in name:
        allowed = TF32_TOLERANCE
    if name == "dgcl_ops, unit bank":
        allowed *= 2  # the bank's rows were rounded to unit rows before
    allowed *= score_size(problem)
    if not error <= allowed:  # NaN too
        raise Disagreement(
            f"{name}: densities must be within {allowed:.1e} of float64 brute force, got error {error:.1e}"
        )
    return error
