"""Changes that must not affect the loss, or must affect it in a known way."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_oracle import (
    SMALL,
    STRATEGIES,
    C,
    E,
    assert_same_state,
    batch_of,
    filled,
    flat_rows,
    loss_of,
    run,
    snapshot,
)
from oracles import integers, random_rows

from dgcl_ops.losses import DensityContrastLoss

# ---- number types and layouts -----------------------------------------------------------------------


@pytest.mark.parametrize(("anchors", "keys"), STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_are_widened_exactly(anchors, keys, dtype):
    module = filled(loss_of(anchors=anchors, keys=keys))
    copied = copy.deepcopy(module)
    batch = batch_of(dtype=dtype)
    value, gradient = run(module, batch)
    wide = {**batch, **{name: batch[name].float() for name in ("projections", "features")}}
    expected, expected_gradient = run(copied, wide)
    assert value == expected
    assert value.dtype == torch.float32
    assert torch.equal(gradient, expected_gradient.to(dtype))
    assert_same_state(module, snapshot(copied))


@pytest.mark.parametrize(("anchors", "keys"), STRATEGIES)
def test_autocast_changes_nothing(anchors, keys):
    module = filled(loss_of(anchors=anchors, keys=keys))
    copied = copy.deepcopy(module)
    with torch.autocast("cpu", torch.bfloat16):
        value, gradient = run(module, batch_of())
    expected, expected_gradient = run(copied, batch_of())
    assert value == expected
    assert torch.equal(gradient, expected_gradient)
    assert_same_state(module, snapshot(copied))


@pytest.mark.parametrize("layout", ["flat", "channels_last", "cropped"])
@pytest.mark.parametrize("keys", ["high_density", "average"])
def test_layouts(layout, keys):
    module = filled(loss_of(keys=keys))
    copied = copy.deepcopy(module)
    batch = batch_of()
    expected, expected_gradient = run(copied, batch)
    other = dict(batch)
    if layout == "flat":
        other = {name: tensor.reshape(-1) for name, tensor in batch.items()}
        other |= {name: flat_rows(batch[name]) for name in ("projections", "features")}
    elif layout == "channels_last":
        for name in ("projections", "features"):
            other[name] = batch[name].to(memory_format=torch.channels_last)
    else:
        for name in ("projections", "features"):
            other[name] = torch.nn.functional.pad(batch[name], (1, 2, 3, 1))[:, :, 3:-1, 1:-2]
    value, gradient = run(module, other)
    # The mean over all candidates is a matrix product, and its order of summation depends on the layout.
    tolerance = 1e-6 if keys == "average" else 0.0
    assert abs(float(value - expected)) <= tolerance * float(expected)
    difference = flat_rows(gradient) - flat_rows(expected_gradient)
    assert float(difference.abs().max()) <= tolerance
    assert_same_state(module, snapshot(copied))


def test_casting_a_model_leaves_the_loss_alone():
    module = filled(loss_of())
    before = snapshot(module)
    torch.nn.Sequential(torch.nn.Linear(1, 1), module).half()
    assert_same_state(module, before)
    assert {tensor.dtype for tensor in module.buffers()} <= {torch.float32, torch.int64, torch.bool}


# ---- relations --------------------------------------------------------------------------------------


def orthogonal_batch(seed, sizes, order=(0, 1, 2)) -> dict:
    """Flat rows. Class c spans its own block of the projections, so any negative has cosine 0 to any anchor. Which ones
    are drawn does not matter. `order` renames the classes."""
    labels = torch.repeat_interleave(torch.arange(3), integers(sizes))
    rows = len(labels)
    projections = torch.zeros(rows, 6, dtype=torch.float64)
    for c in range(3):
        projections[labels == c, 2 * c : 2 * c + 2] = random_rows(
            sizes[c], 2, seed=seed + c, dtype=torch.float64
        ).abs()
    return {
        "projections": projections,
        "labels": integers(order)[labels],
        "features": random_rows(rows, 5, seed=seed + 10, dtype=torch.float64),
    }


@given(
    st.permutations([0, 1, 2]),
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
    st.integers(0, 10_000),
)
def test_renaming_classes_renames_their_losses(order, sizes, seed):
    names = {
        "scales": (2,),
        "num_anchors": 3,
        "num_keys": 2,
        "num_negatives": 7,
        "max_candidates": 8,
    }
    names |= {"bank_capacity": 9, "rows_per_push": 4, "bank_dtype": torch.float64, "seed": 3}
    plain, renamed = DensityContrastLoss(3, 5, 6, **names), DensityContrastLoss(3, 5, 6, **names)
    for step in range(3):
        value = plain(**orthogonal_batch(seed + step, sizes))
        other = renamed(**orthogonal_batch(seed + step, sizes, order))
        assert abs(float(value - other)) <= 1e-12 * max(1.0, float(value))
    ours, theirs = plain.diagnostics(), renamed.diagnostics()
    for name in ("rows", "ready", "active", "candidates", "mean_density", "class_loss"):
        torch.testing.assert_close(theirs[name][list(order)], ours[name], rtol=1e-6, atol=1e-12)


@given(st.integers(-20, 20), st.integers(-20, 20), st.integers(0, 1000))
def test_scaling_by_powers_of_two_changes_no_bit(of_projections, of_features, seed):
    # Cosines do not depend on lengths, and nothing before them is rounded differently.
    plain, scaled = loss_of(bank_dtype=torch.float64), loss_of(bank_dtype=torch.float64)
    for step in range(3):
        batch = batch_of(seed=seed + step, dtype=torch.float64)
        value, gradient = run(plain, batch)
        other, other_gradient = run(
            scaled,
            batch,
            projections=batch["projections"] * 2.0**of_projections,
            features=batch["features"] * 2.0**of_features,
        )
        assert value == other
        assert torch.equal(gradient, other_gradient * 2.0**of_projections)


@given(st.integers(0, 40), st.integers(0, 1000))
def test_ignored_rows_at_the_end_change_nothing(extra, seed):
    plain, padded = loss_of(), loss_of()
    for step in range(3):
        batch = batch_of(seed=seed + step)
        flat = {name: tensor.reshape(-1) for name, tensor in batch.items()}
        flat |= {name: flat_rows(batch[name]) for name in ("projections", "features")}
        longer = {
            name: torch.cat(
                [tensor, torch.full_like(tensor[:1], 255).expand(extra, *tensor.shape[1:])]
            )
            for name, tensor in flat.items()
        }
        value, gradient = run(plain, flat)
        other, other_gradient = run(padded, longer)
        assert value == other
        assert torch.equal(gradient, other_gradient[: len(gradient)])
        assert not other_gradient[len(gradient) :].any()
    assert_same_state(padded, snapshot(plain))


def test_the_backward_keeps_no_rows_that_it_does_not_need():
    """A view of a larger tensor would keep all of it alive until then."""
    module, kept = filled(loss_of()), []
    batch = batch_of()
    batch["projections"].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        assert module(**batch) > 0
    assert any(t.shape == (C, SMALL["num_negatives"], E) for t in kept)
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in kept)
