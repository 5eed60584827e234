"""Small losses and batches, and an oracle: the whole step as float64 loops over classes, rows and logits."""

import oracles
import torch
from oracles import integers, random_rows

from dgcl_ops._step import selection
from dgcl_ops._step.batch import Batch
from dgcl_ops.losses import DensityContrastLoss

B, C, D, E, H, W = 2, 5, 6, 4, 5, 7
SMALL = {
    "scales": (2, 4),
    "num_anchors": 6,
    "num_keys": 3,
    "num_negatives": 9,
    "max_candidates": 15,
    "bank_capacity": 14,
    "rows_per_push": 6,
    "seed": 1,
}
STRATEGIES = [
    (anchors, keys)
    for anchors in ("low_density", "random", "low_confidence")
    for keys in ("high_density", "average", "high_confidence")
]
# Relative. The formula has a few hundred roundings in sequence. The choice is taken from the step itself.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def loss_of(**changes) -> DensityContrastLoss:
    return DensityContrastLoss(C, D, E, **{**SMALL, **changes})


def batch_of(seed=0, dtype=torch.float32, counts=(24, 12, 9, 1, 0), ignore_index=255) -> dict:
    """Maps with counts[c] pixels of each class, the others ignored."""
    labels = torch.full((B * H * W,), ignore_index)
    labels[: sum(counts)] = torch.repeat_interleave(torch.arange(C), integers(list(counts)))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    return {
        "projections": random_rows(B, E, H, W, seed=seed, dtype=dtype),
        "labels": labels.view(B, H, W),
        "features": random_rows(B, D, H, W, seed=seed + 1000, dtype=dtype),
        "confidence": random_rows(B, H, W, seed=seed + 2000, dtype=torch.float32).sigmoid(),
    }


def filled(module: DensityContrastLoss, steps=3, **batch) -> DensityContrastLoss:
    """The module after a few steps of training. Every class is ready, except for the absent ones."""
    for seed in range(steps):
        module(**batch_of(seed=50 + seed, **{"counts": (10, 10, 10, 10, 10), **batch}))
    return module


def snapshot(module) -> dict:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_state(module, before: dict, but=()) -> None:
    for name, tensor in module.state_dict().items():
        if name not in but:
            assert torch.equal(tensor, before[name]), name


def flat_rows(maps):
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]) if maps.dim() == 4 else maps


def run(module, batch, **changes):
    """Value and gradient of one step."""
    batch = {**batch, **changes}
    projections = batch.pop("projections").detach().clone().requires_grad_()
    value = module(projections, **batch)
    value.backward()
    return value.detach(), projections.grad


def draw_of(module, batch, push=True):
    with torch.no_grad():
        checked, _ = Batch.checked("test", module.bank, **batch, strategy=module.strategy)
        return selection.select(module.strategy, module.bank, module.included, checked, push)


# ---- the oracle -------------------------------------------------------------------------------------


def oracle(module: DensityContrastLoss, batch: dict, chosen):
    """(value, gradient, loss of each class), class by class in float64, from nothing but the tables of `chosen`.

    `check_choice` checks that the tables hold the right rows.
    """
    strategy, bank = module.strategy, module.bank
    leaf = batch["projections"].detach().double().requires_grad_()
    rows = flat_rows(leaf)
    per_class = {}
    for c in range(C):
        anchor_count = int(chosen.anchors.counts[c])
        if anchor_count == 0:
            continue
        if strategy.keys == "average":
            begin, count = int(chosen.candidates.offsets[c]), int(chosen.candidate_counts[c])
            own = rows[chosen.candidates.pixels[begin : begin + count]].detach()
            stored = bank.projections[c, : bank.counts[c]]
        else:
            own = rows[chosen.keys.index[c, : chosen.keys.counts[c]]].detach()
            stored = bank.projections[c, :0]
            if chosen.bank_keys is not None:
                slots = chosen.bank_keys.index[c, : chosen.bank_keys.counts[c]]
                stored = bank.projections[c, slots]
        members = list(own) + list(stored.double())
        if strategy.normalize_keys:
            members = [row / row.square().sum().sqrt() for row in members]
        key = sum(members) / len(members)
        negatives = rows[chosen.negatives.index[c, : chosen.negatives.counts[c]]].detach()
        total = 0.0
        for anchor in rows[chosen.anchors.index[c, :anchor_count]]:
            logits = [
                (anchor * other).sum()
                / (anchor.square().sum().sqrt() * other.square().sum().sqrt())
                / module.temperature
                for other in [key, *negatives]
            ]
            top = max(logits).detach()
            summed = sum((z - top).exp() for z in logits) + module.eps
            total = total + summed.log() - (logits[0] - top)
        per_class[c] = total / anchor_count
    value = sum(per_class.values()) / max(1, len(per_class)) + 0.0 * rows.sum()
    value.backward()
    return value.detach(), leaf.grad * module.grad_scale, per_class


