"""Methods: DGCL's step is unchanged from earlier versions, names and options are checked, each file is short."""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from semi_supervised import augment, methods  # noqa: E402
from semi_supervised import trainer as trainer_module  # noqa: E402
from semi_supervised.config import Config  # noqa: E402
from semi_supervised.methods.base import Method  # noqa: E402
from test_examples import CONTRAST, PUBLISHED, assert_same, make_trainer, state_of  # noqa: E402

from dgcl_ops import FeatureTap, entropy_filter, resize_labels  # noqa: E402
from dgcl_ops.schedules import classification_drop_fraction, contrast_drop_fraction  # noqa: E402

# Files that are no methods.
HELPERS = {"__init__", "base", "flaw_detector", "options", "perturbations", "pixels"}
HELPERS |= {"prototypes", "ramps", "representations"}
CONFIDENT = {**CONTRAST, "anchors": "low_confidence", "keys": "high_confidence"}


class Before(Method):
    """DGCL's step as it was before methods had files of their own. It draws, teaches and adds in the same order."""

    def __init__(self, trainer):
        self.trainer, self.method, self.networks = trainer, trainer.method, trainer.method.networks
        self.contrast, self.report = self.method.contrast, self.method.report
        self.optimizers = self.method.optimizers
        self.tap = FeatureTap(trainer.student, "classifier")

    def train(self, batch, rng):
        """The losses of a step after the warm-up."""
        trainer, method, settings = self.trainer, self.method, self.trainer.settings
        weak_view = settings.contrast_view == "weak"
        images, labels, weak, inside = batch
        with torch.no_grad(), trainer.autocast("bfloat16"):
            logits, small = trainer.teacher.two_sizes(torch.cat((images, weak)))
        filtered, progress = [], trainer.progress()
        for each, drop in (
            (logits, classification_drop_fraction),
            (small if weak_view else logits, contrast_drop_fraction),
        ):
            valid = resize_labels(inside, each.shape[-2:])
            options = {"ignore_index": 255, "valid_mask": valid}
            filtered.append(entropy_filter(each[len(images) :], 1 - drop(progress), **options))
        pseudo, reliable = filtered
        confidences = (small if weak_view else logits).softmax(1).amax(1).split(len(images))

        strong = augment.jitter(weak, rng, settings.jitter)
        rules = {"probability": settings.cutmix, "mode": settings.cutmix_mode}
        if weak_view:
            strong, pseudo = augment.cutmix(rng, strong, pseudo, **rules)
            parts, confidence = (weak, strong), confidences[1]
        else:
            maps = strong, pseudo, reliable, confidences[1]
            strong, pseudo, reliable, confidence = augment.cutmix(rng, *maps, **rules)
            parts = (strong,)
        images = torch.cat((augment.jitter(images, rng, settings.jitter), *parts))
        logits = trainer.model(images)
        supervised = trainer.supervised(logits[: len(labels)], labels)
        features = self.tap.pop()
        unlabelled = method.pseudo_label_loss(logits[-len(strong) :], pseudo)

        projections, size = method.head.project(features), features.shape[-2:]
        small = torch.cat([resize_labels(each, size) for each in (labels, reliable)])
        optional = ()
        if method.needs_confidence:
            halves = (confidences[0], confidence)
            optional = (torch.cat([F.interpolate(each[:, None], size)[:, 0] for each in halves]),)
        count = len(small)
        contrast = method.contrast(projections[:count], small, features[:count].detach(), *optional)
        total = supervised + settings.unlabelled_weight * unlabelled
        total = total + settings.contrast_weight * contrast
        parts = {"supervised": supervised, "unlabelled": unlabelled, "contrast": contrast}
        return {"total": total, **parts}

    def losses(self, views):
        return self.train(views.batch, views.rng)

    def warm_up_losses(self, images, labels):
        supervised = self.trainer.supervised(self.trainer.model(images), labels)
        self.tap.pop()
        return {"total": supervised, "supervised": supervised}


EARLIER = [
    {"contrast_view": "weak", "balance": 0.5},
    {"contrast_view": "strong", "cutmix": 1.0},
    {"contrast_view": "weak", "contrast": CONFIDENT, "precision": "bfloat16"},
    {"contrast_view": "strong", "contrast": CONFIDENT, "ohem": [0.7, 100]},
    {**PUBLISHED, "precision": "float32", "epoch_steps": 2},
    {"contrast_weight": 0.0},
]


@pytest.mark.parametrize("changes", EARLIER, ids=str)
def test_dgcl_has_the_bits_of_earlier_versions(monkeypatch, changes):
    changes = {"steps": 6, "warm_up": 2, **changes}
    before = make_trainer(**changes)
    before.method = Before(before)
    with monkeypatch.context() as patched:
        raw = lambda batch, rng, *_: SimpleNamespace(batch=batch, rng=rng)
        patched.setattr(trainer_module, "Views", raw)
        before.run(record_every=1)
    now = make_trainer(**changes)
    now.run(record_every=1)
    assert before.history == now.history
    assert now.history[-1]["contrast"] > 0
    before.method = before.method.method
    assert_same(state_of(before), state_of(now))
    if changes.get("contrast_weight") == 0:
        control = make_trainer(
            **{**changes, "contrast_weight": 0.5, "method": {"name": "self_training"}}
        )
        control.run(record_every=1)
        assert control.history == now.history
        assert_same(state_of(control), state_of(now))


