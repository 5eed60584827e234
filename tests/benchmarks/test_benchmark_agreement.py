"""The benchmarks' comparison with float64 brute force accepts right neighbour sets and reports wrong ones."""

import pytest
import torch
from benchmark_runs import importable

from dgcl_ops import knn_density, knn_topk


@pytest.fixture
def benchmarks(monkeypatch):
    with importable(monkeypatch):
        yield


def problem_of(data: str, **more):
    import workloads

    case = {"queries": 90, "bank": 120, "dim": 33, "classes": 0, "scales": [3, 7], "data": data}
    usual = {"metric": "cosine", "device": "cpu", "dtype": "float32"}
    return workloads.build({**case, **usual, **more})


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_right_neighbours_pass(benchmarks, metric, classes, dtype):
    import agreement
    import contenders

    for data in ("clusters", "tight", "equal", "one_ulp", "noise"):
        problem = problem_of(data, metric=metric, classes=classes, dtype=dtype)
        exact, ours = agreement.brute_force(problem), contenders.SINGLE[contenders.OURS]
        agreement.check_neighbours("ours", ours.neighbours(problem), problem, exact)
        agreement.check_agreement("dgcl_ops", ours.run(problem), problem, exact, "float32")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("worse", "no row may score"),
        ("dropped", "no row may score"),
        ("missing", "indices must lie in"),
        ("twice", "occur only once"),
        ("value", "scores must be within"),
        ("order", "scores must descend"),
    ],
)
@pytest.mark.parametrize("classes", [0, 3])
def test_a_planted_fault_in_the_neighbours_is_caught(benchmarks, fault, message, classes):
    import agreement
    import contenders

    problem = problem_of("uniform", classes=classes)
    exact = agreement.brute_force(problem)
    values, indices = contenders.SINGLE[contenders.OURS].neighbours(problem)
    query, k = exact.chosen[5], 7
    more = knn_topk(
        problem.queries, problem.bank, k + 1, query_offsets=problem.offsets
    )  # one more than k
    if fault == "worse":
        indices[query, -1], values[query, -1] = more[1][query, -1], more[0][query, -1]
    if fault == "dropped":
        indices[query], values[query] = more[1][query, 1:], more[0][query, 1:]
    if fault == "missing":
        indices[query, -1] = -1
    if fault == "twice":
        indices[query, 1] = indices[query, 0]
    if fault == "value":
        values[query, 2] += 1e-5
    if fault == "order":
        indices[query], values[query] = indices[query].flip(0), values[query].flip(0)
    with pytest.raises(agreement.Disagreement, match=message) as error:
        agreement.check_neighbours("ours", (values, indices), problem, exact)
    assert str(error.value).endswith(f"query {query}")


def test_a_missing_better_row_is_reported(benchmarks):
    """A row that ties with the k-th replaces it. Only the rule about better rows can detect this."""
    import agreement
    import contenders

    bank = torch.eye(4)[[0, 1, 1]] + 0.0
    queries = torch.tensor([[1.0, 0.5, 0, 0]])
    problem = contenders.Problem(queries, bank, bank, (2,), "dot")
    exact = agreement.brute_force(problem)
    neighbours = torch.tensor([[0.5, 0.5]]), torch.tensor([[1, 2]])
    with pytest.raises(agreement.Disagreement, match="must be present"):
        agreement.check_neighbours("ours", neighbours, problem, exact)


def test_equal_scores_the_lower_index_first(benchmarks):
    import agreement

    problem = problem_of("equal")
    exact = agreement.brute_force(problem)
    values, indices = knn_topk(problem.queries, problem.bank, 7)
    indices[exact.chosen[0]] = indices[exact.chosen[0]].flip(0)
    with pytest.raises(agreement.Disagreement, match="ascending indices"):
        agreement.check_neighbours("ours", (values, indices), problem, exact)


def test_near_ties_are_near(benchmarks):
    equal, ulp, noise = (problem_of(data) for data in ("equal", "one_ulp", "noise"))
    assert torch.equal(equal.bank, equal.bank[:1].expand_as(equal.bank))
    assert torch.equal(equal.bank[0], equal.queries[0])
    step = (ulp.bank - ulp.bank[:1]).abs() / ulp.bank[:1].abs()
    assert 0 < step.max() <= 2 * 2.0**-23 * 1.01  # one bit up, one bit down
    spread = (noise.bank - noise.bank.mean(0)).std()
    assert 5e-8 < spread < 2e-7
    density = knn_density(equal.queries, equal.bank, (3, 7))
    assert (density - 1).abs().max() < 1e-6


def test_one_class_has_nearly_all_queries(benchmarks):
    import workloads

    assert workloads.one_large_offsets(61_000, 21).diff().tolist() == [60_000] + [50] * 20
