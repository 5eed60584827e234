"""Presets, diagnostics, and the errors of bad arguments and bad batches."""

import math

import pytest
import torch
from loss_oracle import (
    STRATEGIES,
    B,
    C,
    D,
    E,
    H,
    W,
    assert_same_state,
    batch_of,
    check_step,
    draw_of,
    filled,
    loss_of,
    run,
    snapshot,
)
from oracles import random_rows

from dgcl_ops import density_contrast
from dgcl_ops._step import sampling
from dgcl_ops.losses import MIN_TEMPERATURE, DensityContrastLoss
from dgcl_ops.memory import MemoryBank

# ---- presets, diagnostics, arguments ----------------------------------------------------------------


def test_paper_presets():
    tiny = {"bank_capacity": 1_100, "feature_dim": 8, "projection_dim": 8}
    voc = DensityContrastLoss.paper("voc", **tiny)
    city = DensityContrastLoss.paper("cityscapes", world_size=4, **tiny)
    assert (voc.num_classes, voc.exclude_classes) == (21, (0,))
    assert (city.num_classes, city.exclude_classes) == (19, ())
    assert (voc.grad_scale, city.grad_scale) == (1.0, 0.25)
    for module in (voc, city):
        strategy, bank = module.strategy, module.bank
        assert (strategy.num_anchors, strategy.num_keys, strategy.num_negatives) == (200, 50, 512)
        assert (strategy.max_candidates, strategy.start) == (10_000, "all_full")
        assert (bank.min_rows, bank.backfill, bank.refresh_every) == (1_001, False, 0)
        assert (module.eps, module.temperature, bank.rows_per_push) == (1e-6, 0.5, 1_000)
        assert not strategy.disjoint
        assert not strategy.normalize_keys
    assert DensityContrastLoss.paper("voc", 5, eps=0.0, **tiny).eps == 0.0
    with pytest.raises(ValueError, match="dataset must be one of"):
        DensityContrastLoss.paper("coco")


def test_paper_mode_with_a_single_class_keeps_the_epsilon():
    module = filled(loss_of(eps=1e-6))
    value, _ = run(module, batch_of(counts=(9, 0, 0, 0, 0)))
    # Plain PyTorch adds it to 1 in float32, where steps are 2^-23.
    assert abs(float(value) - math.log1p(1e-6)) <= 2**-24


def test_diagnostics():
    module = filled(loss_of(exclude_classes=(4,)))
    batch = batch_of()
    chosen = draw_of(module, batch)
    rows = module.bank.counts.clone()
    value, _ = run(module, batch)
    diagnostics = module.diagnostics()
    assert all(isinstance(tensor, torch.Tensor) for tensor in diagnostics.values())
    assert diagnostics["active"].tolist() == [True, True, True, True, False]
    assert diagnostics["candidates"].tolist() == [15, 12, 9, 1, 0]
    assert torch.isclose(diagnostics["class_loss"].sum() / 4, value)
    assert (diagnostics["anchor_density"] <= diagnostics["key_density"]).all()
    anchor_density = chosen.summary.anchor_density_sum[2] / chosen.summary.anchors[2]
    assert torch.isclose(diagnostics["anchor_density"][2], anchor_density)
    assert (diagnostics["rows"] >= rows).all()
    assert int(diagnostics["num_pushes"]) == 4
    stored = module.bank.density[1, : module.bank.counts[1]]
    assert torch.isclose(diagnostics["mean_density"][1], stored.mean())
    assert diagnostics["ready"].tolist() == [True] * 4 + [False]
    assert not any(name.startswith("_") for name in module.state_dict())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
        ({"temperature": 9e-7}, ValueError, "temperature must be at least 1e-06, got 9e-07"),
        ({"temperature": 1e-300}, ValueError, "temperature must be at least 1e-06, got 1e-300"),
        ({"temperature": math.nan}, ValueError, "temperature must be positive and finite, got nan"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number, got 'hot'"),
        ({"num_anchors": 0}, ValueError, "num_anchors must be a positive integer, got 0"),
        ({"num_keys": 1.5}, TypeError, "num_keys must be an integer, got 1.5"),
        ({"num_negatives": 0}, ValueError, "num_negatives must be a positive integer"),
        ({"max_candidates": 0}, ValueError, "max_candidates must be a positive integer"),
        (
            {"rows_per_push": 16},
            ValueError,
            r"rows_per_push \(1,000 by default\) must be at most max_candidates 15, got 16",
        ),
        ({"anchors": "dense"}, ValueError, "anchors must be one of .*, got 'dense'"),
        ({"keys": "low_density"}, ValueError, "keys must be one of .*, got 'low_density'"),
        ({"start": "never"}, ValueError, "start must be one of .*, got 'never'"),
        ({"exclude_classes": (5,)}, ValueError, r"exclude_classes must lie in \[0, 5\), got 5"),
        ({"exclude_classes": ("a",)}, TypeError, "each of exclude_classes must be an integer"),
        ({"ignore_index": 2.5}, TypeError, "ignore_index must be an integer, got 2.5"),
        ({"eps": -1.0}, ValueError, "eps must be at least 0 and finite, got -1.0"),
        ({"grad_scale": math.inf}, ValueError, "grad_scale must be at least 0 and finite"),
        (
            {"disjoint": True, "keys": "average"},
            ValueError,
            "disjoint=True is not supported with keys='average'",
        ),
        ({"bank": "a bank"}, TypeError, "bank must be a MemoryBank, got str"),
        (
            {"bank": MemoryBank(4, D, E, scales=(2, 4), capacity=9)},
            ValueError,
            "bank must have the loss's num_classes 5",
        ),
        (
            {"bank": MemoryBank(C, D, E, capacity=9)},
            ValueError,
            r"bank must have the loss's scales \(2, 4\)",
        ),
        (
            {"bank": MemoryBank(C, D, E, scales=(2, 4), capacity=9, metric="l2")},
            ValueError,
            "bank must have the loss's metric 'cosine', got 'l2'",
        ),
    ],
    ids=str,
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=f"DensityContrastLoss: {message}"):
        loss_of(**change)


