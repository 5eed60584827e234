"""GTA-Seg: the assistant's loss, what it passes on to the student, and the two optimizers."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from semi_supervised import methods  # noqa: E402
from semi_supervised.methods.gta_seg import most_confident  # noqa: E402
from test_examples import assert_same, state_of  # noqa: E402
from test_method_losses import LABELS, B, H, Step, W, pixels, softmax  # noqa: E402
from test_method_runs import make_trainer  # noqa: E402
from test_paper_trainer import TwoHeads  # noqa: E402

GTA = {"name": "gta_seg"}


class Phases(Step):
    """The losses of both phases on given logits. `student` and `second` are those of student and assistant.

    The teacher returns `labelling[0]` for the weak view, and `teacher` for labelled and strong images.
    """

    def __init__(self, options, **rules):
        super().__init__("gta_seg", options, **rules)
        self.trainer.teach = lambda images: (
            self.labelling[0] if torch.equal(images, self.views.batch.weak) else self.teacher
        )
        self.method.assistant_model = lambda images: self.second

    def totals(self):
        return [
            self.method.assistant_losses(self.views)["total"],
            self.method.losses(self.views)["total"],
        ]


def assistant_loss(step):
    """The formula, pixel by pixel."""
    logits, judged, weak = (
        x.detach().numpy().transpose(0, 2, 3, 1)
        for x in (step.second[B:], step.teacher[B:], step.labelling[0])
    )
    numbers = torch.arange(B * H * W).view(B, H, W)
    [shown] = step.views.strong.paste(numbers)
    sources = {at: np.unravel_index(int(shown[at]), (B, H, W)) for at in pixels()}
    inside = [at for at in pixels() if step.views.batch.inside[sources[at]]]
    confidence = {at: softmax(judged[at]).max() for at in inside}
    limit = np.percentile(list(confidence.values()), 100 * step.options.dropped)
    total = weights = 0
    for at in inside:
        if confidence[at] <= limit:
            weights += 1
            continue
        label = weak[sources[at]].argmax()
        weights += confidence[at] + 1
        total -= (confidence[at] + 1) * np.log(softmax(logits[at])[label])
    return step.options.weight * total / weights


OPTIONS = {"weight": 0.7, "dropped": 0.3}


@pytest.mark.parametrize("case", LABELS)
def test_the_losses_are_those_of_the_formula(case):
    step = Phases(OPTIONS, case=case)
    assistant, student = step.totals()
    assert assistant.item() == pytest.approx(assistant_loss(step), rel=1e-12)
    labels = step.views.batch.labels
    logits = step.student.detach().numpy().transpose(0, 2, 3, 1)
    found = [
        -np.log(softmax(logits[at])[labels[at]])
        for at in pixels()
        if labels[at] != step.data.ignore_index
    ]
    assert student.item() == pytest.approx(np.mean(found), rel=1e-12)


@pytest.mark.long
def test_gradients_are_those_of_the_losses():
    step = Phases(OPTIONS)
    assert torch.autograd.gradcheck(lambda logits: step.totals()[0], [step.second])
    assert torch.autograd.gradcheck(lambda logits: step.totals()[1], [step.student])
    step.totals()[0].backward()
    assert not step.second.grad[:B].any()  # the assistant learns no labels
    assert step.student.grad is None


def test_without_a_pixel_that_counts_the_losses_are_connected_zeros():
    step = Phases(OPTIONS, ignored=True)
    for total, logits in zip(step.totals(), (step.second, step.student), strict=True):
        assert total == 0
        total.backward()
        assert not logits.grad.any()


def test_weight_zero_is_the_supervised_loss():
    trainer = make_trainer({**GTA, "weight": 0.0})
    trainer.run(record_every=1)
    assert all(record["total"] == record["supervised"] for record in trainer.history)
    trainer = make_trainer(GTA)
    trainer.run(record_every=1)
    for record in trainer.history[2:]:
        both = torch.tensor(record["unlabelled"]) + torch.tensor(record["supervised"])
        assert record["total"] == pytest.approx(float(both))
        assert record["unlabelled"] > 0


@pytest.mark.parametrize("dropped", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 2, 11, 60])
def test_the_kept_pixels_are_those_above_the_percentile(size, dropped):
    values = torch.rand(1, 2, size)
    values[0, 0, : size // 2] = 0.5  # pixels that are equal are dropped together
    inside = torch.rand(1, 2, size) < 0.8
    kept = most_confident(values, inside, dropped)
    expected = inside.clone()
    if dropped > 0 and inside.any():
        limit = np.percentile(values[inside].numpy(), 100 * dropped)
        expected &= values > torch.tensor(limit, dtype=torch.float32)
    assert torch.equal(kept, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropped": 1.5}, r"gta_seg: dropped must lie in \[0, 1\], got 1\.5"),
        ({"extractor_ema_maximum": 2}, r"gta_seg: extractor_ema_maximum must lie in \[0, 1\], got"),
        ({"weight": -1}, r"gta_seg: weight must be finite and not negative, got -1"),
        ({"program": 1}, r"gta_seg: program must be of type bool, got 1"),
        ({"kept": 0.8}, r"unknown key 'kept' of method gta_seg; similar keys: "),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        methods.choose({**GTA, **options})


# ---- what the assistant passes on -----------------------------------------------------------------


def test_the_extractor_moves_and_the_heads_do_not():
    trainer = make_trainer({**GTA, "extractor_ema_maximum": 0.7}, build=lambda: TwoHeads(11))
    student, assistant = trainer.student, trainer.method.assistant
    assert assistant.auxiliary is None
    with torch.no_grad():
        for weight in assistant.parameters():
            weight.normal_()
    before = {name: weight.clone() for name, weight in student.named_parameters()}
    averages = {name: buffer.clone() for name, buffer in student.named_buffers()}
    for step, decay in ((2, 0.0), (4, 1 - 1 / 3), (99, 0.7)):  # the warm-up has 2 steps
        trainer.step = step
        trainer.method.move_extractor()
        for name, weight in student.named_parameters():
            if not name.startswith(("classifier", "auxiliary")):
                new = assistant.get_parameter(name)
                assert new.data_ptr() != weight.data_ptr()
                before[name] = decay * before[name] + (1 - decay) * new.detach()
            torch.testing.assert_close(weight.detach(), before[name])
    assert_same(averages, dict(student.named_buffers()))


def test_the_assistant_starts_as_the_student_of_the_warm_up():
    trainer = make_trainer(GTA)
    before, assistant = trainer.student.state_dict(), trainer.method.assistant
    assert_same(before, assistant.state_dict())
    trainer.run(until=2)
    assert not torch.equal(assistant.classifier.weight, trainer.student.classifier.weight)
    assert not trainer.method.optimizers["assistant"].state
    seen = []
    assistant.register_forward_pre_hook(
        lambda *_: seen.append({name: x.clone() for name, x in assistant.state_dict().items()})
    )
    at_the_end = {name: each.clone() for name, each in trainer.student.state_dict().items()}
    trainer.run(until=4)
    assert_same(seen[0], at_the_end)
    assert not torch.equal(seen[1]["classifier.weight"], at_the_end["classifier.weight"])


def test_the_student_learns_from_the_features_of_the_trained_assistant():
    trainer = make_trainer(GTA, warm_up=0)  # the first move copies the extractor
    student, assistant, seen = trainer.student, trainer.method.assistant, []
    before = {name: weight.clone() for name, weight in assistant.named_parameters()}
    student.register_forward_pre_hook(
        lambda *_: seen.append({name: x.clone() for name, x in student.named_parameters()})
    )
    trainer.train_step()
    [learning] = seen
    for name, new in assistant.named_parameters():
        assert not torch.equal(new, before[name])
        kept = name.startswith("classifier")
        assert torch.equal(learning[name], before[name] if kept else new), name


@pytest.mark.parametrize("program", [False, True])
def test_the_classifiers_are_one_only_as_in_the_program(program):
    trainer = make_trainer({**GTA, "program": program})
    trainer.run()
    ours, theirs = trainer.student.classifier.weight, trainer.method.assistant.classifier.weight
    assert torch.equal(ours, theirs) == program
    assert ours.data_ptr() != theirs.data_ptr()


# ---- two optimizers -------------------------------------------------------------------------------


def test_each_optimizer_has_its_network_and_the_same_rate():
    trainer = make_trainer(GTA, learning_rate=0.5, head_factor=10.0)
    trainer.run(until=3)
    pairs = (
        (trainer.optimizer, trainer.student),
        (
            trainer.method.optimizers["assistant"],
            trainer.method.assistant,
        ),
    )
    for each, network in pairs:
        trained = {id(p) for group in each.param_groups for p in group["params"]}
        assert trained == {id(p) for p in network.parameters()}
    first, second = ([group["lr"] for group in each.param_groups] for each, _ in pairs)
    assert first == second == pytest.approx([0.5 * 0.6**0.9, 5 * 0.6**0.9])


def test_a_phase_that_overflows_skips_its_own_optimizer_only():
    trainer = make_trainer({**GTA, "weight": 1e36}, precision="float16", warm_up=0)
    student = trainer.student.classifier.weight.detach().clone()
    assistant = trainer.method.assistant.classifier.weight.detach().clone()
    scale = trainer.scaler.get_scale()
    trainer.train_step()
    assert trainer.scaler.get_scale() == scale / 2
    assert torch.equal(trainer.method.assistant.classifier.weight, assistant)
    assert not trainer.method.optimizers["assistant"].state
    assert not torch.equal(trainer.student.classifier.weight, student)


def test_gradients_reach_every_weight_of_the_assistant_under_autocast():
    trainer = make_trainer(GTA, warm_up=0, precision="bfloat16")
    trainer.train_step()
    for name, weight in trainer.method.assistant.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name


def test_a_checkpoint_holds_the_assistant_and_its_optimizer(tmp_path):
    trainer = make_trainer(GTA)
    trainer.run(until=3)
    trainer.save(tmp_path / "c.pt")
    state = torch.load(tmp_path / "c.pt")
    assert state["assistant_optimizer"]["state"][0]["step"] == 1
    other = make_trainer(GTA)
    before = state_of(other)
    for spoil, message in (
        (lambda: state["assistant_optimizer"]["param_groups"].pop(), "'assistant_optimizer' the"),
        (lambda: state.pop("assistant_optimizer"), "it has no 'assistant_optimizer'"),
    ):
        spoil()
        torch.save(state, tmp_path / "wrong.pt")
        with pytest.raises(ValueError, match=message):
            other.load(tmp_path / "wrong.pt")
    assert_same(before, state_of(other))
