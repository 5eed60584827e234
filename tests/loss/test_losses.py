"""One step of the loss against the float64 loops of loss_oracle.py: formula, edges, training."""

import copy
import math

import oracles
import pytest
import torch
from loss_oracle import (
    SMALL,
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
    flat_rows,
    loss_of,
    run,
    snapshot,
)
from oracles import integers

from dgcl_ops.losses import DensityContrastLoss
from dgcl_ops.memory import MemoryBank


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("anchors", "keys"), STRATEGIES)
def test_formula(anchors, keys, dtype):
    module = filled(loss_of(anchors=anchors, keys=keys), dtype=dtype)
    value, gradient = check_step(module, batch_of(dtype=dtype))
    assert value > 0
    assert gradient.any()


@pytest.mark.parametrize(("anchors", "keys"), [s for s in STRATEGIES if s[1] != "average"])
def test_formula_disjoint(anchors, keys):
    module = filled(loss_of(anchors=anchors, keys=keys, disjoint=True))
    for counts in [(24, 12, 9, 1, 0), (2, 3, 5, 7, 8), (1, 1, 1, 1, 1)]:
        batch = batch_of(counts=counts)
        chosen = draw_of(module, batch)
        for c in range(C):
            both = chosen.anchors.index[c, : chosen.anchors.counts[c]].tolist()
            both += chosen.keys.index[c, : chosen.keys.counts[c]].tolist()
            assert len(set(both)) == len(both)
        check_step(module, batch)


@pytest.mark.parametrize(
    "change",
    [
        {"normalize_keys": True},
        {"normalize_keys": True, "keys": "average"},
        {"eps": 1e-3},
        {"temperature": 0.07},
        {"grad_scale": 0.25},
        {"exclude_classes": (1, 3)},
        {"metric": "dot"},
        {"metric": "l2"},
        {"bank_dtype": torch.float64},
        {"bank_dtype": torch.bfloat16},
        {"bank_dtype": torch.float16, "keys": "average"},
        {"num_negatives": 1, "num_anchors": 1, "num_keys": 1, "scales": (1,)},
        {"num_anchors": 99, "num_keys": 99, "max_candidates": 99, "rows_per_push": 99},
    ],
    ids=str,
)
def test_formula_with_other_settings(change):
    check_step(filled(loss_of(**change)), batch_of())


def test_excluded_classes_are_negatives_but_nothing_else():
    module = filled(loss_of(exclude_classes=(0, 2)))
    assert module.bank.counts.tolist() == [0, 14, 0, 14, 14]
    batch = batch_of()
    chosen = draw_of(module, batch)
    assert chosen.active.tolist() == [False, True, False, True, False]
    drawn = batch["labels"].reshape(-1)[chosen.negatives.index[1]]
    assert {0, 2} <= set(drawn.tolist())
    _, gradient = check_step(module, batch)
    touched = flat_rows(gradient).abs().sum(1) > 0
    assert not touched[torch.isin(batch["labels"].reshape(-1), integers([0, 2, 255]))].any()


def test_excluded_classes_stay_out_even_if_the_bank_knows_them():
    bank = filled(loss_of()).bank
    module = loss_of(bank=bank, exclude_classes=(0, 2), start="all_full")
    heads = bank.heads.clone()
    assert draw_of(module, batch_of()).candidate_counts.tolist() == [0, 12, 0, 1, 0]
    check_step(module, batch_of())
    assert torch.equal(bank.heads[[0, 2]], heads[[0, 2]])


@pytest.mark.parametrize("ignore_index", [255, -1, 0])
@pytest.mark.parametrize("label_dtype", [torch.int64, torch.int32, torch.int8])
def test_ignore_index(ignore_index, label_dtype):
    module = filled(loss_of(ignore_index=ignore_index), ignore_index=ignore_index)
    batch = batch_of(ignore_index=ignore_index)
    assert module.bank.counts[0] == (0 if ignore_index == 0 else 14)
    if label_dtype == torch.int8 and ignore_index == 255:
        batch["labels"].clamp_(max=4)  # no label is 255, so nothing is ignored
    batch["labels"] = batch["labels"].to(label_dtype)
    check_step(module, batch)


