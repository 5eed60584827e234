"""`reference` itself: its parts, its written-out gradients, its memory.

The tests of the operators compare it with the loop oracles.
"""

import math

import oracles
import pytest
import torch
from oracles import assert_close, integers, random_rows

from dgcl_ops import reference
from dgcl_ops._precision import compute_dtype
from dgcl_ops._scales import scale_weights
from dgcl_ops.reference import backward as reference_backward

METRICS = ("cosine", "dot", "l2")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_rows(device, dtype):
    rows = random_rows(2, 7, 5, dtype=dtype, seed=1, device=device)
    rows[0, 1] = 0
    rows[0, 2, 3] = math.nan
    rows[1, 3, 0] = -math.inf
    unit = reference.unit_rows(rows)
    want = [[oracles.unit_row(row) for row in group] for group in rows.double().tolist()]
    assert_close(unit, torch.tensor(want, dtype=torch.float64))
    assert unit.dtype == dtype


@pytest.mark.parametrize(
    ("dtype", "powers"),
    [(torch.float32, (-110, -97, -49, 48, 96, 120)), (torch.float64, (-1000, -401, 401, 1000))],
)
def test_unit_rows_of_any_length(dtype, powers):
    rows = random_rows(7, 5, dtype=dtype, seed=1)
    for power in powers:
        assert torch.equal(reference.unit_rows(rows * 2.0**power), reference.unit_rows(rows))


def test_unit_rows_differentiate(device):
    rows = random_rows(4, 3, dtype=torch.float64, seed=1, device=device)
    rows[2] = 0
    assert torch.autograd.gradcheck(reference.unit_rows, rows[[0, 1, 3]].requires_grad_())
    rows.requires_grad_()
    reference.unit_rows(rows)[:, 0].sum().backward()
    assert bool(rows.grad.isfinite().all())
    assert not rows.grad[2].any()


@pytest.mark.parametrize("scales", [(1,), (8, 16, 32), (5, 2, 2), (300,)])
def test_scale_weights(scales):
    """Each row is the published formula, term by term. It sums to 1 unless there are no neighbours."""
    neighbours = integers([0, 1, 4, 5, 31, 40])
    weights = scale_weights(scales, neighbours, 40)
    assert weights.shape == (6, 40)
    assert weights.dtype == torch.float64
    for m, number in enumerate(neighbours.tolist()):
        clamped = [min(k, number) for k in scales]
        for r in range(1, 41):
            want = sum(1 / k for k in clamped if k >= r) / len(scales)
            assert weights[m, r - 1].item() == pytest.approx(want, rel=1e-15, abs=0)
        assert weights[m].sum().item() == pytest.approx(float(number > 0), rel=1e-14)


@pytest.mark.parametrize("metric", METRICS)
def test_chunks_change_nothing(monkeypatch, metric):
    queries, bank = random_rows(23, 4, seed=1), random_rows(3, 10, 4, seed=2)
    options = {"metric": metric, "query_offsets": integers([1, 9, 9, 22]), "exclude_self": True}
    gradient, indices = random_rows(23, 3, seed=3), None
    results = []
    for elements in (1 << 20, 37, 1):
        monkeypatch.setattr(reference, "CHUNK_ELEMENTS", elements)
        values, indices = reference.knn_topk(queries, bank, 3, **options)
        density = reference.knn_density(queries, bank, (2, 3), **options)
        back = reference_backward.knn_topk_backward(
            gradient, queries, bank, values, indices, metric, options["query_offsets"]
        )
        results.append([values, indices, density, *back])
    for other in results[1:]:
        assert torch.equal(other[1], results[0][1])
        for mine, theirs in zip(other, results[0], strict=True):
            assert_close(mine.double().float(), theirs.double(), 10.0)


