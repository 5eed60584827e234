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
    """Nearest neighbours are close, so (q - b) / |q - b| must come from the difference, not from q / s - b / s."""
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