def test_boxes_have_the_bits_of_earlier_versions():
    digest = hashlib.sha256()
    for mode in ("image", "batch"):
        rng = np.random.default_rng(7)
        for _ in range(20):
            pixels = torch.arange(3 * 24 * 32).view(3, 24, 32)
            [mixed] = augment.cutmix(rng, pixels, probability=0.5, mode=mode)
            digest.update(mixed.numpy().astype("<i8").tobytes())
        digest.update(rng.random(4).astype("<f8").tobytes())  # what the step draws next
    # of the function before boxes could be pasted later
    assert digest.hexdigest() == "f6a38d616a780f06682b1751c7fbff96c977faaf12ab3b5dd9e1d2e3a519300c"


def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path):
    whole, first, second = (make_trainer(steps=6) for _ in range(3))
    whole.run(record_every=1)
    first.run(until=4, record_every=1)
    first.save(tmp_path / "c.pt")
    state = torch.load(tmp_path / "c.pt")
    kept = "student teacher projection contrast optimizer scaler averages run network ranks step"
    assert state.keys() == {*kept.split(), "history"}
    assert state["run"].pop("method") == {"name": "dgcl"}  # earlier versions had no such key
    torch.save(state, tmp_path / "c.pt")
    second.load(tmp_path / "c.pt")
    second.run(record_every=1)
    assert second.history == whole.history
    assert_same(state_of(second), state_of(whole))
    with pytest.raises(ValueError, match=r"method must be .*'dgcl'.* as in the checkpoint .*, got"):
        make_trainer(steps=6, method={"name": "self_training"}).load(tmp_path / "c.pt")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.name=dgc"], r"method\.name must be one of .*dgcl.*, got 'dgc'"),
        (["method.name=[dgcl]"], r"method\.name must be one of .*, got \['dgcl'\]"),
        (["method=dgcl"], r"method must hold keys .*, got 'dgcl'; write method\.name=dgcl"),
        (["method={}"], r"method\.name must be one of .*, got None"),
        (["method.weight=1"], r"method\.name must be one of .*, got None"),
        (
            ["method.name=dgcl", "method.weight=1"],
            r"unknown key 'weight' of method dgcl; it has no",
        ),
        (
            ["method.name=self_training", "contrast_weight=1"],
            r"contrast_weight is a key of method dgcl, and method self_training does not use it",
        ),
        (
            ["method.name=ps_mt", "threshold=0.7"],
            r"threshold is an option of method ps_mt, not a key; write method\.threshold",
        ),
        (
            ["method.name=u2pl", "contrast_weight=1"],
            r"method u2pl does not use it; write method\.contrast_weight",
        ),
    ],
)
def test_wrong_methods_and_options_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        Config(EXAMPLES / "configs" / "scenes.yaml", overrides, unlabelled=6)


def test_each_method_is_a_short_file_with_its_formula_on_top():
    folder = EXAMPLES / "semi_supervised" / "methods"
    files = {path.stem: path.read_text() for path in folder.glob("*.py")}
    assert files.keys() - HELPERS == methods.METHODS.keys()
    for name, kind in methods.METHODS.items():
        assert kind.__module__.endswith(f".{name}")
        assert files[name].count("\n") < 150
        assert "\n    L = " in files[name].split('"""')[1]


# ---- budgets --------------------------------------------------------------------------------------


def test_a_budget_of_passes_sets_the_steps():
    path = EXAMPLES / "configs" / "scenes.yaml"

    def settings(*overrides):
        return Config(path, overrides, unlabelled=6).make_settings(6, 1)

    for number in (400, 1000, 1001):
        for overrides in ([], ["method.name=self_training", "contrast_view=strong"]):
            chosen = settings(f"budget.passes={number}", *overrides)
            assert chosen.warm_up == chosen.steps // 3
            assert methods.passes_of(chosen) <= number
            longer = replace(chosen, steps=chosen.steps + 1, warm_up=(chosen.steps + 1) // 3)
            assert methods.passes_of(longer) > number
    fixed = settings("budget.passes=330", "warm_up=0", "contrast_view=weak")
    assert (fixed.steps, fixed.warm_up) == (330 // 11, 0)  # 3 trained, 2 forward
    assert settings("budget.steps=12").steps == 12


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["budget=3"], r"budget must be of type .*, got 3"),
        (["budget.epochs=3"], r"budget must hold steps or passes, got \{'epochs': 3\}"),
        (["budget.passes=0"], r"budget\.passes must be an integer of at least 1, got 0"),
        (["budget.passes=1.5"], r"budget\.passes must be an integer of at least 1, got 1\.5"),
        (["budget.passes=2"], r"budget\.passes must be at least \d+, the cost of a step, got 2"),
        (
            ["budget.passes=99", "steps=3"],
            r"steps and budget exclude each other, got steps=3; steps=null",
        ),
        (["budget.steps=9", "epochs=3"], r"epochs and budget exclude each other, got epochs=3"),
        (["budget.steps=9", "warm_up=10"], r"warm_up must lie in \[0, 9\], got 10"),
    ],
)
def test_wrong_budgets_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        Config(EXAMPLES / "configs" / "scenes.yaml", overrides, unlabelled=6).make_settings(6, 1)
