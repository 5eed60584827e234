"""GCT: the losses of both phases, and who learns in which."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from semi_supervised import methods  # noqa: E402
from test_examples import assert_same  # noqa: E402
from test_flaw_detector import B, C, H, W, clean_by_loops, drawn, target_by_loops  # noqa: E402
from test_method_losses import softmax  # noqa: E402
from test_method_runs import make_trainer  # noqa: E402

SMALL = {"name": "gct", "detector_width": 4}


# ---- the losses -----------------------------------------------------------------------------------


class Case:
    """Logits and flaws of one step, in place of the networks and the detector.

    Attributes:
        logits: of both networks, [2, 2B, C, H, W].
        flaws: of both networks, [2, 2B, 1, H, W].
        labels: [B, H, W].
        inside: [B, H, W].
    """

    def __init__(self, classes=C, ignore=255, present=C, ignored=False, **options):
        self.logits = drawn(2, 2 * B, classes, H, W).requires_grad_()
        flaws = F.interpolate(drawn(4 * B, 1, 5, 6, seed=1), (H, W), mode="bilinear")
        self.flaws = flaws.unflatten(0, (2, 2 * B)).requires_grad_()
        rng = torch.Generator().manual_seed(2)
        self.labels = torch.randint(present, (B, H, W), generator=rng)
        self.labels[0, :5] = ignore
        self.inside = torch.ones(B, H, W, dtype=torch.bool)
        self.inside[1, :, :7] = False
        if ignored:
            self.labels[:], self.inside[:] = ignore, False
        self.ignore, self.counted = ignore, torch.cat((self.labels != ignore, self.inside))
        self.method = make_trainer({**SMALL, **options}).method
        self.method.trainer.data = SimpleNamespace(ignore_index=ignore)
        self.method.trainer.step = 3  # of 5, after 2 steps of warm-up: a third of the way

    def losses(self):
        probabilities = self.logits.softmax(2).flatten(0, 1)
        supervised = sum(self.method.trainer.supervised(x[:B], self.labels) for x in self.logits)
        return self.method.losses_of(
            supervised, probabilities, self.flaws.flatten(0, 1), self.counted
        )

    def detector(self):
        self.method.detector_model = lambda images, probabilities: self.flaws.flatten(0, 1)
        probabilities = self.logits.softmax(2).flatten(0, 1)
        return self.method.detector_phase(torch.zeros(1), probabilities, self.labels).losses


def choices(case):
    """Returns where both networks are bad, and where the other one is better, [2, 2B, H, W] each."""
    found = np.array([[clean_by_loops(x.detach().numpy()[0]) for x in each] for each in case.flaws])
    raised = np.where(found > 0.6, 1, found)
    both_bad = np.broadcast_to((found > 0.6).all(0), found.shape)
    return torch.tensor(both_bad.copy()), torch.tensor(raised[::-1] < raised)


def loops(case):
    """Correction, consistency and the detector's loss, pixel by pixel."""
    flaws = case.flaws.detach().numpy()[:, :, 0]
    logits = case.logits.detach().numpy().transpose(0, 1, 3, 4, 2)
    both_bad, better = choices(case)
    correction = consistency = detector = 0
    for k, n, *at in np.ndindex(2, 2 * B, H, W):
        at = tuple(at)
        if case.counted[n][at]:
            p, q = (softmax(logits[each, n][at]) for each in (k, 1 - k))
            consistency += better[k, n][at].item() * ((p - q) ** 2).mean()
            correction += both_bad[k, n][at].item() * flaws[k, n][at] ** 2
    labels, counted = case.labels.numpy(), case.counted.numpy()
    for k, n in np.ndindex(2, B):
        target = target_by_loops(logits[k, n], labels[n] * counted[n], counted[n])
        detector += ((flaws[k, n] - target) ** 2 * counted[n]).sum()
    assert both_bad.any()
    assert better[0].any()
    assert better[1].any()
    number = case.counted.sum().item()
    return correction / number, consistency / number, 10 * detector / (2 * counted[:B].sum())


