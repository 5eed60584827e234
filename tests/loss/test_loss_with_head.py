"""A ProjectionHead in place of the projections: the step calls it on the chosen rows."""

import copy

import pytest
import torch
from loss_oracle import (
    B,
    C,
    D,
    E,
    H,
    W,
    assert_same_state,
    draw_of,
    filled,
    flat_rows,
    loss_of,
    oracle,
    snapshot,
)
from processes import on_ranks
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from with_head import FULL, SETTINGS, head_of, run, without_projections

from dgcl_ops import ProjectionHead
from dgcl_ops._step.sampling import unused_entries


def flat(batch: dict) -> dict:
    return {n: flat_rows(t) if n == "features" else t.flatten() for n, t in batch.items()}


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_without_batch_statistics_rows_equal_maps(setting):
    """In eval mode a projection depends on its own pixel only. So loss, gradients and bank are those of full maps."""
    module = filled(loss_of(**setting))
    other = copy.deepcopy(module)
    head = head_of().eval()
    for seed in range(3):
        batch = without_projections(seed)
        batch["features"][0, 1, 2, 3] = torch.nan
        value, *gradients = run(module, head, batch)
        features = batch["features"].nan_to_num().requires_grad_()
        expected = other(head(features), **batch)
        wanted = torch.autograd.grad(expected, [features, *head.parameters()])
        torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(gradients, list(wanted), rtol=1e-10, atol=1e-14)
        for name, part in other.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], part, msg=name)
        for name, part in other.diagnostics().items():
            torch.testing.assert_close(module.diagnostics()[name], part, msg=name)


@pytest.mark.parametrize("as_rows", [False, True])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_batch_norm_over_the_chosen_rows(setting, as_rows):
    """Against an oracle: PyTorch's network on the used entries of the tables, then the loss as loops."""
    module, head = loss_of(**setting), head_of()
    losses = 0
    for seed in range(4):
        batch = without_projections(seed, counts=FULL if seed < 3 else (24, 12, 9, 1, 0))
        if as_rows:
            batch = flat(batch)
        reference, norm = copy.deepcopy(head), head.layers[1]
        pixels = B * H * W
        empty = batch["features"].new_zeros(pixels, E) if as_rows else torch.zeros(B, E, H, W)
        chosen = draw_of(module, {**batch, "projections": empty.to(torch.float64)})
        reached = chosen.negatives._replace(counts=chosen.negatives.counts * chosen.active)
        tables = [chosen.anchors, chosen.keys, reached, chosen.push.pixels]
        used = torch.cat([table.index[~unused_entries(table)] for table in tables])
        features = flat_rows(batch["features"]).clone().requires_grad_()
        rows = reference(features[used])  # unmasked: nn.BatchNorm2d itself
        anchors = int(chosen.anchors.counts.sum())
        projections = rows.detach().new_zeros(pixels, E).index_put((used,), rows.detach())
        inputs = {**flat(batch), "projections": projections}
        expected, gradient, _ = oracle(module, inputs, chosen)
        wanted = [torch.zeros_like(p) for p in (features, *reference.parameters())]
        if anchors:
            wanted = torch.autograd.grad(
                rows[:anchors], [features, *reference.parameters()], gradient[used[:anchors]]
            )
        value, features_gradient, *gradients = run(module, head, batch)
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
        got = (flat_rows(features_gradient), *gradients)
        for mine, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-12)
        for name, part in reference.layers[1].named_buffers():
            torch.testing.assert_close(norm.get_buffer(name), part, msg=name)
        assert norm.num_batches_tracked == seed + 1
        losses += bool(value > 0)
    assert losses >= 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("pixels", ["ignored", "none"])
def test_no_pixel_gives_a_connected_zero(pixels, training):
    module, head = filled(loss_of()).train(training), head_of()
    batch = without_projections(counts=(0, 0, 0, 0, 0))
    if pixels == "none":
        batch = {name: part[:0] for name, part in batch.items()}
    before, statistics = snapshot(module), snapshot(head)
    value, *gradients = run(module, head, batch)
    assert value == 0
    assert value.dtype == torch.float64
    assert not any(each.any() for each in gradients)
    assert_same_state(head, statistics)
    moving = ("bank.rng_state", "bank.num_pushes") if pixels == "ignored" and training else ()
    assert_same_state(module, before, but=moving)


