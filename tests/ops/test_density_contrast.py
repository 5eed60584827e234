"""density_contrast against float64 loops: values, counts, zero rows, eps, temperatures, layouts, errors."""

import math

import oracles
import pytest
import torch
from oracles import assert_close, integers, random_rows

from dgcl_ops.reference import backward as reference_backward

NAN = math.nan


def case(groups=3, anchors=5, negatives=7, columns=6, dtype=torch.float32, device="cpu", seed=0):
    return (
        random_rows(groups, anchors, columns, dtype=dtype, seed=seed + 1, device=device),
        random_rows(groups, columns, dtype=dtype, seed=seed + 2, device=device),
        random_rows(groups, negatives, columns, dtype=dtype, seed=seed + 3, device=device),
    )


def check(implementation, rows, temperature=0.5, **options):
    loss = implementation.density_contrast(*rows, temperature, **options)
    moved = {n: v.cpu() if isinstance(v, torch.Tensor) else v for n, v in options.items()}
    want = oracles.density_contrast(*(t.cpu() for t in rows), temperature, **moved)
    wide = any(t.dtype == torch.float64 for t in rows)
    assert loss.dtype == (torch.float64 if wide else torch.float32)
    # A logit is a cosine / temperature, wrong by as much as the cosine.
    assert_close(loss, want, 1.0 + 2.0 / temperature)
    return loss


@pytest.mark.parametrize("columns", [1, 2, 3, 31, 32, 33, 65])
def test_columns(implementation, device, columns):
    check(implementation, case(columns=columns, device=device))


@pytest.mark.parametrize("negatives", [0, 1, 2, 31, 32, 33, 65])
@pytest.mark.parametrize("anchors", [1, 2, 17])
def test_sizes(implementation, device, anchors, negatives):
    check(implementation, case(2, anchors, negatives, device=device))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("anchors", "negatives", "columns"),
    [
        (15, 63, 4),
        (16, 64, 8),
        (17, 65, 9),
        (33, 127, 15),
        (2, 128, 16),
        (1, 129, 17),
        (3, 257, 66),
    ],
)
def test_tiles(implementation, device, anchors, negatives, columns, dtype):
    """Sizes around the CUDA kernel's tiles: 16 anchors, 128 (float64: 64) negatives, steps of 16 (8) columns."""
    check(implementation, case(2, anchors, negatives, columns, dtype=dtype, device=device))


def test_a_thousand_columns(implementation, device):
    """The oracle adds 1000 terms one by one, and the tolerance still holds. 1000 roundings of random sign, each of a
    partial sum below 1, add up to about sqrt(1000) = 32 roundings."""
    check(implementation, case(1, 3, 5, 1000, device=device))


@pytest.mark.parametrize("negatives", [1, 200])
@pytest.mark.parametrize("temperature", [1 / 512, 0.01, 0.05])
def test_logits_far_apart(implementation, device, temperature, negatives):
    """The running maximum rises in the middle of the stream, at different times in different lanes."""
    rows = case(2, 5, negatives, 24, dtype=torch.float64, device=device)
    for order in (torch.arange(negatives), torch.arange(negatives).flip(0)):
        loss = check(implementation, (rows[0], rows[1], rows[2][:, order]), temperature)
        assert bool(loss.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(implementation, device, dtype):
    check(implementation, case(dtype=dtype, device=device))


@pytest.mark.parametrize("wide", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_one_input_of_another_dtype(implementation, device, wide, dtype):
    rows = list(case(device=device))
    rows[wide] = rows[wide].to(dtype)
    check(implementation, rows)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.1])
def test_temperature_and_eps(implementation, device, temperature, eps):
    check(implementation, case(dtype=torch.float64, device=device), temperature, eps=eps)


def test_extreme_temperature_does_not_overflow(implementation, device):
    """Logits of +-500: the key's probability underflows, but the log-softmax does not."""
    anchors = torch.tensor([[[1.0, 0.0]]], device=device)
    keys = torch.tensor([[-1.0, 0.0]], device=device)
    negatives = torch.tensor([[[1.0, 0.0]]], device=device)
    loss = implementation.density_contrast(anchors, keys, negatives, 1 / 512)
    assert loss.item() == 1024.0
    loss = implementation.density_contrast(anchors, -keys, -negatives, 1 / 512)
    assert loss.item() == 0.0


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_counts(implementation, device, eps):
    rows = case(4, 5, 7, device=device)
    check(
        implementation,
        rows,
        anchor_counts=integers([5, 2, 0, 1], device),
        negative_counts=integers([0, 7, 3, 1], device),
        eps=eps,
    )


def test_rows_beyond_the_counts_may_hold_anything(implementation, device):
    anchors, keys, negatives = case(2, 5, 7, device=device)
    counts = {
        "anchor_counts": integers([3, 0], device),
        "negative_counts": integers([2, 7], device),
    }
    want = implementation.density_contrast(anchors, keys, negatives, **counts)
    anchors[0, 3:] = NAN
    anchors[1] = math.inf
    negatives[0, 2:] = NAN
    got = implementation.density_contrast(anchors, keys, negatives, **counts)
    assert torch.equal(got, want)
    assert got[1].item() == 0.0


def test_without_negatives_the_loss_is_that_of_eps_alone(implementation, device):
    loss = implementation.density_contrast(*case(negatives=0, device=device))
    assert_close(loss, torch.zeros(3).double())
    published = implementation.density_contrast(*case(negatives=0, device=device), eps=1e-6)
    assert_close(published, torch.full((3,), math.log1p(1e-6)).double())


