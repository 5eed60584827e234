"""The doctor's checks of the search and its gradients: inputs reach several tiles, parts of the bank and classes.

Each check gets the side under test and a tally, and knows no device: everything goes through `side` (the device) and
`side.twin` (the compiled CPU operators).
"""

import torch

from dgcl_ops import ops, reference, reference_backward
from dgcl_ops._doctor_side import TOLERANCE, Side, Tally
from dgcl_ops.scales import scale_weights

METRICS = ("cosine", "dot", "l2")


class Random:
    """The same numbers each time."""

    def __init__(self, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)

    def rows(self, *shape, dtype=torch.float32):
        return torch.randn(shape, generator=self.generator).to(dtype)

    def whole_rows(self, *shape):
        """Few values: many equal scores."""
        return torch.randint(-2, 3, shape, generator=self.generator).float()


# ---- search ---------------------------------------------------------------------------------------


def with_holes(rows):
    """Zero rows, rows that are no neighbours, and rows near the ends of float32's range."""
    rows = rows.clone()
    rows[3] = rows[64] = 0
    rows[7, 2] = rows[-1] = torch.nan
    rows[11] *= 2.0**100
    rows[12] *= 2.0**-100
    return rows


def grouped(random: Random, dtype=torch.float32) -> dict:
    """Four classes: one without queries, one without rows; queries before the first and after the last."""
    return {
        "queries": random.rows(230, 40, dtype=dtype),
        "bank": random.rows(4, 150, 40, dtype=dtype),
        "query_offsets": torch.tensor([2, 140, 140, 205, 228]),
        "bank_counts": torch.tensor([150, 90, 0, 37]),
    }


def search_cases():
    """Names and arguments of knn_topk. Queries go by tiles of 64, rows by tiles of 128 and parts of 512 and more."""
    random = Random()
    for metric in METRICS:
        plain = {"queries": random.rows(150, 67), "bank": random.rows(700, 67), "metric": metric}
        yield metric, {**plain, "k": 33}
        ties = {"queries": random.whole_rows(70, 5), "bank": random.whole_rows(400, 5)}
        yield f"{metric} with ties", {**ties, "metric": metric, "k": 40}
        yield f"{metric} grouped", {**grouped(random), "metric": metric, "k": 9}
        own = {**grouped(random), "metric": metric, "k": 32, "exclude_self": True}
        yield f"{metric} without self", own
    yield "k 256", {"queries": random.rows(70, 33), "bank": random.rows(600, 33), "k": 256}
    yield "k 300", {"queries": random.rows(70, 33), "bank": random.rows(600, 33), "k": 300}
    yield "k beyond the bank", {"queries": random.rows(9, 3), "bank": random.rows(20, 3), "k": 32}
    yield "parts", {"queries": random.rows(3, 128), "bank": random.rows(3000, 128), "k": 16}
    # So near each other that the filter cannot tell them apart.
    near = random.rows(1, 64) + 1e-3 * random.rows(970, 64)
    yield "near-equal rows", {"queries": near[900:], "bank": near[:900], "k": 32}
    unit = reference.unit_rows(random.rows(500, 96).double()).float()
    yield "unit bank", {"queries": random.rows(90, 96), "bank": unit, "k": 32, "unit_bank": True}
    holes = {"queries": with_holes(random.rows(80, 40)), "bank": with_holes(random.rows(300, 40))}
    yield "zero, NaN and extreme rows", {**holes, "k": 32}
    for queries, bank in (
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float32),
    ):
        rows = {
            "queries": random.rows(70, 72, dtype=queries),
            "bank": random.rows(400, 72).to(bank),
        }
        yield f"{queries} in {bank}".replace("torch.", ""), {**rows, "k": 20}


def spaced(rows):
    """The same numbers in every second row, and behind a column: a view that no vector load is aligned to."""
    wide = rows.new_full((*rows.shape[:-2], 2 * rows.shape[-2], rows.shape[-1] + 3), torch.nan)
    view = wide[..., ::2, 1:-2]
    view.copy_(rows)
    return view


def topk_of_views(queries, bank, k, **options):
    return ops.knn_topk(spaced(queries), spaced(bank), k, **options)


def widened(case: dict) -> dict:
    return {**case, "queries": case["queries"].double(), "bank": case["bank"].double()}


