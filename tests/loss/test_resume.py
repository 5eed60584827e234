"""A checkpoint continues bit for bit: loss, gradient and every buffer."""

import pytest
import torch
from loss_oracle import STRATEGIES, assert_same_state, batch_of, loss_of, run, snapshot

STEPS = 3
SETTINGS = [{"anchors": anchors, "keys": keys} for anchors, keys in STRATEGIES] + [
    {"refresh_every": 2},
    {"start": "all_full", "backfill": False},
    {"bank_dtype": torch.bfloat16},
    {"metric": "l2"},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_resume(setting, tmp_path):
    batches = [batch_of(seed=seed, counts=(15, 9, 8, 3, 1)) for seed in range(2 * STEPS)]
    straight = loss_of(**setting)
    expected = [run(straight, batch) for batch in batches]

    first = loss_of(**setting)
    for batch in batches[:STEPS]:
        run(first, batch)
    torch.save(first.state_dict(), tmp_path / "checkpoint.pt")
    second = loss_of(**{**setting, "seed": 12345})  # the checkpoint's seed takes its place
    second.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    for batch, (value, gradient) in zip(batches[STEPS:], expected[STEPS:], strict=True):
        again, again_gradient = run(second, batch)
        assert torch.equal(again, value)
        assert torch.equal(again_gradient, gradient)
    assert_same_state(second, snapshot(straight))
    if setting.get("start") != "all_full":
        assert value > 0


def test_the_state_dict_names_what_is_needed():
    names = set(loss_of().state_dict())
    bank = {"features", "projections", "density", "counts", "heads", "num_pushes", "rng_state"}
    bank |= {"config"}
    assert names == {f"bank.{name}" for name in bank}


def test_without_the_state_the_run_differs():
    # Otherwise the test above could pass with nothing to restore.
    batches = [batch_of(seed=seed) for seed in range(4)]
    straight, fresh = loss_of(), loss_of()
    values = [run(straight, batch)[0] for batch in batches]
    assert run(fresh, batches[-1])[0] != values[-1]
    reseeded = loss_of(seed=2)
    assert [run(reseeded, batch)[0] for batch in batches] != values


def test_assigning_a_state_dict_resumes_too():
    module, other = loss_of(), loss_of(seed=7)
    for seed in range(3):
        run(module, batch_of(seed=seed))
    other.load_state_dict(snapshot(module), assign=True)
    assert torch.equal(run(other, batch_of(seed=9))[0], run(module, batch_of(seed=9))[0])
    assert_same_state(other, snapshot(module))