def test_no_groups_and_no_anchors(implementation, device):
    assert implementation.density_contrast(*case(groups=0, device=device)).shape == (0,)
    none = implementation.density_contrast(*case(anchors=0, device=device))
    assert none.tolist() == [0.0, 0.0, 0.0]


def test_zero_rows_are_neutral(implementation, device):
    """A zero anchor has cosine 0 with everything: loss log(1 + N)."""
    anchors, keys, negatives = case(2, 3, 7, device=device)
    anchors[0] = 0
    keys[1] = 0
    negatives[1, 2] = 0
    loss = check(implementation, (anchors, keys, negatives))
    assert abs(loss[0].item() - math.log(8)) < 1e-6


def test_lengths_of_rows_do_not_matter(implementation, device):
    rows = case(device=device)
    want = implementation.density_contrast(*rows)
    for powers in ((3, -2, 5), (-60, 70, 100)):
        scaled = [t * 2.0**power for t, power in zip(rows, powers, strict=True)]
        assert torch.equal(implementation.density_contrast(*scaled), want)


def test_nan_is_passed_on(implementation, device):
    anchors, keys, negatives = case(4, device=device)
    anchors[0, 2, 1] = NAN
    keys[1, 0] = NAN
    negatives[2, 6, 3] = NAN
    loss = implementation.density_contrast(anchors, keys, negatives)
    assert loss.isnan().tolist() == [True, True, True, False]


def test_strided_inputs(implementation, device):
    rows = case(device=device)
    want = implementation.density_contrast(*rows).double()
    turned = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in rows]
    assert not any(t.is_contiguous() for t in turned)
    assert_close(implementation.density_contrast(*turned), want)
    wide = [torch.cat([t, torch.full_like(t, NAN)], dim=-1)[..., :6] for t in rows]
    assert_close(implementation.density_contrast(*wide), want)
    shared = rows[1][:1].expand(3, 6)
    check(implementation, (rows[0], shared, rows[2]))


def test_each_group_stands_alone(device):
    """A group gives the same bits, whatever groups come before and after it."""
    from dgcl_ops import ops

    anchors, keys, negatives = case(5, 9, 33, device=device)
    loss = ops.density_contrast(anchors, keys, negatives)
    for g in range(5):
        part = slice(g, g + 1)
        alone = ops.density_contrast(anchors[part], keys[part], negatives[part])
        assert torch.equal(alone, loss[part])


def test_the_order_of_rows_and_repetition_do_not_matter(implementation, device):
    anchors, keys, negatives = case(3, 8, 12, dtype=torch.float64, device=device)
    loss = implementation.density_contrast(anchors, keys, negatives)
    turned = implementation.density_contrast(anchors.flip(1), keys, negatives.flip(1))
    assert_close(turned, loss)
    twice = implementation.density_contrast(anchors.repeat(1, 2, 1), keys, negatives)
    assert_close(twice, loss)


def test_by_hand(implementation, device):
    """cos = 0.6 to the key and 0.8 to the one negative, T = 0.5: log(1 + e^{0.4})."""
    anchors = torch.tensor([[[3.0, 4.0]]], device=device)
    keys = torch.tensor([[2.0, 0.0]], device=device)
    negatives = torch.tensor([[[0.0, 9.0]]], device=device)
    loss = implementation.density_contrast(anchors, keys, negatives, 0.5)
    assert_close(loss, torch.tensor([math.log1p(math.exp(0.4))], dtype=torch.float64))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"temperature": 0}, ValueError, "temperature must be positive and finite, got 0"),
        ({"temperature": -0.5}, ValueError, "temperature must be positive and finite, got -0.5"),
        ({"temperature": NAN}, ValueError, "temperature must be positive and finite, got nan"),
        ({"temperature": math.inf}, ValueError, "temperature must be positive and finite, got inf"),
        ({"temperature": "1"}, TypeError, "temperature must be a number, got '1'"),
        ({"temperature": None}, TypeError, "temperature must be a number, got None"),
        ({"eps": -1e-6}, ValueError, "eps must be at least 0 and finite, got -1e-06"),
        ({"eps": True}, TypeError, "eps must be a number, got True"),
        ({"anchors": 1}, TypeError, "anchors must be a torch.Tensor, got int"),
        ({"negatives": None}, TypeError, "negatives must be a torch.Tensor, got NoneType"),
    ],
)
def test_errors(change, error, text):
    from dgcl_ops import ops

    anchors, keys, negatives = case()
    arguments = {"anchors": anchors, "keys": keys, "negatives": negatives} | change
    with pytest.raises(error) as caught:
        ops.density_contrast(**arguments)
    assert str(caught.value).startswith(f"density_contrast: {text}"), str(caught.value)


def test_backward_computes_only_the_gradients_that_are_wanted():
    """With detached keys and negatives, the anchors' gradient is the same, and the others are not computed."""
    rows = [torch.randn(2, 5, 7), torch.randn(2, 7), torch.randn(2, 6, 7)]
    loss, lse = torch.ops.dgcl_ops.density_contrast(*rows, 0.5, None, None, 0.0)
    for backward in (
        torch.ops.dgcl_ops.density_contrast_backward,
        reference_backward.density_contrast_backward,
    ):
        arguments = (torch.ones_like(loss), *rows, lse, 0.5, None, None)
        anchors_only, *empty = backward(*arguments, False)
        assert torch.equal(anchors_only, backward(*arguments, True)[0])
        assert [t.shape for t in empty] == [(0,), (0,)]
