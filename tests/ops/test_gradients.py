"""Derivatives: against finite differences, against autograd through the reference, and at the edges."""

import itertools
import math

import pytest
import torch
from oracles import TOLERANCES, assert_close, contrast_case, gradients, integers, random_rows

from dgcl_ops import ops, reference

METRICS = ("cosine", "dot", "l2")
NAN = math.nan


def knn_case(dtype=torch.float64, groups=False, device="cpu"):
    if not groups:
        queries = random_rows(5, 4, dtype=dtype, seed=1, device=device)
        bank = random_rows(9, 4, dtype=dtype, seed=2, device=device)
        return queries.requires_grad_(), bank.requires_grad_(), {}
    queries = random_rows(8, 3, dtype=dtype, seed=1, device=device)
    bank = random_rows(3, 6, 3, dtype=dtype, seed=2, device=device)
    offsets = {
        "query_offsets": integers([1, 4, 4, 7], device),
        "bank_counts": integers([6, 4, 2], device),
    }
    return queries.requires_grad_(), bank.requires_grad_(), offsets


def values_of(module, **options):
    def function(queries, bank):
        values, indices = module.knn_topk(queries, bank, 4, **options)
        return torch.where(indices >= 0, values, 0.0)

    return function


def density_of(module, **options):
    return lambda queries, bank: module.knn_density(queries, bank, (2, 4), **options)


# ---- finite differences ---------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("function", [values_of, density_of])
def test_knn_against_finite_differences(implementation, device, function, metric, groups):
    queries, bank, options = knn_case(groups=groups, device=device)
    call = function(implementation, metric=metric, **options)
    assert torch.autograd.gradcheck(call, (queries, bank))


@pytest.mark.parametrize(
    ("per_scale", "unit_bank"), list(itertools.product([False, True], repeat=2))
)
def test_density_options_against_finite_differences(implementation, device, per_scale, unit_bank):
    queries, bank, _ = knn_case(device=device)
    call = density_of(implementation, per_scale=per_scale, unit_bank=unit_bank)
    assert torch.autograd.gradcheck(call, (queries, bank))


def test_density_of_a_bank_against_itself(implementation, device):
    _, bank, _ = knn_case(device=device)
    call = density_of(implementation, exclude_self=True)
    assert torch.autograd.gradcheck(lambda rows: call(rows, rows), (bank,))


@pytest.mark.parametrize("eps", [0.0, 1e-6])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("counted", [False, True])
def test_contrast_against_finite_differences(implementation, device, counted, temperature, eps):
    counts = {}
    if counted:
        counts = {
            "anchor_counts": integers([4, 0, 2], device),
            "negative_counts": integers([0, 5, 3], device),
        }

    def call(*rows):
        return implementation.density_contrast(*rows, temperature, eps=eps, **counts)

    assert torch.autograd.gradcheck(call, contrast_case(device=device))


# ---- autograd through the reference ---------------------------------------------------------------


def check_knn(queries, bank, function, options):
    """Compiled gradients in the inputs' dtypes against float64 autograd through the reference."""
    got = gradients(function(ops, **options), (queries, bank))
    wide = [t.detach().double().requires_grad_() for t in (queries, bank)]
    want = gradients(function(reference, **options), wide)
    for mine, theirs, given in zip(got, want, (queries, bank), strict=True):
        assert mine.dtype == given.dtype
        assert_close(mine, theirs, theirs.abs().max().item())


@pytest.mark.parametrize(
    ("exclude_self", "unit_bank"), list(itertools.product([False, True], repeat=2))
)
@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("function", [values_of, density_of])
def test_knn_against_the_reference(device, function, metric, groups, exclude_self, unit_bank):
    queries, bank, options = knn_case(groups=groups, device=device)
    options |= {"metric": metric, "exclude_self": exclude_self, "unit_bank": unit_bank}
    check_knn(queries, bank, function, options)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bank_dtype", list(TOLERANCES))
@pytest.mark.parametrize("query_dtype", list(TOLERANCES))
def test_gradients_have_the_dtype_of_their_input(device, query_dtype, bank_dtype, metric):
    queries, _, _ = knn_case(query_dtype, device=device)
    _, bank, _ = knn_case(bank_dtype, device=device)
    check_knn(queries, bank, density_of, {"metric": metric})


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("columns", [2, 31, 33, 65, 130])
def test_columns(device, columns, metric):
    queries = random_rows(40, columns, seed=1, device=device).requires_grad_()
    bank = random_rows(50, columns, seed=2, device=device).requires_grad_()
    check_knn(queries, bank, density_of, {"metric": metric})


