"""Derivatives at the edges: zero rows, NaN, extreme lengths, empty inputs, views, second derivatives."""

import math

import pytest
import torch
from oracles import assert_close, contrast_case, gradients, random_rows
from test_gradients import METRICS, density_of, knn_case, values_of

from dgcl_ops import ops

NAN = math.nan


def test_distance_zero_has_gradient_zero(implementation, device):
    bank = random_rows(5, 3, seed=2, device=device)
    queries = bank[2:4].clone().requires_grad_()
    bank.requires_grad_()
    got = gradients(lambda q, b: implementation.knn_topk(q, b, 1, metric="l2")[0], (queries, bank))
    assert all(not t.any() for t in got)


def test_zero_rows_have_gradient_zero(implementation, device):
    queries, bank, _ = knn_case(device=device)
    with torch.no_grad():
        queries[1] = 0
        bank[3] = 0
    got = gradients(lambda q, b: implementation.knn_topk(q, b, 9)[0], (queries, bank))
    assert not got[0][1].any()
    assert not got[1][3].any()
    assert bool((got[0].abs().sum(1) > 0).sum() == 4)
    assert bool((got[1].abs().sum(1) > 0).sum() == 8)
    assert all(bool(t.isfinite().all()) for t in got)
    rows = contrast_case(device=device)
    with torch.no_grad():
        rows[0][0, 1] = 0
        rows[1][1] = 0
        rows[2][2, 4] = 0
    got = gradients(implementation.density_contrast, rows)
    assert not got[0][0, 1].any()
    assert not got[1][1].any()
    assert not got[2][2, 4].any()
    assert all(bool(t.isfinite().all()) and bool(t.any()) for t in got)


@pytest.mark.parametrize("metric", METRICS)
def test_nan_rows_receive_and_spread_nothing(implementation, device, metric):
    queries, bank, _ = knn_case(device=device)
    with torch.no_grad():
        queries[1, 0] = NAN
        bank[3, 2] = NAN
    call = values_of(implementation, metric=metric)
    got = gradients(call, (queries, bank))
    assert all(bool(t.isfinite().all()) for t in got)
    assert not got[0][1].any()
    assert not got[1][3].any()
    assert bool(got[0][0].any())
    kept = [0, 2, 3, 4]
    calm = gradients(lambda q: call(q, bank.detach()), (queries.detach()[kept].requires_grad_(),))
    again = gradients(lambda q: call(q, bank.detach())[kept], (queries,))
    assert_close(again[0][kept], calm[0], 1.0)


@pytest.mark.parametrize(
    ("dtype", "powers"), [(torch.float32, (-80, -40, 40, 80)), (torch.float64, (-600, 600))]
)
def test_gradients_of_very_short_and_long_rows(implementation, device, dtype, powers):
    """cos(2^p x) = cos(x), so the gradient there is 2^-p times the gradient at x, if in range."""
    queries, bank, _ = knn_case(dtype, device=device)
    rows = contrast_case(dtype, device)
    call = density_of(implementation)
    want = gradients(call, (queries, bank))
    want_contrast = gradients(implementation.density_contrast, rows)
    for power in powers:
        scaled = [(t.detach() * 2.0**power).requires_grad_() for t in (queries, bank)]
        for mine, theirs in zip(gradients(call, scaled), want, strict=True):
            assert_close(mine * 2.0**power, theirs.double(), theirs.abs().max().item())
        scaled = [(t.detach() * 2.0**power).requires_grad_() for t in rows]
        got = gradients(implementation.density_contrast, scaled)
        for mine, theirs in zip(got, want_contrast, strict=True):
            assert_close(mine * 2.0**power, theirs.double(), theirs.abs().max().item())


def test_a_row_that_is_everybodys_neighbour_collects_every_gradient(implementation, device):
    queries = random_rows(200, 3, seed=1, device=device)
    bank = random_rows(1, 3, seed=2, device=device).requires_grad_()
    values, _ = implementation.knn_topk(queries, bank, 1, metric="dot")
    values.sum().backward()
    assert_close(bank.grad, queries.double().sum(0, keepdim=True), 200.0)


def test_no_rows(device):
    for queries, bank in ((0, 4), (3, 0), (0, 0)):
        rows = [random_rows(n, 2, device=device).requires_grad_() for n in (queries, bank)]
        for call in (values_of(ops), density_of(ops)):
            got = torch.autograd.grad(call(*rows).sum(), rows, materialize_grads=True)
            assert [t.shape for t in got] == [t.shape for t in rows]
            assert not any(t.any() for t in got)


def test_strided_inputs_and_gradients(device):
    """Rows in a wider buffer, and an expanded incoming gradient."""
    wide = random_rows(30, 9, dtype=torch.float64, seed=1, device=device)
    views = [wide[:6, 2:7].requires_grad_(), wide[8:22, 2:7].requires_grad_()]
    plain = [t.detach().clone().requires_grad_() for t in views]
    for call in (values_of(ops), density_of(ops, per_scale=True)):
        got = torch.autograd.grad(call(*views).sum(), views)
        want = torch.autograd.grad(call(*plain).sum(), plain)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("required", [(0,), (1,), (0, 1)])
def test_only_what_requires_a_gradient_gets_one(device, required):
    queries, bank, _ = knn_case(device=device)
    inputs = [t.detach().requires_grad_(i in required) for i, t in enumerate((queries, bank))]
    full = gradients(density_of(ops), (queries, bank))
    (
        ops.knn_density(*inputs, (2, 4))
        * random_rows(5, dtype=torch.float64, seed=9, device=device)
    ).sum().backward()
    for i, tensor in enumerate(inputs):
        if i in required:
            assert_close(tensor.grad, full[i])
        else:
            assert tensor.grad is None


@pytest.mark.parametrize("op", ["knn_topk", "knn_density", "density_contrast"])
def test_double_backward_is_refused_in_words(op):
    queries, bank, _ = knn_case()
    if op == "knn_topk":
        output, inputs = ops.knn_topk(queries, bank, 3)[0], queries
    elif op == "knn_density":
        output, inputs = ops.knn_density(queries, bank, (3,)), queries
    else:
        rows = contrast_case()
        output, inputs = ops.density_contrast(*rows), rows[0]
    first = torch.autograd.grad(output.sum(), inputs, create_graph=True)[0]
    blamed = "density_contrast" if op == "density_contrast" else "knn_topk"
    with pytest.raises(
        RuntimeError, match=rf"{blamed}: double backward is not supported \(create_graph=True\)"
    ):
        first.sum().backward()


def test_indices_carry_no_gradient():
    queries, bank, _ = knn_case()
    values, indices = ops.knn_topk(queries, bank, 3)
    assert values.requires_grad
    assert not indices.requires_grad