def check_knn_topk(side: Side, tally: Tally) -> None:
    """Values against float64, and the float64 score of each row chosen."""
    for name, case in search_cases():
        values, indices = side(ops.knn_topk, **case)
        tally.same(name, (values, indices), side.twin(ops.knn_topk, **case))
        every = {**widened(case), "k": case["bank"].shape[-2]}
        scores, rows = reference.knn_topk(**every)
        missing = scores.new_full((scores.shape[0], 1), -torch.inf)
        best = torch.cat([scores, missing.expand(-1, case["k"])], dim=1)[:, : case["k"]]
        tally.near(f"{name}, values", values, best)
        table = torch.cat([scores, missing], dim=1)  # of each row; the last column of a missing one
        table = table.scatter(1, rows % table.shape[1], scores)
        tally.near(f"{name}, chosen rows", values, table.gather(1, indices % table.shape[1]))
        if side.compiled and name in METRICS:
            tally.same(f"{name}, views", side(topk_of_views, **case), (values, indices))


def check_knn_density(side: Side, tally: Tally) -> None:
    for name, case in search_cases():
        k = case.pop("k")
        case |= {"scales": (k, max(1, k // 3)), "per_scale": name in METRICS}
        ours = side(ops.knn_density, **case)
        tally.same(name, ours, side.twin(ops.knn_density, **case))
        tally.near(name, ours, reference.knn_density(**widened(case)))


# ---- gradients of the search ------------------------------------------------------------------------


def gradient_cases():
    random = Random(1)
    for metric in METRICS:
        plain = {"queries": random.rows(130, 67), "bank": random.rows(300, 67), "metric": metric}
        yield metric, {**plain, "k": 9}
        yield f"{metric} grouped", {**grouped(random), "metric": metric, "k": 33}
    half = {"queries": random.rows(70, 40).bfloat16(), "bank": random.rows(200, 40).half()}
    yield "bfloat16 in float16", {**half, "k": 9}
    holes = {"queries": random.rows(80, 40), "bank": random.rows(90, 40)}
    for rows in holes.values():
        rows[5], rows[70, 3] = 0, torch.nan
    yield "zero and NaN rows", {**holes, "k": 90}
    yield "unit bank", {**holes, "k": 9, "unit_bank": True}


def gradient_tolerance(gradient) -> float:
    """Gradients come in their inputs' dtypes, rounded once more."""
    narrow = gradient.dtype in (torch.float16, torch.bfloat16)
    return TOLERANCE + (torch.finfo(gradient.dtype).eps if narrow else 0.0)


def topk_gradients(weights, queries, bank, **options):
    queries.requires_grad_()
    bank.requires_grad_()
    values, indices = ops.knn_topk(queries, bank, **options)
    total = torch.where(indices >= 0, values, 0.0) * weights
    return torch.autograd.grad(total.sum(), (queries, bank))


def density_gradients(weights, queries, bank, **options):
    queries.requires_grad_()
    bank.requires_grad_()
    density = ops.knn_density(queries, bank, **options)
    total = torch.where(density.isfinite(), density, 0.0) * weights
    return torch.autograd.grad(total.sum(), (queries, bank))


def expected_gradients(side: Side, case: dict, weights):
    """The formulas in float64, for the rows that the CPU selects."""
    values, indices = side.twin(ops.knn_topk, **case)
    wide = widened(case)
    return reference_backward.knn_topk_backward(
        torch.where(indices >= 0, weights, 0.0).double(),
        wide["queries"],
        wide["bank"],
        values.double(),
        indices,
        case.get("metric", "cosine"),
        case.get("query_offsets"),
        case.get("unit_bank", False),
    )


def check_gradients(tally: Tally, name: str, ours, again, exact) -> None:
    tally.same(f"{name}, repeated", again, ours)
    for what, gradient, wanted in zip(("queries", "bank"), ours, exact, strict=True):
        tally.near(f"{name}, of {what}", gradient, wanted, gradient_tolerance(gradient))


def check_knn_topk_backward(side: Side, tally: Tally) -> None:
    for name, case in gradient_cases():
        weights = Random(2).rows(case["queries"].shape[0], case["k"])
        ours, again = (side(topk_gradients, weights, **case) for _ in range(2))
        check_gradients(tally, name, ours, again, expected_gradients(side, case, weights))


def check_knn_density_backward(side: Side, tally: Tally) -> None:
    for name, case in gradient_cases():
        weights = Random(2).rows(case["queries"].shape[0])
        options = {n: v for n, v in case.items() if n != "k"} | {"scales": (case["k"], 4)}
        ours, again = (side(density_gradients, weights, **options) for _ in range(2))
        found = (side.twin(ops.knn_topk, **case)[1] >= 0).sum(1)
        each = scale_weights(options["scales"], found, case["k"]) * weights[:, None]
        check_gradients(tally, name, ours, again, expected_gradients(side, case, each))