def test_scores_are_made_a_chunk_at_a_time(monkeypatch):
    """No score matrix has more than CHUNK_ELEMENTS elements."""
    sizes = []
    scores = reference._scores

    def recording(queries, bank, metric):
        result = scores(queries, bank, metric)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(reference, "_scores", recording)
    monkeypatch.setattr(reference, "CHUNK_ELEMENTS", 100)
    reference.knn_topk(random_rows(50, 3, seed=1), random_rows(20, 3, seed=2), 4)
    assert max(sizes) == 100
    assert sum(sizes) == 50 * 20


# ---- gradients written out ------------------------------------------------------------------------


@pytest.mark.parametrize("unit_bank", [False, True])
@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_topk_backward_is_the_derivative_of_topk(device, dtype, metric, groups, unit_bank):
    queries = random_rows(14, 5, dtype=dtype, seed=1, device=device)
    bank = random_rows(3, 9, 5, dtype=dtype, seed=2, device=device)
    options = {"metric": metric, "unit_bank": unit_bank}
    offsets = None
    if groups:
        offsets = integers([1, 6, 6, 12], device)
        options |= {"query_offsets": offsets, "bank_counts": integers([9, 4, 2], device)}
        queries[3] = 0
        bank[0, 2] = queries[2]  # distance 0
        bank[2, 1, 0] = queries[8, 2] = math.nan
    else:
        bank = bank.reshape(27, 5)
    wide = [t.double().requires_grad_() for t in (queries, bank)]
    values, indices = reference.knn_topk(*wide, 4, **options)
    gradient = random_rows(14, 4, seed=3, dtype=torch.float64, device=device)
    total = (torch.where(indices >= 0, values, 0.0) * gradient).sum()
    want = torch.autograd.grad(total, wide)
    compute = compute_dtype(queries, bank)
    got = reference_backward.knn_topk_backward(
        gradient.to(compute),
        queries,
        bank,
        values.detach().to(compute),
        indices,
        metric,
        offsets,
        unit_bank,
    )
    for mine, theirs, given in zip(got, want, (queries, bank), strict=True):
        assert mine.dtype == given.dtype
        assert_close(mine, theirs, theirs.abs().max().item())


@pytest.mark.parametrize("eps", [0.0, 1e-6])
@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_contrast_backward_is_the_derivative_of_contrast(device, dtype, counted, eps):
    rows = [
        random_rows(3, 4, 6, dtype=dtype, seed=1, device=device),
        random_rows(3, 6, dtype=dtype, seed=2, device=device),
        random_rows(3, 5, 6, dtype=dtype, seed=3, device=device),
    ]
    rows[0][0, 1] = 0
    counts = (integers([4, 0, 2], device), integers([0, 5, 3], device)) if counted else (None, None)
    if counted:
        rows[0][2, 3] = rows[2][2, 4] = math.nan
    wide = [t.double().requires_grad_() for t in rows]
    loss, lse = reference.density_contrast_with_lse(*wide, 0.3, *counts, eps)
    gradient = random_rows(3, seed=4, dtype=torch.float64, device=device)
    want = torch.autograd.grad((loss * gradient).sum(), wide)
    compute = compute_dtype(*rows)
    got = reference_backward.density_contrast_backward(
        gradient.to(compute), *rows, lse.detach().to(compute), 0.3, *counts
    )
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == dtype
        assert_close(mine, theirs, theirs.abs().max().item())


def test_contrast_backward_where_the_keys_probability_underflows():
    """The key's probability underflows to 0. The gradient comes from the log-softmax, and is not 0 / 0."""
    anchors, keys = torch.tensor([[[1.0, 0.1]]]), torch.tensor([[-1.0, 0.0]])
    rows = [anchors, keys, -keys[None]]
    loss, lse = reference.density_contrast_with_lse(*rows, 1 / 512)
    assert torch.exp(-loss).item() == 0.0
    got = reference_backward.density_contrast_backward(torch.ones(1), *rows, lse, 1 / 512)
    wide = [t.double().requires_grad_() for t in rows]
    want = torch.autograd.grad(reference.density_contrast(*wide, 1 / 512).sum(), wide)
    for mine, theirs in zip(got, want, strict=True):
        assert_close(mine, theirs, 1024.0)