def check_choice(module: DensityContrastLoss, batch: dict, chosen, push: bool):
    """The tables hold what the method prescribes for the candidates."""
    strategy, bank = module.strategy, module.bank
    labels = batch["labels"].reshape(-1)
    features = flat_rows(batch["features"])
    ready = bank.counts >= bank.min_rows
    for c in range(C):
        present = int((labels == c).sum()) if c != strategy.ignore_index else 0
        takes_part = c not in module.exclude_classes and bool(ready[c]) and present > 0
        count = min(present, strategy.max_candidates) if takes_part else 0
        assert chosen.candidate_counts[c] == count
        begin = int(chosen.candidates.offsets[c])
        candidates = chosen.candidates.pixels[begin : begin + count]
        assert len(set(candidates.tolist())) == count
        assert (labels[candidates] == c).all()
        pushed = []
        if push:
            pushed = chosen.push.pixels.index[c, : chosen.push.pixels.counts[c]].tolist()
            wanted = 0 if c in module.exclude_classes else min(present, bank.rows_per_push)
            assert len(set(pushed)) == wanted == len(pushed)
            assert (labels[pushed] == c).all()
            if count:
                assert pushed == candidates[: len(pushed)].tolist()

        def densities(pixels, c=c):
            stored = bank.features[c, : bank.counts[c] if ready[c] else 0]
            return oracles.knn_density(features[pixels], stored, bank.scales, bank.metric)

        for position, expected in enumerate(densities(pushed)):
            oracles.assert_close(chosen.push.density[c, position], expected)
        if not count:
            assert chosen.anchors.counts[c] == 0
            assert not chosen.active[c]
            continue

        density, confidence = densities(candidates), batch["confidence"].reshape(-1)[candidates]
        by = {"density": density, "confidence": confidence}
        num_keys = min(strategy.num_keys, count)
        num_anchors = min(strategy.num_anchors, count)
        if strategy.disjoint:
            share = count * strategy.num_keys // (strategy.num_keys + strategy.num_anchors)
            num_keys = min(strategy.num_keys, max(share, 1 if count > 1 else 0))
            num_anchors = min(strategy.num_anchors, count - num_keys)
        keys = []
        if strategy.keys != "average":
            value = by[strategy.keys.split("_")[1]]
            keys = candidates[value.argsort(descending=True)[:num_keys]].tolist()
        assert chosen.keys.index[c, : chosen.keys.counts[c]].tolist() == keys
        if strategy.keys == "high_confidence" and not keys:
            assert not chosen.active[c]
            assert chosen.anchors.counts[c] == 0
            continue
        assert chosen.active[c]
        kept = [i for i, pixel in enumerate(candidates.tolist()) if pixel not in keys]
        kept = kept if strategy.disjoint else list(range(count))
        if strategy.anchors != "random":
            value = by[strategy.anchors.split("_")[1]]
            kept = sorted(kept, key=lambda i: float(value[i]))
        anchors = candidates[kept[:num_anchors]].tolist()
        assert chosen.anchors.index[c, : chosen.anchors.counts[c]].tolist() == anchors

        assert (chosen.bank_keys is not None) == (strategy.keys == "high_density")
        if chosen.bank_keys is not None:
            stored = bank.density[c, : bank.counts[c]].tolist()
            slots = sorted(range(len(stored)), key=lambda i: (-stored[i], i))[: strategy.num_keys]
            assert chosen.bank_keys.index[c, : chosen.bank_keys.counts[c]].tolist() == slots
        negatives = chosen.negatives.index[c, : chosen.negatives.counts[c]]
        others = (labels != c) & (labels != strategy.ignore_index)
        assert len(negatives) == min(strategy.num_negatives, int(others.sum()))
        assert others[negatives].all()
        if others.sum() <= strategy.num_negatives:
            assert len(set(negatives.tolist())) == len(negatives)


def check_step(module, batch):
    """Compares one step of the module with the oracle. Returns value and gradient of the step."""
    chosen = draw_of(module, batch, module.training)
    check_choice(module, batch, chosen, module.training)
    expected, expected_gradient, per_class = oracle(module, batch, chosen)
    value, gradient = run(module, batch)
    dtype = batch["projections"].dtype
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype
    relative = TOLERANCE.get(dtype, 1e-2)  # half-precision gradients are rounded once at the end
    scale = max(
        1e-3, float(expected_gradient.abs().max())
    )  # where it is 0, the oracle has a rounding error
    assert abs(float(value) - float(expected)) <= relative * max(1.0, float(expected))
    assert float((gradient.double() - expected_gradient).abs().max()) <= relative * scale
    classes, zero = module.diagnostics()["class_loss"], torch.zeros(())
    for c in range(C):
        assert abs(float(classes[c] - per_class.get(c, zero).detach())) <= 1e-5 * max(
            1.0, float(expected)
        )
    return value, gradient
