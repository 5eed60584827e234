"""The doctor's checks of the operators: every named case, and the gradients of the public functions.

A check gets the device under test (`target`) and a comparison. It reaches the device only through `target`, and the
compiled CPU operators only through `target.expected`.
"""

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from dgcl_ops import ops, reference
from dgcl_ops._scales import scale_weights
from dgcl_ops.doctor.cases import Case, all_cases
from dgcl_ops.doctor.cases.tensors import rows
from dgcl_ops.doctor.compare import TOLERANCE, Comparison, Target, call, threads
from dgcl_ops.doctor.step import check_step
from dgcl_ops.ops._registry import FALLBACKS
from dgcl_ops.reference import backward as reference_backward

EQUAL = 1e-9  # nothing is rounded
FLOAT64 = 1e-12  # sums of at most a few hundred float64 numbers, each rounded to 1e-16

# ---- cases ------------------------------------------------------------------------------------------


def rounding(result: Tensor) -> float:
    """The tolerance for a result. 16-bit results are rounded once more."""
    if result.dtype == torch.float64:
        return FLOAT64
    narrow = result.dtype in (torch.float16, torch.bfloat16)
    return TOLERANCE + (torch.finfo(result.dtype).eps if narrow else 0.0)


def widened(arguments: tuple) -> list:
    """The same numbers in float64."""
    return [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]


def compare_choice(comparison, case: Case, given: list, values, indices, allowed: float) -> None:
    """For knn_topk: compares the values, and the float64 scores of the chosen rows."""
    queries, bank, _, *options = given
    scores, ranked = reference.knn_topk(queries, bank, max(1, bank.shape[-2]), *options)
    missing = scores.new_full((scores.shape[0], 1), -torch.inf)
    width = values.shape[1]
    best = torch.cat([scores, missing.expand(-1, width)], dim=1)[:, :width]
    comparison.near(f"{case.name}, values", values, best, allowed)
    table = torch.cat([scores, missing], dim=1)  # by row; the last column stands for a missing one
    table = table.scatter(1, ranked % table.shape[1], scores)
    chosen = table.gather(1, indices % table.shape[1])
    comparison.near(f"{case.name}, chosen rows", values, chosen, allowed)


def compare_float64(
    comparison: Comparison,
    case: Case,
    given: tuple,
    results: list[Tensor],
    tolerance: Callable[[Tensor], float] = rounding,
) -> None:
    """Compares results with `reference` in float64. A tolerance is relative to the largest number of its result."""
    given = widened(given)
    if case.op == "knn_topk":
        compare_choice(comparison, case, given, *results, tolerance(results[0]))
        return
    if case.answer:
        exact = case.answer()
    elif case.changes:
        given = [a.clone() if i < case.changes else a for i, a in enumerate(given)]
        FALLBACKS[case.op](*given)
        exact = given[: case.changes]
    else:
        exact = FALLBACKS[case.op](*given)
        exact = [exact] if isinstance(exact, Tensor) else exact
    for part, (ours, wanted) in enumerate(zip(results, exact, strict=True)):
        allowed = tolerance(ours) if ours.is_floating_point() else EQUAL
        comparison.near(f"{case.name}, result {part}", ours, wanted, allowed)


def expected_results(case: Case, given: tuple) -> list[Tensor]:
    return case.answer() if case.answer else call("dgcl_ops", case.op, case.changes, given)


def check_cases(
    target: Target, comparison: Comparison, cases: Iterable[Case], *, float64: bool = True
) -> None:
    """Compares with the CPU operators: bit for bit, or within tolerance where sums have another order.

    With `float64`, also compares with the reference in float64, and with the results of a second call. A device that
    uses plain PyTorch is compared only with float64.
    """
    done = []
    for case in cases:
        arguments = case.arguments()
        results = target.run(case, arguments)
        if results is None or case.anything:
            continue
        if case.tolerance and float64 and comparison.exact:
            comparison.same(f"{case.name}, repeated", target.run(case, arguments), results)
        done.append((case, case.repaired() if case.repaired else arguments, results))
    if comparison.exact:
        # All at once, because changing the number of threads restarts them.
        every = target.expected(lambda: [expected_results(case, given) for case, given, _ in done])
        for (case, _, results), expected in zip(done, every, strict=True):
            if case.tolerance:
                comparison.near(case.name, results, expected, case.tolerance, source="CPU")
            else:
                comparison.same(case.name, results, expected)
    if not float64:
        return
    with threads(1):  # on small tensors, threads would only wait for each other
        for case, given, results in done:
            if not case.float32_only:
                compare_float64(comparison, case, given, results)


def check_operator(op: str, target: Target, comparison: Comparison) -> None:
    # 8 GiB are more than some devices have.
    check_cases(target, comparison, [case for case in all_cases()[op] if not case.vast])


