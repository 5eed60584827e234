"""A checkpoint is loaded completely, or not at all, with an error that names the file."""

import copy
import sys
from pathlib import Path

import pytest
import torch

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from semi_supervised import checkpoint  # noqa: E402
from test_trainer_parts import make_trainer  # noqa: E402


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trainer after its last step, and a checkpoint from its step 4."""
    path = tmp_path_factory.mktemp("trained") / "checkpoint.pt"
    trainer = make_trainer()
    trainer.run(until=4)
    trainer.save(path)
    trainer.run()
    return trainer, path


def assert_refused(trainer, path, message):
    before = copy.deepcopy(everything(trainer))
    with pytest.raises(ValueError, match=rf"(?s){path}.*{message}"):
        trainer.load(path)
    assert_equal(before, everything(trainer))


def everything(trainer):
    state = {name: part.state_dict() for name, part in checkpoint.parts(trainer).items()}
    state |= {name: each.state_dict() for name, each in checkpoint.optimizers(trainer).items()}
    return state | {"step": trainer.step, "history": trainer.history}


def assert_equal(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def no_tensor_of(part):
    def spoil(state):
        state[part].popitem()

    return spoil


def other_shape(state):
    state["projection"]["layers.3.bias"] = torch.zeros(1)


def other_moments(state):
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1)


def fewer_parameters(state):
    state["optimizer"]["param_groups"][1]["params"].pop()


def no_ring(state):
    state["contrast"]["bank.counts"][0] = -1


def fewer_ranks(state):
    state["ranks"] = 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.update(run=3), "it has no 'run'"),
        (lambda state: state.pop("optimizer"), "it has no 'optimizer'"),
        (lambda state: state["run"].update(unknown=1), "got None"),
        (lambda state: state.update(step=6), r"must hold a step in \[0, 5\], got 6"),
        (no_tensor_of("student"), r"must hold classifier\.bias of student as .*, got None"),
        (no_tensor_of("contrast"), r"must hold bank\.config of contrast as .*, got None"),
        (no_tensor_of("averages"), r"running_var of averages as .*, got None"),
        (other_shape, r"layers\.3\.bias of projection as .* \(32,\)\), got .* \(1,\)\)"),
        (other_moments, "state of an optimizer of the same parameters"),
        (fewer_parameters, "state of an optimizer of the same parameters"),
        (no_ring, "counts and heads do not describe rings of"),
        (fewer_ranks, r"of averages as .* \(2, \d+\)\), got .* \(1, \d+\)\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(trained, tmp_path, spoil, message):
    trainer, path, wrong = *trained, tmp_path / "wrong.pt"
    state = torch.load(path)
    spoil(state)
    torch.save(state, wrong)
    assert_refused(trainer, wrong, message)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_changes_nothing(trained, tmp_path, kept):
    trainer, path, wrong = *trained, tmp_path / "wrong.pt"
    whole = path.read_bytes()
    wrong.write_bytes(whole[: kept if kept in (0, 1, 100) else int(kept * len(whole))])
    assert_refused(trainer, wrong, "is not a checkpoint of this program, or is incomplete")


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, torch.zeros(2)], ids=type)
def test_a_foreign_file_changes_nothing(trained, tmp_path, content):
    torch.save(content, tmp_path / "wrong.pt")
    assert_refused(
        trained[0], tmp_path / "wrong.pt", "is not a checkpoint of this program: it has no"
    )


def test_a_checkpoint_is_taken_whole_by_a_trainer_with_a_past(trained):
    fresh, (used, path) = make_trainer(), trained
    for trainer in (fresh, used):
        trainer.load(path)
    assert fresh.step == 4
    assert_equal(everything(fresh), everything(used))


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("scale", torch.nan, "finite and positive, got nan"),
        ("scale", torch.inf, "finite and positive, got inf"),
        ("scale", 0.0, r"finite and positive, got 0\.0"),
        ("growth_factor", torch.nan, "finite and positive, got nan"),
        ("backoff_factor", -0.5, r"finite and positive, got -0\.5"),
        ("growth_interval", 0, "finite and positive, got 0"),
        ("_growth_tracker", -1, "finite and not negative, got -1"),
    ],
)
def test_a_gradient_scaler_that_cannot_train_changes_nothing(tmp_path, key, value, rule):
    trainer, path, wrong = make_trainer(precision="float16"), tmp_path / "c.pt", tmp_path / "w.pt"
    trainer.save(path)
    state = torch.load(path)
    state["scaler"][key] = value
    torch.save(state, wrong)
    assert_refused(trainer, wrong, rf"{key} of the gradient scaler must be {rule}")
    trainer.load(path)