def test_byte_labels():
    module = filled(loss_of())
    copied = copy.deepcopy(module)
    batch = batch_of()
    value, gradient = run(module, batch)
    again = run(copied, batch, labels=batch["labels"].to(torch.uint8))
    assert torch.equal(value, again[0])
    assert torch.equal(gradient, again[1])
    with pytest.raises(RuntimeError, match=r"\[0, 5\) or equal ignore_index -1, got 255"):
        loss_of(ignore_index=-1)(**{**batch, "labels": batch["labels"].to(torch.uint8)})


# ---- batches at the edge ----------------------------------------------------------------------------


@pytest.mark.parametrize(("anchors", "keys"), STRATEGIES)
@pytest.mark.parametrize(
    "counts", [(0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (30, 0, 0, 0, 0), (1, 1, 1, 1, 1)]
)
def test_few_classes(anchors, keys, counts):
    module = filled(loss_of(anchors=anchors, keys=keys))
    value, gradient = check_step(module, batch_of(counts=counts))
    assert value.isfinite()
    assert gradient.isfinite().all()
    if counts[1] == 0:  # no class, or no negatives, so a log-softmax over the key alone
        assert value == 0
        assert not gradient.any()


def test_without_ready_classes_the_loss_is_a_connected_zero():
    module = loss_of()
    value, gradient = run(module, batch_of(counts=(3, 3, 3, 0, 0)))
    assert value == 0
    assert gradient is not None
    assert not gradient.any()
    assert value.dtype == torch.float32
    assert module.bank.counts.tolist() == [3, 3, 3, 0, 0]  # but the bank has begun to fill


def test_each_class_starts_by_itself_or_all_together():
    counts = (6, 6, 1, 0, 0)
    per_class, together = loss_of(), loss_of(start="all_full", exclude_classes=(3, 4))
    for step in range(15):
        batch = batch_of(seed=step, counts=counts)
        active = draw_of(per_class, batch).active
        assert active.tolist() == [step > 0, step > 0, step >= 4, False, False]
        full = step >= 14  # class 2 has one row per step, and a ring holds 14
        assert draw_of(together, batch).active.tolist() == [full, full, full, False, False]
        assert (run(together, batch)[0] > 0) == full
        check_step(per_class, batch)


def test_an_empty_batch():
    module = filled(loss_of())
    before = snapshot(module)
    rows = torch.zeros(0, E, requires_grad=True)
    value = module(rows, torch.zeros(0, dtype=torch.int64), torch.zeros(0, D))
    value.backward()
    assert value == 0
    assert rows.grad.shape == (0, E)
    assert_same_state(module, before)


@pytest.mark.parametrize(("anchors", "keys"), STRATEGIES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_count_as_ignored(anchors, keys, value):
    module = filled(loss_of(anchors=anchors, keys=keys))
    copied = copy.deepcopy(module)
    batch = batch_of()
    spoiled = {name: tensor.clone() for name, tensor in batch.items()}
    bad = (batch["labels"] != 255) & (torch.arange(B * H * W).view(B, H, W) % 5 == 0)
    for i, (b, y, x) in enumerate(bad.nonzero().tolist()):
        name, channel = [("projections", 1), ("features", 2)][i % 2]
        spoiled[name][b, channel, y, x] = value
    clean = {**batch, "labels": torch.where(bad, 255, batch["labels"])}
    got, gradient = run(module, spoiled)
    expected, expected_gradient = run(copied, clean)
    assert got == expected
    assert torch.equal(gradient, expected_gradient)
    assert_same_state(module, snapshot(copied))
    assert int(module.diagnostics()["non_finite_rows"]) == int(bad.sum()) > 0
    assert int(copied.diagnostics()["non_finite_rows"]) == 0


def test_nothing_but_unusable_rows():
    module = filled(loss_of())
    before = snapshot(module.bank)
    batch = batch_of()
    value, gradient = run(module, batch, projections=torch.full((B, E, H, W), math.nan))
    assert value == 0
    assert not gradient.any()
    assert_same_state(module.bank, before, but=("num_pushes", "rng_state"))


# ---- training and evaluation ------------------------------------------------------------------------


def test_the_loss_comes_before_the_push_and_the_push_holds_the_drawn_rows():
    module = filled(loss_of())
    batch = batch_of()
    chosen, heads = draw_of(module, batch), module.bank.heads.clone()
    before = snapshot(module.bank)
    run(module, batch)
    bank = module.bank
    for c in range(C):
        for i in range(int(chosen.push.pixels.counts[c])):
            slot, pixel = (int(heads[c]) + i) % bank.capacity, chosen.push.pixels.index[c, i]
            assert torch.equal(bank.projections[c, slot], flat_rows(batch["projections"])[pixel])
            assert bank.density[c, slot] == chosen.push.density[c, i]
            row = oracles.unit_row(flat_rows(batch["features"])[pixel].tolist())
            oracles.assert_close(bank.features[c, slot], torch.tensor(row).double())
    assert int(bank.num_pushes) == int(before["num_pushes"]) + 1


@pytest.mark.parametrize(("anchors", "keys"), STRATEGIES)
def test_evaluation_leaves_all_state_alone(anchors, keys):
    module = filled(loss_of(anchors=anchors, keys=keys)).eval()
    before = snapshot(module)
    first, _ = check_step(module, batch_of())
    second, _ = run(module, batch_of())
    assert first == second > 0
    assert_same_state(module, before)


def test_training_without_pushing():
    module = filled(loss_of())
    copied = copy.deepcopy(module)
    before = snapshot(module)
    value, _ = run(module, batch_of(), update_bank=False)
    assert value == run(copied, batch_of())[0]
    assert_same_state(module, before, but=("bank.rng_state",))
    assert run(module, batch_of(), update_bank=False)[0] != value  # another draw


@pytest.mark.parametrize(("anchors", "keys"), STRATEGIES)
def test_the_push_is_the_same_for_every_strategy(anchors, keys):
    # Same seed, same pixels, same densities, so that only strategies are compared.
    module, plain = loss_of(anchors=anchors, keys=keys), loss_of()
    for seed in range(4):
        module(**batch_of(seed=seed))
        plain(**batch_of(seed=seed))
    assert_same_state(module, snapshot(plain))


def test_no_gradient_reaches_features_keys_and_negatives():
    module = filled(loss_of())
    batch = batch_of()
    features = batch["features"].requires_grad_()
    chosen = draw_of(module, batch)
    _, gradient = run(module, batch)
    assert features.grad is None
    anchors = [
        pixel
        for c in range(C)
        for pixel in chosen.anchors.index[c, : chosen.anchors.counts[c]].tolist()
    ]
    touched = flat_rows(gradient).abs().sum(1).nonzero().flatten().tolist()
    assert touched == sorted(anchors)


def test_features_default_to_the_projections():
    module = DensityContrastLoss(C, E, **SMALL)
    for seed in range(3):
        batch = batch_of(seed=seed)
        module(batch["projections"], batch["labels"])
    copied = copy.deepcopy(module)
    batch = batch_of()
    projections = batch["projections"].requires_grad_()
    value = module(projections, batch["labels"])
    assert (
        value
        == copied(batch["projections"].detach(), batch["labels"], batch["projections"].detach())
        > 0
    )
    value.backward()


def test_one_bank_may_serve_a_loss_from_outside():
    bank = MemoryBank(C, D, E, capacity=14, rows_per_push=6, scales=(2, 4), seed=1)
    shared, own = loss_of(bank=bank), loss_of()
    for seed in range(3):
        assert shared(**batch_of(seed=seed)) == own(**batch_of(seed=seed))
    assert shared.bank is bank
    assert bank.checksum() == own.bank.checksum()
