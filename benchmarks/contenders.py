"""Implementations of KNN densities behind one interface: ours, plain PyTorch, other libraries.

Each takes raw rows and returns densities. Normalising rows and building an index are timed.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import on_cuda
import published
import torch
from torch import Tensor
from workloads import Problem, density_of

from dgcl_ops import knn_density, knn_topk

OURS = "dgcl_ops"
PUBLISHED = "authors' way"
PLAIN = "matmul + one top-k"
PLAIN_FP32 = "matmul + one top-k, fp32"
BARE = "matmul and topk alone"
FLOOR = "fp32 matmul alone"
FAISS = "faiss IndexFlat"
PER_CLASS = "dgcl_ops, call per class"
# scikit-learn's brute force works on float64 chunks and is not meant for millions of pairs.
SKLEARN_PAIRS = 4_000_000
MATRIX_BYTES = 4e9  # the largest matrix of scores that is built on the CPU


@dataclass(frozen=True)
class Contender:
    """One implementation.

    Attributes:
        run: returns densities [M], or None if it computes none.
        missing: returns why it cannot take part, or "".
        neighbours: returns scores and indices [M, max(scales)]. None if it has no such function.
    """

    run: Callable[[Problem], Tensor | None]
    missing: Callable[[Problem], str] = lambda problem: ""
    neighbours: Callable[[Problem], tuple[Tensor, Tensor]] | None = None


def _cosine_only(problem: Problem) -> str:
    return "" if problem.metric == "cosine" else "implemented for cosine only"


def _matrix_too_large(problem: Problem) -> str:
    size = problem.queries.shape[0] * problem.bank.shape[-2] * max(4, problem.bank.element_size())
    if size <= MATRIX_BYTES or problem.queries.device.type != "cpu":
        return ""
    return f"its matrix would take {size / 1e9:.1f} GB, the limit is {MATRIX_BYTES / 1e9:.0f}"


def _package(module: str, cpu_only: bool = True) -> Callable[[Problem], str]:
    def missing(problem: Problem) -> str:
        try:
            __import__(module)
        except ImportError as error:
            return f"not installed ({error})"
        if cpu_only and problem.queries.device.type != "cpu":
            return "only its CPU build is supported here"
        return ""

    return missing


def _plain_rows(rows: Tensor, metric: str) -> Tensor:
    rows = rows.float()
    return torch.nn.functional.normalize(rows, dim=1) if metric == "cosine" else rows


def _options(problem: Problem) -> dict:
    return {"metric": problem.metric, "query_offsets": problem.offsets}


def _ours(problem: Problem) -> Tensor:
    return knn_density(problem.queries, problem.bank, problem.scales, **_options(problem))


def _our_neighbours(problem: Problem) -> tuple[Tensor, Tensor]:
    return knn_topk(problem.queries, problem.bank, max(problem.scales), **_options(problem))


def _ours_with_unit_bank(problem: Problem) -> Tensor:
    rows = problem.queries, problem.unit_bank
    return knn_density(*rows, problem.scales, unit_bank=True, **_options(problem))


def _published(problem: Problem) -> Tensor:
    return published.published_density(problem.queries, problem.bank, problem.scales)


def _matmul_topk(problem: Problem) -> Tensor:
    queries, bank, scales = problem.queries, problem.bank, problem.scales
    if problem.metric == "cosine":
        return published.matmul_topk_density(queries, bank, scales)
    if problem.metric == "dot":
        return density_of((queries @ bank.T).topk(max(scales)).values, scales)
    distances = torch.cdist(queries.float(), bank.float())  # by a matrix product
    return density_of(-distances.topk(max(scales), largest=False).values, scales)


def _matmul_topk_fp32(problem: Problem) -> Tensor:
    rows = {name: getattr(problem, name).float() for name in ("queries", "bank")}
    return _matmul_topk(replace(problem, **rows))


def _bare(problem: Problem) -> None:
    (problem.queries @ problem.bank.T).topk(max(problem.scales))


def _matmul_alone(problem: Problem) -> None:
    problem.queries.float() @ problem.bank.float().T


def _matmul_alone_bf16(problem: Problem) -> None:
    problem.queries.bfloat16() @ problem.bank.bfloat16().T


def _faiss(problem: Problem) -> Tensor:
    import faiss

    queries = _plain_rows(problem.queries, problem.metric)
    bank = _plain_rows(problem.bank, problem.metric)
    dim = bank.shape[1]
    index = faiss.IndexFlatL2(dim) if problem.metric == "l2" else faiss.IndexFlatIP(dim)
    index.add(bank.numpy())
    scores = torch.from_numpy(index.search(queries.numpy(), max(problem.scales))[0])
    if problem.metric == "l2":
        scores = -scores.clamp(min=0).sqrt()
    return density_of(scores, problem.scales)


def _sklearn(problem: Problem) -> Tensor:
    from sklearn.neighbors import NearestNeighbors

    metric = {"cosine": "cosine", "l2": "euclidean"}[problem.metric]
    search = NearestNeighbors(n_neighbors=max(problem.scales), algorithm="brute", metric=metric)
    search.fit(problem.bank.float().numpy())
    distances = torch.from_numpy(search.kneighbors(problem.queries.float().numpy())[0])
    scores = 1 - distances if problem.metric == "cosine" else -distances
    return density_of(scores, problem.scales)


def _sklearn_missing(problem: Problem) -> str:
    if problem.metric == "dot":
        return "has no dot product metric"
    pairs = problem.queries.shape[0] * problem.bank.shape[-2]
    if pairs > SKLEARN_PAIRS:
        return f"only run on small sizes, got {pairs:,} pairs"
    return _package("sklearn")(problem)


def _keops(problem: Problem) -> Tensor:
    from pykeops.torch import LazyTensor

    queries = LazyTensor(_plain_rows(problem.queries, problem.metric)[:, None, :])
    bank = LazyTensor(_plain_rows(problem.bank, problem.metric)[None, :, :])
    if problem.metric == "l2":
        scores = (
            -((queries - bank) ** 2).sum(-1).Kmin(max(problem.scales), dim=1).clamp(min=0).sqrt()
        )
    else:
        scores = -(-(queries | bank)).Kmin(max(problem.scales), dim=1)
    return density_of(scores, problem.scales)


SINGLE = {
    OURS: Contender(_ours, neighbours=_our_neighbours),
    "dgcl_ops, unit bank": Contender(
        _ours_with_unit_bank,
        lambda p: (
            _cosine_only(p)
            or (
                "" if p.bank.dtype in (torch.float32, torch.float64) else "float32 and float64 only"
            )
        ),
    ),
    PUBLISHED: Contender(_published, lambda p: _cosine_only(p) or _matrix_too_large(p)),
    PLAIN: Contender(_matmul_topk, _matrix_too_large),
    FLOOR: Contender(_matmul_alone, _matrix_too_large),
    FAISS: Contender(_faiss, _package("faiss")),
    "scikit-learn brute": Contender(_sklearn, _sklearn_missing),
    "pykeops": Contender(_keops, _package("pykeops", cpu_only=False)),
}
ON_REQUEST = {
    PLAIN_FP32: Contender(_matmul_topk_fp32, _matrix_too_large),
    BARE: Contender(_bare, _matrix_too_large),
}


def _float32_only(contender: Contender, what: str) -> Callable[[Problem], str]:
    def missing(problem: Problem) -> str:
        float32 = problem.queries.dtype == torch.float32
        return contender.missing(problem) if float32 else f"{what} needs float32 rows"

    return missing


def _with_tf32(contender: Contender) -> Contender:
    def run(problem: Problem) -> Tensor | None:
        with on_cuda.tf32(True):
            return contender.run(problem)

    return Contender(run, _float32_only(contender, "TF32"))


def _with_bf16(contender: Contender) -> Contender:
    """Rounds rows to bfloat16, which is timed. The scores are bfloat16 as well."""

    def run(problem: Problem) -> Tensor | None:
        rows = {name: getattr(problem, name).bfloat16() for name in ("queries", "bank")}
        return contender.run(replace(problem, **rows))

    return Contender(run, _float32_only(contender, "bf16"))


def _searching(path: str) -> Contender:
    def searching(function: Callable) -> Callable:
        def run(problem: Problem) -> object:
            with on_cuda.search_path(path):
                return function(problem)

        return run

    return Contender(searching(_ours), neighbours=searching(_our_neighbours))


def _per_class(contender: Contender) -> Contender:
    def run(problem: Problem) -> Tensor | None:
        parts = [contender.run(part) for part in problem.classes()]
        return None if parts[0] is None else torch.cat(parts)

    def missing(problem: Problem) -> str:
        return next(filter(None, map(contender.missing, problem.classes())), "")

    return Contender(run, missing)


GROUPED = {
    OURS: SINGLE[OURS],
    "dgcl_ops, unit bank": SINGLE["dgcl_ops, unit bank"],
    PER_CLASS: _per_class(SINGLE[OURS]),
    **{name: _per_class(SINGLE[name]) for name in (PUBLISHED, PLAIN, FLOOR, FAISS)},
}


# Faster and less exact. Users may have it enabled.
WITH_TF32 = {
    "authors' way, TF32": PUBLISHED,
    "matmul + one top-k, TF32": PLAIN,
    "TF32 matmul alone": FLOOR,
}
BF16_FLOOR = "bf16 matmul alone"
WITH_BF16 = {"authors' way, bf16": PUBLISHED, "matmul + one top-k, bf16": PLAIN}
FLOORS = (FLOOR, BARE, "TF32 matmul alone", BF16_FLOOR)


@functools.cache
def contenders_for(grouped: bool, device_type: str = "cpu") -> dict[str, Contender]:
    """Returns the contenders of a device by name, ours first."""
    offered = GROUPED if grouped else SINGLE
    if device_type != "cuda":
        return offered
    searching = {name: _searching(path) for name, path in on_cuda.SEARCH_PATHS.items()}
    floor = Contender(_matmul_alone_bf16, _matrix_too_large)
    floor = _per_class(floor) if grouped else floor
    with_bf16 = {name: _with_bf16(offered[plain]) for name, plain in WITH_BF16.items()}
    with_bf16[BF16_FLOOR] = replace(floor, missing=_float32_only(floor, "bf16"))
    with_tf32 = {name: _with_tf32(offered[plain]) for name, plain in WITH_TF32.items()}
    others = {name: contender for name, contender in offered.items() if name != OURS}
    return {**searching, **others, **with_tf32, **with_bf16}