CASES = {
    "three": {},
    "two": {"classes": 2, "present": 2},
    "minus one": {"ignore": -1},
    "absent": {"present": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_the_losses_are_those_of_the_formula(case):
    case = Case(**CASES[case], correction_weight=0.7, consistency_weight=3.0, ramp=0.5)
    correction, consistency, detector = loops(case)
    losses = case.losses()
    assert losses["correction"].item() == pytest.approx(correction, rel=1e-9)
    assert losses["consistency"].item() == pytest.approx(consistency, rel=1e-9)
    assert case.detector()["total"].item() == pytest.approx(detector, rel=1e-9)
    weight = 3 * np.exp(-5 * (1 - (1 / 3) / 0.5) ** 2)
    expected = losses["supervised"].item() + 0.7 * correction + weight * consistency
    assert losses["total"].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.long
def test_gradients_are_those_of_the_losses():
    """Along a random line. Targets and choices have no gradient."""
    case = Case(correction_weight=0.7, consistency_weight=3.0, ramp=0.0)
    both_bad, better = choices(case)
    targets = case.logits.detach().softmax(2).flip(0)
    counted = case.counted.expand(2, -1, -1, -1)

    def total(logits, flaws):
        supervised = sum(
            F.cross_entropy(x[:B], case.labels, ignore_index=case.ignore) for x in logits
        )
        correction = (flaws[:, :, 0] ** 2 * (both_bad & counted)).sum() * 2 / counted.sum()
        differences = ((logits.softmax(2) - targets) ** 2).mean(2)
        return (
            supervised
            + 0.7 * correction
            + 6 * (differences * (better & counted)).sum() / counted.sum()
        )

    inputs = case.logits, case.flaws
    found = case.losses()["total"]
    assert found.item() == pytest.approx(total(*inputs).item(), rel=1e-9)
    gradients = torch.autograd.grad(found, inputs)
    for k, gradient in enumerate(gradients):
        step = drawn(*gradient.shape, seed=5) * 1e-5
        ends = []
        for sign in (1, -1):
            moved = [each.detach() for each in inputs]
            moved[k] = moved[k] + sign * step
            ends.append(total(*moved).item())
        assert (gradient * step).sum().item() == pytest.approx((ends[0] - ends[1]) / 2, rel=1e-6)
    detector = case.detector()["total"]
    assert torch.autograd.grad(detector, case.logits, allow_unused=True) == (None,)


def test_without_a_pixel_that_counts_the_losses_are_connected_zeros():
    case = Case(ignored=True)
    for losses in (case.losses(), case.detector()):
        assert all(loss == 0 for loss in losses.values())
        losses["total"].backward()
        assert not case.flaws.grad.any()
    assert not case.logits.grad.any()


def test_weights_of_zero_are_the_supervised_loss():
    losses = Case(correction_weight=0.0, consistency_weight=0.0).losses()
    assert losses["total"] == losses["supervised"] > 0
    assert losses["consistency"] > 0


def test_equal_networks_learn_nothing_from_each_other():
    case = Case()
    with torch.no_grad():
        case.flaws[1] = case.flaws[0]
    assert case.losses()["consistency"] == 0


@pytest.mark.parametrize(
    ("ramp", "step", "expected"),
    [(0.0, 2, 1.0), (0.5, 2, np.exp(-5)), (1.0, 4, np.exp(-5 / 9)), (0.5, 4, 1.0)],
)
def test_the_consistency_grows_after_the_warm_up(ramp, step, expected):
    trainer = make_trainer({**SMALL, "ramp": ramp})
    trainer.step = step  # of 5, after 2 steps of warm-up
    assert trainer.method.ramp() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ramp": 1.5}, r"gct: ramp must lie in \[0, 1\], got 1\.5"),
        ({"threshold": -0.1}, r"gct: threshold must lie in \[0, 1\], got -0\.1"),
        ({"detector_width": 1}, r"gct: detector_width must be at least 2, got 1"),
        ({"detector_width": 4.5}, r"gct: detector_width must be of type int, got 4\.5"),
        ({"detector_learning_rate": -1}, r"gct: detector_learning_rate must be finite and not neg"),
        ({"weight": 1}, r"unknown key 'weight' of method gct; similar keys: "),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        methods.choose({"name": "gct", **options})


# ---- who learns in which phase --------------------------------------------------------------------


def test_the_networks_learn_through_a_detector_that_does_not():
    """The consistency is off, and all pixels are flawed in both networks. So only the correction acts."""
    trainer = make_trainer({**SMALL, "consistency_weight": 0.0, "threshold": 0.0}, warm_up=0)
    method, images = trainer.method, torch.rand(2, 3, 64, 64)
    logits, _ = method.classify(images, torch.full((2, 64, 64), 255))
    probabilities = torch.cat(logits).softmax(1)
    flaws = method.detect(images, probabilities)
    method.losses_of(flaws.sum() * 0, probabilities, flaws + 1, torch.ones(2, 64, 64).bool())[
        "total"
    ].backward()
    for network in (trainer.student, method.second):
        assert all(weight.grad.any() for weight in network.parameters())
    assert all(weight.grad is None for weight in method.detector.parameters())
    phase = method.detector_phase(images, probabilities, torch.zeros(2, 64, 64, dtype=torch.int64))
    for network in (trainer.student, method.second):
        network.zero_grad()
    phase.losses["total"].backward()
    assert all(weight.grad.any() for weight in method.detector.parameters())
    assert all(weight.grad is None for weight in trainer.student.parameters())


@pytest.mark.parametrize("warm_up", [0, 5])
def test_every_step_trains_the_detector_at_its_own_rate(warm_up):
    trainer = make_trainer({**SMALL, "detector_learning_rate": 0.01}, warm_up=warm_up)
    detector, own = trainer.method.detector, trainer.method.optimizers["detector"]
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert trained == {
        id(p) for each in (trainer.student, trainer.method.second) for p in each.parameters()
    }
    for step in range(3):
        before = {name: weight.clone() for name, weight in detector.named_parameters()}
        trainer.train_step()
        [group] = own.param_groups
        assert group["lr"] == pytest.approx(0.01 * (1 - step / 5) ** 0.9)
        assert group["betas"] == (0.9, 0.99)
        for name, weight in detector.named_parameters():
            assert weight.grad is not None, name
            assert not torch.equal(weight, before[name]), name


def test_the_detector_changes_no_initial_weights():
    drawn_before = make_trainer({"name": "cps", "cutmix": False})
    trainer = make_trainer(SMALL)
    assert_same(drawn_before.student.state_dict(), trainer.student.state_dict())
    assert_same(drawn_before.method.second.state_dict(), trainer.method.second.state_dict())