# ---- gradients of the public functions ---------------------------------------------------------------


def gradients(function, weights: Tensor, inputs: tuple, *arguments, **options) -> tuple:
    """Gradients of a weighted sum of the finite outputs."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    output = function(*inputs, *arguments, **options)
    output = output[0] if isinstance(output, tuple) else output
    total = torch.where(output.isfinite(), output, 0.0) * weights.to(output.dtype)
    return torch.autograd.grad(total.sum(), inputs)


def check_gradients(target, comparison, name: str, exact, *arguments, **options) -> None:
    """Compares gradients with `exact`, computed in float64, and checks that two calls give the same bits."""
    ours, again = (target(gradients, *arguments, **options) for _ in range(2))
    comparison.same(f"{name}, repeated", again, ours)
    for part, (gradient, wanted) in enumerate(zip(ours, exact, strict=True)):
        comparison.near(f"{name}, of argument {part}", gradient, wanted, rounding(gradient))


def neighbour_gradients(target: Target, pair: tuple, k: int, metric: str, weights: Tensor):
    """The formulas in float64, for the rows that the CPU selects."""
    values, indices = target.expected(ops.knn_topk, *pair, k, metric=metric)
    weights = torch.where(indices >= 0, weights, 0.0).double()
    wide = (t.double() for t in pair)
    return reference_backward.knn_topk_backward(weights, *wide, values.double(), indices, metric)


def search_pairs():
    yield "float32", (rows(130, 67, seed=1), rows(300, 67, seed=2))
    holes = rows(80, 40, seed=1).bfloat16(), rows(90, 40, seed=2).half()
    for t in holes:
        t[5], t[70, 3] = 0, torch.nan
    yield "16 bits, zero and NaN rows", holes


def check_topk_gradients(target: Target, comparison: Comparison) -> None:
    for name, pair in search_pairs():
        for metric in ("cosine", "dot", "l2"):
            weights = rows(pair[0].shape[0], 33, seed=3)
            exact = neighbour_gradients(target, pair, 33, metric, weights)
            options = {"k": 33, "metric": metric}
            what = f"{name}, {metric}"
            check_gradients(target, comparison, what, exact, ops.knn_topk, weights, pair, **options)


def check_density_gradients(target: Target, comparison: Comparison) -> None:
    scales = (33, 4)
    for name, pair in search_pairs():
        for metric in ("cosine", "dot", "l2"):
            weights = rows(pair[0].shape[0], seed=3)
            count = (target.expected(ops.knn_topk, *pair, 33, metric=metric)[1] >= 0).sum(1)
            each = scale_weights(scales, count, 33) * weights[:, None]
            exact = neighbour_gradients(target, pair, 33, metric, each)
            options = {"scales": scales, "metric": metric}
            what = f"{name}, {metric}"
            check_gradients(
                target, comparison, what, exact, ops.knn_density, weights, pair, **options
            )


def check_contrast_gradients(target: Target, comparison: Comparison) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        shapes = (5, 37, 67), (5, 67), (5, 201, 67)
        three = tuple(rows(*shape, dtype=dtype, seed=n) for n, shape in enumerate(shapes))
        options = {"temperature": 0.1, "anchor_counts": torch.tensor([37, 0, 17, 1, 37])}
        weights = rows(5, seed=3)
        wide = tuple(t.double() for t in three)
        exact = gradients(reference.density_contrast, weights, wide, **options)
        arguments = (ops.density_contrast, weights, three)
        check_gradients(target, comparison, f"{dtype}", exact, *arguments, **options)


def check_gather_gradients(target: Target, comparison: Comparison) -> None:
    """The rows of a pixel are added in a fixed order."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 3 * 13 * 11, (5, 50), generator=generator)
    for dtype in (torch.float32, torch.float16):
        maps, weights = rows(3, 1, 13, 11, dtype=dtype), rows(5, 50, 1, dtype=dtype, seed=1)
        arguments = gradients, ops.gather_rows, weights, (maps,), pixels
        (gradient,) = target(*arguments)
        comparison.same(f"{dtype}", [gradient], target.expected(*arguments))
        exact = torch.zeros(3 * 13 * 11, dtype=torch.float64)
        exact.index_add_(0, pixels.flatten(), weights.double().flatten())
        comparison.near(f"{dtype}", gradient, exact.view(maps.shape), rounding(gradient))


OPERATORS = {op: functools.partial(check_operator, op) for op in FALLBACKS}
CHECKS = {
    **OPERATORS,
    "knn_topk gradients": check_topk_gradients,
    "knn_density gradients": check_density_gradients,
    "density_contrast gradients": check_contrast_gradients,
    "gather_rows gradients": check_gather_gradients,
    "DensityContrastLoss": check_step,
}
BY_SEARCH = ("knn_topk", "knn_density")  # on each path of the search
