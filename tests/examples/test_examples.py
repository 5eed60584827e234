"""The trainer: the control run is fair, and its parts work."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("PIL.Image")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from semi_supervised import augment, checkpoint, evaluate, scenes  # noqa: E402
from semi_supervised.network import SegmentationNetwork  # noqa: E402
from semi_supervised.settings import CHOICES, SMALL, Settings, class_weights, optimizer  # noqa: E402
from semi_supervised.trainer import Trainer  # noqa: E402

PUBLISHED = {
    "contrast_view": "weak",
    "cutmix_mode": "batch",
    "ema_from": "warm_up",
    "teacher_averages": "own",
    "schedule_by": "epoch",
    "epoch_steps": 3,
    "precision": "float16",
}
VIEWS = pytest.mark.parametrize(
    "rules",
    [{"contrast_view": "weak"}, {"contrast_view": "strong"}, PUBLISHED],
    ids=["weak", "strong", "published"],
)
CONTRAST = {**SMALL, "bank_capacity": 64, "exclude_classes": (0,)}
SETTINGS = Settings(steps=9, warm_up=3, batch=2, contrast=CONTRAST)


class Recorded:
    """Data that records its batches."""

    def __init__(self, data):
        self.data, self.batches = data, []

    def __getattr__(self, name):
        return getattr(self.data, name)

    def labelled(self, count, rng):
        self.batches.append(self.data.labelled(count, rng))
        return self.batches[-1]

    def unlabelled(self, count, rng):
        self.batches.append(self.data.unlabelled(count, rng))
        return self.batches[-1]


def make_trainer(settings=SETTINGS, **changes):
    torch.manual_seed(0)
    data = Recorded(scenes.DigitScenes(4, 6, seed=0))
    network = SegmentationNetwork(11, widths=(8, 16), feature_dim=8)
    return Trainer(network, data, replace(settings, **changes))


def state_of(trainer):
    """Returns all tensors of a trainer by name."""
    parts = {name: part.state_dict() for name, part in checkpoint.parts(trainer).items()}
    parts |= {name: each.state_dict() for name, each in checkpoint.optimizers(trainer).items()}
    flat = {}

    def walk(prefix, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}", inner)
        elif isinstance(value, torch.Tensor):
            flat[prefix] = value

    walk("", parts)
    return flat


def assert_same(state, other):
    assert state.keys() == other.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, other[name]), name


@VIEWS
def test_control_and_method_differ_in_nothing_but_the_weight(rules):
    control, method = (make_trainer(contrast_weight=weight, **rules) for weight in (0.0, 0.5))
    for trainer in (control, method):
        trainer.run(record_every=1)
    for ours, theirs in zip(control.data.batches, method.data.batches, strict=True):
        assert all(map(torch.equal, ours, theirs))  # every batch of the whole run
    assert torch.equal(control.contrast.bank.rng_state, method.contrast.bank.rng_state)
    supervised = [[r["supervised"] for r in t.history] for t in (control, method)]
    first = next(i for i, r in enumerate(method.history) if r.get("contrast", 0) > 0)
    assert supervised[0][: first + 1] == supervised[1][: first + 1]
    assert supervised[0][first + 1 :] != supervised[1][first + 1 :]


@VIEWS
def test_weight_zero_is_training_without_the_loss(rules):
    control, without = (make_trainer(contrast_weight=0.0, **rules) for _ in range(2))
    # float(): a float16 sum overflows, and 0 times inf is NaN
    without.method.contrast = lambda projections, labels, features: projections.float().sum() * 0
    for _ in range(SETTINGS.steps):
        control.train_step(), without.train_step()
    assert_same(control.student.state_dict(), without.student.state_dict())
    assert_same(control.teacher.state_dict(), without.teacher.state_dict())


def test_resume_equals_uninterrupted(tmp_path):
    whole, first = make_trainer(), make_trainer()
    whole.run(record_every=1)
    first.run(until=6, record_every=1)
    first.save(tmp_path / "checkpoint.pt")
    second = make_trainer()
    second.load(tmp_path / "checkpoint.pt")
    second.run(record_every=1)
    assert_same(state_of(whole), state_of(second))
    assert any("bank.features" in name for name in state_of(second))
    assert whole.history == second.history
    with pytest.raises(
        ValueError, match=r"contrast_weight must be 0\.5 as in the checkpoint .*got 0\.0"
    ):
        make_trainer(contrast_weight=0.0).load(tmp_path / "checkpoint.pt")
    (tmp_path / "other.pt").write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"other\.pt is not a checkpoint"):
        make_trainer().load(tmp_path / "other.pt")


def test_supervised_loss_weighs_classes_and_survives_an_unlabelled_crop():
    trainer = make_trainer()
    logits, labels = torch.randn(2, 11, 4, 4), torch.randint(11, (2, 4, 4))
    labels[0, 0] = 255
    mean = torch.nn.functional.cross_entropy(logits, labels, ignore_index=255)
    torch.testing.assert_close(trainer.supervised(logits, labels), mean)
    trainer.class_weights = class_weights(np.array([100, 400, *[25] * 9]), 0.5)
    assert trainer.class_weights[:3].tolist() == [0.5, 0.25, 1.0]
    mean = torch.nn.functional.cross_entropy(
        logits, labels, trainer.class_weights, ignore_index=255
    )
    torch.testing.assert_close(trainer.supervised(logits, labels), mean)
    assert trainer.supervised(logits, torch.full_like(labels, 255)) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd", "head_factor": 10.0},
        {"teacher_mode": "eval"},
        {"contrast_view": "strong"},
        {"cutmix_mode": "batch"},
        {"ema_from": "warm_up", "epoch_steps": 2},
        {"schedule_by": "epoch", "epoch_steps": 3},
        {"precision": "bfloat16"},
        {"precision": "float16"},
        {"density_of": "projections"},
        {"contrast": {**CONTRAST, "anchors": "low_confidence", "keys": "high_confidence"}},
        {"contrast": {**CONTRAST, "paper": "voc", "start": "per_class", "min_rows": 16}},
    ],
    ids=str,
)
def test_settings_reach_the_step(changes):
    usual, changed = make_trainer(), make_trainer(**changes)
    for trainer in (usual, changed):
        trainer.run(record_every=1)
    assert changed.history[-1]["contrast"] > 0
    assert all(math.isfinite(value) for record in changed.history for value in record.values())
    assert changed.history != usual.history


def test_learning_rates_of_backbone_head_and_frozen_parameters():
    trainer = make_trainer()
    network = trainer.student
    network.backbone = network.down
    network.lateral.requires_grad_(False)
    settings = replace(SETTINGS, optimizer="sgd", head_factor=10.0, learning_rate=0.1)
    groups = optimizer(settings, network, trainer.method.head.module).param_groups
    assert [group["factor"] for group in groups] == [1.0, 10.0]
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in network.down.parameters()}
    optimized = {id(p) for group in groups for p in group["params"]}
    assert optimized.isdisjoint(id(p) for p in network.lateral.parameters())
    assert optimized >= {
        id(p) for p in (*trainer.method.head.module.parameters(), network.classifier.weight)
    }


def test_teacher_is_the_mean_of_the_students_so_far():
    trainer = make_trainer()
    weights = []
    for _ in range(4):
        trainer.train_step()
        weights.append(trainer.student.classifier.weight.detach().clone())
    mean = torch.stack(weights).mean(0)  # the decay ramps up and reaches 0.97 after 33 steps
    torch.testing.assert_close(trainer.teacher.module.classifier.weight, mean)


def test_settings_refuse_unknown_choices():
    for name in CHOICES:
        with pytest.raises(ValueError, match=rf"{name} must be one of .*, got 'frozen'"):
            Settings(**{name: "frozen"})


# ---- the parts ----------------------------------------------------------------------------------


def test_digits_are_divided():
    sizes = [len(scenes.split_digits(split)[1]) for split in scenes.SPLITS]
    assert sum(sizes) == 1797
    images, labels = scenes.draw_scenes(3, "test", seed=5)
    again, _ = scenes.draw_scenes(3, "test", seed=5)
    assert torch.equal(images, again)
    assert images.shape == (3, 3, 64, 64)
    assert 0 <= images.min() <= images.max() <= 1
    assert labels.unique().numel() > 3


def test_crop_keeps_image_and_label_together():
    label = torch.arange(30 * 40).view(30, 40)
    image = label.float().expand(3, -1, -1)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        crop, cut = augment.random_crop(image, label, (12, 16), rng, mirror=True)
        assert torch.equal(crop[0].long(), cut)
    big, cut = augment.random_crop(image, label, (60, 50), rng, scale=(0.5, 0.5))
    assert big.shape == (3, 60, 50)  # a window larger than the image is the whole image
    assert cut[0, 0] == 0
    assert cut[-1, -1] == 30 * 40 - 1


def test_cutmix_pastes_one_box_into_all_maps():
    labels = torch.arange(3).view(3, 1, 1).expand(3, 8, 10)
    images = labels[:, None].expand(3, 3, 8, 10).float()
    mixed, same = augment.cutmix(np.random.default_rng(0), images, labels, probability=1.0)
    assert torch.equal(mixed[:, 1].long(), same)
    for i in range(3):
        assert set(same[i].unique().tolist()) == {i, (i - 1) % 3}
    unchanged, _ = augment.cutmix(np.random.default_rng(0), images, labels, probability=0.0)
    assert torch.equal(unchanged, images)


def test_few_of_each_takes_at_most_so_many():
    labels = torch.tensor([2, 0, 255, 2, 2, 0, 2])
    chosen = evaluate.few_of_each(labels, 3, 2, np.random.default_rng(0))
    assert labels[chosen].tolist() == [0, 0, 2, 2]
    assert len(set(chosen.tolist())) == 4


def test_iou_leaves_out_classes_that_are_not_there():
    matrix = torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert evaluate.class_iou(matrix)[:2].tolist() == pytest.approx([75, 80])
    assert evaluate.mean_iou(matrix) == pytest.approx(77.5)


def test_density_map_is_zero_where_there_is_no_bank():
    images, _ = scenes.draw_scenes(2, "val", seed=0)
    empty = make_trainer()
    assert not evaluate.predict_with_density(empty.student, empty.contrast, images)[1].any()

    trainer = make_trainer(contrast={**CONTRAST, "exclude_classes": ()})
    trainer.run()
    predicted, density = evaluate.predict_with_density(trainer.student, trainer.contrast, images)
    assert density.shape == predicted.shape == (2, 64, 64)
    assert 0 < density.max() <= 1 + 1e-5
    # The network is always right by its own predictions, and always wrong by others.
    for labels, expected in ((predicted, 0.0), ((predicted + 1) % 11, 100.0)):
        batch = [(images, labels)]
        found = evaluate.error_by_density(trainer.student, trainer.contrast, batch, 255)
        assert found == [expected] * 5