def error_at(temperature: float) -> float:
    """The largest relative error of float32 gradients when two equal negatives share the probability."""
    anchors = random_rows(64, 1, E, seed=1)
    negatives = (anchors + random_rows(64, 1, E, seed=2) / 4).repeat(1, 2, 1)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = anchors.to(dtype, copy=True).requires_grad_()
        rows = negatives.to(dtype)
        density_contrast(leaf, -rows[:, 0], rows, temperature).sum().backward()
        gradients.append(leaf.grad.double().flatten(1))
    ours, exact = gradients
    return float(((ours - exact).norm(dim=1) / exact.norm(dim=1)).nan_to_num(torch.inf).max())


def test_float32_gradients_hold_down_to_the_smallest_temperature():
    """The stored log-sum-exp near 1 / T has a rounding error up to 2^-24 / T, which scales every probability."""
    assert error_at(MIN_TEMPERATURE) <= math.expm1(2**-24 / MIN_TEMPERATURE)
    assert error_at(MIN_TEMPERATURE / 1000) > 0.2  # so the limit is needed
    value, gradient = run(filled(loss_of(temperature=MIN_TEMPERATURE)), batch_of())
    assert value.isfinite()
    assert gradient.isfinite().all()
    batch = batch_of(dtype=torch.float64)
    module = filled(loss_of(temperature=MIN_TEMPERATURE), dtype=torch.float64)
    check_step(module, batch)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.zeros(B, 2 * H, 2 * W, dtype=torch.int64)}, ValueError, "resize_labels"),
        (
            {"labels": torch.zeros(B, H, W)},
            TypeError,
            "labels must be an integer tensor, got torch.float32",
        ),
        (
            {"labels": torch.full((B, H, W), 5)},
            RuntimeError,
            r"^DensityContrastLoss: labels must lie in \[0, 5\).*got 5",
        ),
        (
            {"features": torch.zeros(B, D + 1, H, W)},
            ValueError,
            r"features must have shape \[B, 6, \*S\]",
        ),
        (
            {"features": torch.zeros(B, D, H, W + 1)},
            ValueError,
            "features must have the size of the projections",
        ),
        ({"features": None}, ValueError, "features is required because feature_dim 6"),
        (
            {"projections": torch.zeros(B, E + 1, H)},
            ValueError,
            r"projections must have shape \[B, 4, \*S\]",
        ),
        (
            {"projections": torch.zeros(B, E, H)},
            ValueError,
            "features must have the size of the projections",
        ),
        (
            {"projections": torch.zeros(B, E, H, W, dtype=torch.int32)},
            TypeError,
            "projections must have a float",
        ),
        (
            {"confidence": torch.zeros(B, H)},
            ValueError,
            r"confidence must have shape \[\d+, \d+, \d+\], the shape of the labels, got",
        ),
    ],
    ids=str,
)
def test_bad_batches_change_nothing(change, error, message):
    module = filled(loss_of())
    before = snapshot(module)
    with pytest.raises(error, match=message):
        module(**{**batch_of(), **change})
    assert_same_state(module, before)


@pytest.mark.parametrize(
    ("anchors", "keys"), [s for s in STRATEGIES if any("confidence" in name for name in s)]
)
def test_confidence_must_be_given(anchors, keys):
    batch = batch_of()
    del batch["confidence"]
    with pytest.raises(ValueError, match="confidence is required with anchors="):
        loss_of(anchors=anchors, keys=keys)(**batch)


def test_confidence_that_is_nan_marks_a_row_as_unusable():
    module = filled(loss_of(anchors="low_confidence"))
    batch = batch_of()
    bad = batch["labels"] == 1
    batch["confidence"][bad] = math.nan
    assert draw_of(module, batch).candidate_counts.tolist() == [15, 0, 9, 1, 0]


def test_padding_entries_are_harmless():
    # Unused entries of tables may point anywhere, here at rows that are not finite.
    module = filled(loss_of(keys="high_confidence"))
    batch = batch_of(counts=(2, 1, 0, 0, 0))
    projections = torch.where((batch["labels"] == 255)[:, None], math.nan, batch["projections"])
    value, gradient = run(module, batch, projections=projections)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient.any()
    used = ~sampling.unused_entries(draw_of(module, batch).anchors)
    assert used.sum(1).tolist() == [2, 1, 0, 0, 0]


def test_paper_setting_of_a_small_bank():
    """The ring has fewer than the 1,001 rows at which densities begin, so they begin when it is full."""
    loss = DensityContrastLoss.paper("voc", feature_dim=4, projection_dim=4, bank_capacity=50)
    assert loss.bank.min_rows == 50


def test_exclude_classes_that_is_no_tuple():
    with pytest.raises(
        TypeError, match="exclude_classes must be a tuple or list of classes, got 0"
    ):
        DensityContrastLoss(3, 4, exclude_classes=0)
