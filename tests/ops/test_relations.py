"""Relations that hold bit for bit: changes that must not affect a selection, or must affect it in a known way."""

import oracles
import pytest
import torch
from builds import needs_equal_bits
from hypothesis import given
from hypothesis import strategies as st
from oracles import integers

from dgcl_ops import ops

pytestmark = needs_equal_bits
METRICS = ("cosine", "dot", "l2")


def rows_of(kind: str, number: int, columns: int, seed: int):
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(number, columns, generator=draw)
    if kind == "grid":  # few values: full of ties and zero rows
        rows = torch.randint(-1, 2, (number, columns), generator=draw).float()
    if kind == "holes":
        rows[torch.rand(number, generator=draw) < 0.2] = float("nan")
    if kind == "tight":
        rows = rows[:1] + 1e-6 * rows
    return rows


@st.composite
def problems(draw):
    kind = draw(st.sampled_from(["normal", "grid", "holes", "tight"]))
    columns = draw(st.integers(1, 40))
    seed = draw(st.integers(0, 10**6))
    return {
        "queries": rows_of(kind, draw(st.integers(0, 12)), columns, seed),
        "bank": rows_of(kind, draw(st.integers(0, 140)), columns, seed + 1),
        "metric": draw(st.sampled_from(METRICS)),
        "k": draw(st.integers(1, 40)),
        "shuffle": torch.Generator().manual_seed(seed + 2),
    }


def same(left, right) -> bool:
    """Equal bits, NaN included."""
    return all(
        torch.equal(a.nan_to_num(9.0), b.nan_to_num(9.0)) for a, b in zip(left, right, strict=True)
    )


def search(p, queries=None, bank=None, k=None, **options):
    queries = p["queries"] if queries is None else queries
    bank = p["bank"] if bank is None else bank
    k = k or p["k"]
    values, indices = ops.knn_topk(queries, bank, k, metric=p["metric"], **options)
    density = ops.knn_density(queries, bank, (k, 3), metric=p["metric"], **options)
    return values, indices, density


@given(problems())
def test_the_order_of_queries_does_not_matter(p):
    order = torch.randperm(p["queries"].shape[0], generator=p["shuffle"])
    results = search(p)
    assert same(search(p, queries=p["queries"][order]), [t[order] for t in results])


@given(problems())
def test_each_query_stands_alone(p):
    results = search(p)
    for m in range(p["queries"].shape[0]):
        assert same(search(p, queries=p["queries"][m : m + 1]), [t[m : m + 1] for t in results])


@given(problems())
def test_the_order_of_the_bank_changes_indices_only(p):
    rows = p["bank"].shape[0]
    order = torch.randperm(rows, generator=p["shuffle"])
    values, _, density = search(p)
    moved_values, moved_indices, moved_density = search(p, bank=p["bank"][order])
    assert same((values, density), (moved_values, moved_density))
    # Every index of the permuted bank has the score that it is returned with. Ties go to the lower new index.
    every_value, every_index, _ = search(p, k=max(rows, 1))
    for m in range(values.shape[0]):
        score = dict(zip(every_index[m].tolist(), every_value[m].tolist(), strict=True))
        candidates = [(-score[int(order[j])], j) for j in range(rows) if int(order[j]) in score]
        want = [j for _, j in sorted(candidates)[: p["k"]]]
        assert [j for j in moved_indices[m].tolist() if j >= 0] == want


@given(problems())
def test_one_grouped_call_equals_a_call_per_class(p):
    draw = p["shuffle"]
    classes = int(torch.randint(1, 5, (1,), generator=draw))
    queries, rows = p["queries"], p["bank"].shape[0] // classes
    cuts = torch.randint(0, queries.shape[0] + 1, (classes + 1,), generator=draw).sort().values
    counts = torch.randint(0, rows + 1, (classes,), generator=draw)
    bank = p["bank"][: rows * classes].reshape(classes, rows, queries.shape[1])
    for exclude_self in (False, True):
        whole = search(
            p, bank=bank, query_offsets=cuts, bank_counts=counts, exclude_self=exclude_self
        )
        for c in range(classes):
            part = slice(int(cuts[c]), int(cuts[c + 1]))
            alone = search(
                p, queries=queries[part], bank=bank[c, : counts[c]], exclude_self=exclude_self
            )
            assert same(alone, [t[part] for t in whole])
        for outside in (slice(0, int(cuts[0])), slice(int(cuts[-1]), None)):
            assert bool((whole[1][outside] == -1).all())
            assert not whole[2][outside].any()


@given(problems(), st.integers(-40, 40), st.integers(-40, 40))
def test_powers_of_two(p, query_power, bank_power):
    """cosine ignores both factors, dot is scaled by both, and l2 by a common one."""
    if p["metric"] == "l2":
        bank_power = query_power
    values, indices, density = search(p)
    scaled = search(p, p["queries"] * 2.0**query_power, p["bank"] * 2.0**bank_power)
    power = {"cosine": 0, "dot": query_power + bank_power, "l2": query_power}[p["metric"]]
    assert same((values * 2.0**power, indices), scaled[:2])
    # Sums of scaled scores can be denormal only if the scores are, which does not happen here.
    assert same((density * 2.0**power,), scaled[2:])