def test_one_column(device):
    """A cosine of numbers is a sign: gradient 0, to within the rounding of 1 / |x|. An l2 gradient is a sign."""
    queries = torch.tensor([[0.5], [-3.0], [7.0]], device=device, requires_grad=True)
    bank = torch.tensor([[1.25], [-0.3], [5.0], [-11.0]], device=device, requires_grad=True)
    for gradient in torch.autograd.grad(ops.knn_topk(queries, bank, 4)[0].sum(), (queries, bank)):
        assert_close(gradient, torch.zeros_like(gradient).double(), 4 / 0.3)
    nearest = ops.knn_topk(queries, bank, 1, metric="l2")[0]
    got = torch.autograd.grad(nearest.sum(), (queries, bank))
    assert_close(got[0].flatten(), torch.tensor([1.0, 1.0, -1.0]).double())
    assert_close(got[1].flatten(), torch.tensor([-1.0, -1.0, 1.0, 0.0]).double())


@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-5])
def test_close_neighbours_have_an_exact_l2_direction(device, gap):
    """Nearest neighbours are near: (q - b) / |q - b| must come from the difference, not from q / s - b / s."""
    bank = random_rows(20, 33, seed=2, device=device)
    queries = (bank + gap * random_rows(20, 33, seed=1, device=device)).requires_grad_()
    check_knn(queries, bank.requires_grad_(), values_of_nearest, {})


def values_of_nearest(module):
    return lambda queries, bank: module.knn_topk(queries, bank, 1, metric="l2")[0]


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_contrast_against_the_reference(device, dtype):
    rows = contrast_case(dtype, device)
    options = {
        "anchor_counts": integers([4, 1, 0], device),
        "negative_counts": integers([5, 0, 2], device),
        "eps": 1e-6,
    }
    got = gradients(lambda *t: ops.density_contrast(*t, 0.3, **options), rows)
    wide = [t.detach().double().requires_grad_() for t in rows]
    want = gradients(lambda *t: reference.density_contrast(*t, 0.3, **options), wide)
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == dtype
        assert_close(mine, theirs, theirs.abs().max().item())


@pytest.mark.parametrize("sizes", [(1, 1, 1, 2), (2, 33, 65, 31), (3, 200, 130, 33)])
def test_contrast_sizes(device, sizes):
    groups, anchors, negatives, columns = sizes
    shapes = ((groups, anchors, columns), (groups, columns), (groups, negatives, columns))
    rows = [random_rows(*s, seed=i, device=device).requires_grad_() for i, s in enumerate(shapes)]
    got = gradients(ops.density_contrast, rows)
    wide = [t.detach().double().requires_grad_() for t in rows]
    want = gradients(reference.density_contrast, wide)
    for mine, theirs in zip(got, want, strict=True):
        assert_close(mine, theirs, theirs.abs().max().item())


# ---- edges ----------------------------------------------------------------------------------------


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
    """Rows in a wider buffer, an expanded incoming gradient."""
    wide = random_rows(30, 9, dtype=torch.float64, seed=1, device=device)
    views = [wide[:6, 2:7].requires_grad_(), wide[8:22, 2:7].requires_grad_()]
    plain = [t.detach().clone().requires_grad_() for t in views]
    for call in (values_of(ops), density_of(ops, per_scale=True)):
        got = torch.autograd.grad(call(*views).sum(), views)
        want = torch.autograd.grad(call(*plain).sum(), plain)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 1)])
def test_only_what_requires_a_gradient_gets_one(device, wanted):
    queries, bank, _ = knn_case(device=device)
    inputs = [t.detach().requires_grad_(i in wanted) for i, t in enumerate((queries, bank))]
    full = gradients(density_of(ops), (queries, bank))
    (
        ops.knn_density(*inputs, (2, 4))
        * random_rows(5, dtype=torch.float64, seed=9, device=device)
    ).sum().backward()
    for i, tensor in enumerate(inputs):
        if i in wanted:
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
    with pytest.raises(RuntimeError, match=f"{blamed}: only first derivatives are available"):
        first.sum().backward()


def test_indices_carry_no_gradient():
    queries, bank, _ = knn_case()
    values, indices = ops.knn_topk(queries, bank, 3)
    assert values.requires_grad
    assert not indices.requires_grad