def test_a_projection_that_is_not_finite_stays_out_of_the_bank():
    """It reaches the loss. Its class pushes nothing. The other classes do."""
    module, head = filled(loss_of()), head_of()
    batch = without_projections(counts=FULL)
    chosen = draw_of(module, {**batch, "projections": torch.zeros(B, E, H, W).double()})
    spoilt = chosen.push.pixels.index[2, 0]
    row = flat_rows(batch["features"])[spoilt]

    def overflow(layer, args, projections):
        hit = ((seen[0] - row).abs().sum(1) == 0)[None, None, :, None]
        return projections.masked_fill(hit, torch.inf)

    seen = []
    head.register_forward_pre_hook(lambda module, args: seen.insert(0, args[0]))
    head.layers[3].register_forward_hook(overflow)
    before = snapshot(module)
    value = module(head, **batch)
    assert not value.isfinite()
    bank = module.bank
    kept = torch.arange(C) == 2
    for name in ("features", "projections", "density"):
        part, old = getattr(bank, name), before[f"bank.{name}"]
        assert part.isfinite().all()
        assert torch.equal(part[kept], old[kept])
        assert all(not torch.equal(part[c], old[c]) for c in range(C) if c != 2)
    state = module.diagnostics()
    assert state["non_finite_pixels"] == 1
    assert state["pixels"].tolist() == [14, 14, 13, 14, 14]
    assert "1 skipped (inf or NaN)" in module.report()


def test_autocast_reaches_the_head_and_not_the_loss():
    module, head = filled(loss_of()), head_of(torch.float32)
    dtypes = []
    head.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        value = module(head, **without_projections(dtype=torch.float32, counts=FULL))
    value.backward()
    assert dtypes == [torch.bfloat16]
    assert value.dtype == torch.float32
    assert head.layers[0].weight.grad.abs().sum() > 0


# ---- wrapped heads, and several ranks ---------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda head: torch.compile(head, fullgraph=True, backend="aot_eager"),
        torch.optim.swa_utils.AveragedModel,
    ],
    ids=["compiled", "averaged"],
)
def test_wrapped_heads(wrap):
    module, head = filled(loss_of()), head_of()
    batch = without_projections(counts=FULL)
    expected = copy.deepcopy(module)(copy.deepcopy(head), **batch)
    assert expected > 0
    torch.testing.assert_close(module(wrap(head), **batch), expected)


def train_rank(rank, folder, placement):
    """Three steps with a head in DDP. Rank 1 has no pixel in the second, and no label in the third."""
    module = filled(loss_of(placement=placement))
    head = DistributedDataParallel(head_of())
    gradients, own = [], []
    for seed in range(3):
        batch = without_projections(seed + 10 * rank, counts=FULL)
        if rank and seed == 1:
            batch = {name: part[:0] for name, part in batch.items()}
        if rank and seed == 2:
            batch["labels"].fill_(255)
        alone = copy.deepcopy(head.module)
        copy.deepcopy(module)(alone, **batch).backward()
        own.append([p.grad for p in alone.parameters()])
        value = module(head, **batch)
        value.backward()
        gradients.append([p.grad.clone() for p in head.parameters()])
        head.zero_grad()
    module.bank.assert_synced()
    return {"gradients": gradients, "own": own, "value": float(value)}


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("placement", ["replicated", "sharded", "local"])
def test_a_head_in_ddp(placement, tmp_path):
    first, second = on_ranks(2, tmp_path, train_rank, placement)
    assert first["gradients"][0][0].any()
    for step in range(3):
        mean = [(a + b) / 2 for a, b in zip(first["own"][step], second["own"][step], strict=True)]
        torch.testing.assert_close(first["gradients"][step], mean)
        torch.testing.assert_close(second["gradients"][step], mean, rtol=1e-12, atol=0)
    assert first["value"] > 0
    assert second["value"] == 0


# ---- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "head", "changes", "error", "text"),
    [
        (
            {"keys": "average"},
            ProjectionHead(D, 8, E),
            {},
            ValueError,
            r"keys='average' is not supported with a ProjectionHead as projections, .*head\(features\)",
        ),
        ({}, nn.Linear(D, E), {}, TypeError, "a tensor or a ProjectionHead, got Linear"),
        ({}, None, {}, TypeError, "a tensor or a ProjectionHead, got NoneType"),
        ({}, nn.DataParallel(ProjectionHead(D, 8, E)), {}, TypeError, "got DataParallel"),
        ({}, ProjectionHead(D, 8, E), {"features": None}, ValueError, "features is required with"),
        (
            {},
            ProjectionHead(D, 8, E + 1),
            {},
            ValueError,
            "from 6 to 4 channels, got one from 6 to 5",
        ),
        (
            {},
            ProjectionHead(D, 8, E).to("meta"),
            {},
            ValueError,
            "ProjectionHead must be on the bank's device cpu, got meta",
        ),
        (
            {},
            ProjectionHead(D, 8, E),
            {"labels": torch.zeros(B, H, W + 1).long()},
            ValueError,
            "labels must have",
        ),
    ],
)
def test_errors_change_nothing(setting, head, changes, error, text):
    module = loss_of(**setting)
    before = snapshot(module)
    with pytest.raises(error, match=f"DensityContrastLoss: .*{text}"):
        module(head, **{**without_projections(dtype=torch.float32), **changes})
    assert_same_state(module, before)


def test_a_push_takes_no_head():
    batch = without_projections(dtype=torch.float32)
    with pytest.raises(
        TypeError,
        match=r"MemoryBank.push: projections must be a tensor, got a ProjectionHead; pass head\(features\)",
    ):
        loss_of().bank.push(batch["features"], head_of(), batch["labels"])