@given(problems())
def test_a_doubled_bank_gives_every_score_twice(p):
    rows = p["bank"].shape[0]
    values, indices, _ = search(p)
    doubled_values, doubled_indices, _ = search(p, bank=p["bank"].repeat(2, 1), k=2 * p["k"])
    assert same((doubled_values[:, ::2], doubled_values[:, 1::2]), (values, values))
    for m in range(values.shape[0]):
        candidates = [
            (-v, j) for v, j in zip(values[m].tolist(), indices[m].tolist(), strict=True) if j >= 0
        ]
        # Ties at the k-th score may bring in other rows with that score, so compare only above it.
        last = candidates[-1][0] if candidates else 0
        want = sorted(pair for v, j in candidates for pair in ((v, j), (v, j + rows)) if v < last)
        assert doubled_indices[m].tolist()[: len(want)] == [j for _, j in want]


@given(problems(), st.integers(0, 140))
def test_halves_of_the_bank_merge_into_the_whole(p, cut):
    cut = min(cut, p["bank"].shape[0])
    whole = search(p)
    left, right = search(p, bank=p["bank"][:cut]), search(p, bank=p["bank"][cut:])
    for m in range(p["queries"].shape[0]):
        both = [
            (-v, j) for v, j in zip(left[0][m].tolist(), left[1][m].tolist(), strict=True) if j >= 0
        ]
        both += [
            (-v, j + cut)
            for v, j in zip(right[0][m].tolist(), right[1][m].tolist(), strict=True)
            if j >= 0
        ]
        best = sorted(both)[: p["k"]]
        assert [j for j in whole[1][m].tolist() if j >= 0] == [j for _, j in best]
        assert whole[0][m].tolist()[: len(best)] == [-v for v, _ in best]


@given(problems())
def test_fewer_neighbours_are_a_prefix_of_more(p):
    values, indices, _ = search(p)
    more = search(p, k=p["k"] + 7)
    assert same((values, indices), (more[0][:, : p["k"]], more[1][:, : p["k"]]))


@given(problems())
def test_density_is_the_mean_over_its_scales(p):
    scales = (p["k"], 3, 8)
    options = {"metric": p["metric"]}
    together = ops.knn_density(p["queries"], p["bank"], scales, per_scale=True, **options)
    for row, k in zip(together, scales, strict=True):
        assert same((row,), (ops.knn_density(p["queries"], p["bank"], (k,), **options),))
    mean = ops.knn_density(p["queries"], p["bank"], scales, **options)
    oracles.assert_close(mean, together.double().mean(0), 40.0)


@given(problems())
def test_exclude_self_is_removing_the_row(p):
    bank = p["bank"]
    values, indices, density = search(p, queries=bank, exclude_self=True)
    for m in range(0, bank.shape[0], 17):
        others = torch.cat([bank[:m], bank[m + 1 :]])
        alone_values, alone_indices, alone_density = search(p, queries=bank[m : m + 1], bank=others)
        shifted = alone_indices + (alone_indices >= m)
        # A NaN query has density NaN if its class has rows, and here the bank always has one.
        if bank.shape[0] > 1:
            assert same((density[m : m + 1],), (alone_density,))
        assert same((values[m : m + 1], indices[m : m + 1]), (alone_values, shifted))


def every_result():
    """Forward and backward of every operator, on sizes for several threads."""
    rows = oracles.random_rows
    queries = rows(500, 40, seed=1).requires_grad_()
    bank = rows(4, 300, 40, seed=2).requires_grad_()
    groups = {"query_offsets": integers([5, 200, 200, 210, 490])}
    results = []
    for metric in METRICS:
        values, indices = ops.knn_topk(queries, bank, 12, metric=metric, **groups)
        density = ops.knn_density(queries, bank, (4, 12), metric=metric, **groups)
        gradients = torch.autograd.grad((density * rows(500, seed=3)).sum(), (queries, bank))
        results += [values, indices, density, *gradients]
    contrast = [rows(6, 150, 40, seed=4), rows(6, 40, seed=5), rows(6, 90, 40, seed=6)]
    contrast = [t.requires_grad_() for t in contrast]
    loss = ops.density_contrast(*contrast)
    results += [loss, *torch.autograd.grad(loss.sum(), contrast)]
    bits = ops.random_bits(integers([3, 4]), 5, 451_500)
    keys, counts = ops.partition_keys(bits % 9, bits % 11 != 0, bits, 9)
    return [*results, bits, keys, counts]


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_nothing(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = every_result()
        torch.set_num_threads(threads)
        for _ in range(2):
            assert all(torch.equal(a, b) for a, b in zip(every_result(), alone, strict=True))
    finally:
        torch.set_num_threads(before)
