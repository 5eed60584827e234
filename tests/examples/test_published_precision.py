"""Training in float16, and exact resuming with the published rules."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from semi_supervised.checkpoint import networks  # noqa: E402
from test_checkpoint import assert_equal, everything  # noqa: E402
from test_examples import PUBLISHED  # noqa: E402
from test_published_rules import EPOCHS, weights  # noqa: E402
from test_trainer_parts import make_trainer  # noqa: E402


def test_the_teacher_stays_in_float32_beside_a_student_in_float16():
    trainer = make_trainer(warm_up=0, precision="float16")
    dtypes = {}
    for name, module in networks(trainer).items():
        module.register_forward_hook(lambda _, x, out, name=name: dtypes.update({name: out.dtype}))
    losses = trainer.train_step()
    assert dtypes == {
        "teacher": torch.float32,
        "student": torch.float16,
        "projection": torch.float16,
    }
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_a_step_that_overflows_changes_no_weight_and_the_bank_takes_its_rows():
    usual, overflowing = (make_trainer(warm_up=0, precision="float16") for _ in range(2))
    overflowing.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    before = weights(overflowing.student)
    for trainer in (usual, overflowing):
        losses = trainer.train_step()
        assert all(loss.isfinite() for loss in losses.values())
    assert all(map(np.array_equal, before, weights(overflowing.student)))
    assert not all(map(np.array_equal, before, weights(usual.student)))
    assert not overflowing.optimizer.state
    assert overflowing.scaler.get_scale() == 2.0**23
    # The rows are equal: an overflow of gradients does not affect the features.
    assert_equal(usual.contrast.state_dict(), overflowing.contrast.state_dict())
    assert overflowing.contrast.bank.features.any()
    for _ in range(10):  # the scale falls until a step succeeds
        overflowing.step = 1
        overflowing.train_step()
    assert overflowing.scaler.get_scale() < 2.0**23
    assert not all(map(np.array_equal, before, weights(overflowing.student)))


def test_features_that_overflow_do_not_enter_the_bank():
    trainer = make_trainer(warm_up=0, precision="float16")

    def overflow(_, inputs):
        features = inputs[0].clone()
        features[:, :, :9] *= 1e8
        return (features,)

    trainer.student.classifier.register_forward_pre_hook(overflow, prepend=True)
    before = weights(trainer.student)
    trainer.train_step()
    assert all(map(np.array_equal, before, weights(trainer.student)))
    # After the projection's batch norm, no pixel is finite.
    assert not trainer.contrast.bank.counts.any()
    assert "labelled pixels had an inf or NaN" in trainer.contrast.report()


# ---- checkpoints ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published():
    """Runs a whole training with the published rules."""
    return run_published()


def run_published(until=None, path=None, resume=None):
    changes = {"optimizer": "sgd", "ema_maximum": 0.8, **EPOCHS, **PUBLISHED}
    trainer = make_trainer(**changes)
    if resume:
        torch.rand(1)  # another process has other random numbers
        trainer.load(resume)
    trainer.run(until=until, record_every=1)
    if path:
        trainer.save(path)
    return trainer


@pytest.mark.parametrize("until", [2, 5, 8], ids=["warm-up", "copy", "average"])
def test_a_run_under_the_published_rules_resumes_exactly(published, tmp_path, until):
    path = tmp_path / "checkpoint.pt"
    run_published(until, path)
    resumed = run_published(resume=path)
    assert_equal(everything(published), everything(resumed))
    assert published.scaler.state_dict() == resumed.scaler.state_dict()
    assert published.scaler.state_dict()["_growth_tracker"] > 0
    assert published.history[-1]["contrast"] > 0


def test_the_scale_is_resumed(tmp_path):
    first, second = (make_trainer(precision="float16") for _ in range(2))
    first.train_step()
    first.scaler.update(2.0**9)
    first.save(tmp_path / "checkpoint.pt")
    second.load(tmp_path / "checkpoint.pt")
    assert second.scaler.get_scale() == 2.0**9


def test_a_checkpoint_without_the_scale_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    trainer = make_trainer(precision="float16")
    trainer.save(path)
    for spoiled in (None, {}, {"scale": 1}):
        torch.save(torch.load(path) | {"scaler": spoiled}, tmp_path / "wrong.pt")
        with pytest.raises(ValueError, match=r"wrong\.pt must hold the state of a gradient scaler"):
            trainer.load(tmp_path / "wrong.pt")


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    trainer = make_trainer()
    trainer.save(path)
    state = torch.load(path)
    for name in ("contrast_view", "precision"):
        del state["run"][name]
    state["run"]["bfloat16"] = False
    del state["scaler"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"by an earlier version .*precision, contrast_view"):
        trainer.load(path)
