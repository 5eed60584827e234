"""CCT's loss against loops in float64, its gradients, its options and its training."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from method_steps import batch_of  # noqa: E402
from semi_supervised import methods  # noqa: E402
from semi_supervised.methods.ramps import cosine_ramp, sigmoid_ramp  # noqa: E402
from semi_supervised.settings import Settings  # noqa: E402
from semi_supervised.views import Views  # noqa: E402
from test_examples import assert_same, state_of  # noqa: E402
from test_method_losses import LABELS, pixels, softmax  # noqa: E402
from test_method_losses import Step as GivenLogits  # noqa: E402
from test_method_runs import make_trainer  # noqa: E402

B, H, W = 2, 4, 5  # of test_method_losses
D, SMALL = 3, (2, 3)
VAT = {"heads": 1, "vat_heads": 1, "background": None}
OPTIONS = [{"weight": 2.0, "heads": 1}, {"heads": 2, "background": None}, {**VAT, "vat_heads": 2}]


class Fixed(nn.Module):
    """A network with given features. The logits of the images do not depend on them."""

    def __init__(self, maps, logits):
        super().__init__()
        self.maps, self.logits = maps, logits
        self.classifier = nn.Conv2d(D, logits.shape[1], kernel_size=1).double()

    def forward(self, images):
        self.classifier(self.maps)
        return self.logits


class Step:
    """One step on given features and logits, in place of a trainer."""

    def __init__(self, options, case="three", ignored=False, progress=0.03):
        classes, ignore, present = LABELS[case]
        rng = torch.Generator().manual_seed(2)
        draw = lambda *shape: torch.randn(shape, generator=rng, dtype=torch.float64)
        self.maps = draw(2 * B, D, *SMALL).requires_grad_()
        self.logits = draw(2 * B, classes, H, W).requires_grad_()
        batch = batch_of((H, W), present, ignore, ignored, rng)
        settings = Settings(method={"name": "cct", **options}, batch=B)
        self.views = Views(batch, np.random.default_rng(0), settings, (0, 0, 0))
        self.data = SimpleNamespace(num_classes=classes, ignore_index=ignore)
        self.student = Fixed(self.maps, self.logits)
        trainer = SimpleNamespace(
            settings=settings,
            data=self.data,
            device=torch.device("cpu"),
            student=self.student,
            synchronised=lambda network: network,
            progress=lambda: progress,
            classify=self.classify,
        )
        kind, self.options = methods.choose(settings.method)
        self.method = kind(trainer, self.options)
        self.method.decoders.double()

    def classify(self, images, labels):
        logits = self.student(images)
        return logits, GivenLogits.classify(
            SimpleNamespace(student=logits, data=self.data), images, labels
        )[1]

    def losses(self):
        torch.manual_seed(5)  # the random numbers of the perturbations
        return self.method.losses(self.views)


def enlarged(small, y, x):
    """Bilinear interpolation of [h, w, C] at pixel (y, x) of [H, W], written out."""
    corners = []
    for at, side, size in ((y, small.shape[0], H), (x, small.shape[1], W)):
        place = max((at + 0.5) * side / size - 0.5, 0)
        low = int(place)
        corners.append([(low, 1 - place + low), (min(low + 1, side - 1), place - low)])
    rows, columns = corners
    return sum(u * v * small[i, j] for i, u in rows for j, v in columns)


def expected(step, perturbed):
    """The formula, pixel by pixel."""
    o, classes = step.options, step.data.num_classes
    logits = step.logits.detach().numpy().transpose(0, 2, 3, 1)
    labels, inside = (x.numpy() for x in (step.views.batch.labels, step.views.batch.inside))
    found = [
        -np.log(softmax(logits[at])[labels[at]])
        for at in pixels()
        if labels[at] != step.data.ignore_index
    ]
    weights = step.method.decoders.weight.detach().numpy().reshape(-1, classes, D)
    biases = step.method.decoders.bias.detach().numpy().reshape(-1, classes)
    squares = []
    for k, maps in enumerate(perturbed):
        maps = maps.detach().numpy().transpose(0, 2, 3, 1)
        small = np.einsum("cd,bijd->bijc", weights[k], maps) + biases[k]
        for b, i, j in pixels():
            if inside[b, i, j]:
                p = softmax(logits[B:][b, i, j])
                squares.append(((softmax(enlarged(small[b], i, j)) - p) ** 2).mean())
    t = min(0.03 / o.ramp, 1)
    return np.mean(found) + o.weight * np.exp(-5 * (1 - t) ** 2) * np.mean(squares)


@pytest.mark.parametrize("case", LABELS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_loss_is_that_of_the_formula(options, case):
    step, seen = Step(options, case), []
    original = step.method.perturbed
    step.method.perturbed = lambda *given: seen.extend(original(*given)) or seen
    found = step.losses()["total"].item()
    background = options.get("background", 0)
    count = options["heads"] * (3 if background is None else 6) + options.get("vat_heads", 0)
    assert len(seen) == count
    assert all(not torch.equal(maps, step.maps[B:]) for maps in seen[: options["heads"] * 3])
    assert found == pytest.approx(expected(step, seen), rel=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)  # I-VAT's own gradient is not followed
def test_gradients_are_those_of_the_loss(options):
    step = Step(options)
    inputs = [step.maps, *step.method.decoders.parameters()]
    assert torch.autograd.gradcheck(lambda *given: step.losses()["total"], inputs)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_target_has_no_gradient(options):
    step = Step(options)
    losses = step.losses()
    [whole] = torch.autograd.grad(losses["total"], step.logits, retain_graph=True)
    [supervised] = torch.autograd.grad(losses["supervised"], step.logits, retain_graph=True)
    assert torch.equal(whole, supervised)
    [maps] = torch.autograd.grad(losses["unlabelled"], step.maps)
    assert not maps[:B].any()
    assert maps[B:].any()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_weight_zero_is_the_supervised_loss(options):
    losses = Step({**options, "weight": 0.0}).losses()
    assert losses["total"] == losses["supervised"] > 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_without_a_pixel_that_counts_the_loss_is_a_connected_zero(options):
    step = Step(options, ignored=True)
    losses = step.losses()
    assert all(loss == 0 for loss in losses.values())
    losses["total"].backward()
    for each in (step.maps, step.logits, *step.method.decoders.parameters()):
        assert each.grad is not None
        assert not each.grad.any()


def test_guided_perturbations_follow_the_prediction():
    step = Step({"heads": 1})
    classes = torch.tensor([[1, 1, 1], [1, 0, 1]]).expand(B, *SMALL)
    *_, objects_gone, context_gone, cut = step.method.perturbed(step.maps[B:], classes)
    maps, empty = step.maps[B:], (classes == 0)[:, None].expand_as(step.maps[B:])
    assert torch.equal(objects_gone, torch.where(empty, maps, 0.0))
    assert torch.equal(context_gone, torch.where(empty, 0.0, maps))
    assert (cut != maps).any(1).sum((1, 2)).tolist() == [1] * B  # one pixel of each image


def test_each_adversarial_decoder_has_its_own_direction():
    step = Step({**VAT, "vat_heads": 3, "eps": 0.1})
    maps = step.maps[B:].detach()
    *_, first, second, third = step.method.perturbed(maps, torch.zeros(B, *SMALL).long())

    def divergence(k, changed):
        """Of the decoder's probabilities, by its own weights."""
        weight, bias = (p.detach().chunk(6)[k] for p in step.method.decoders.parameters())
        p, q = (F.conv2d(x, weight, bias).log_softmax(1) for x in (maps, changed))
        return F.kl_div(q, p, log_target=True, reduction="sum").item()

    for k in range(3):
        found = [divergence(3 + k, changed) for changed in (first, second, third)]
        assert found[k] == max(found)
        assert len(set(found)) == 3


def test_ramps_rise_to_one():
    assert [sigmoid_ramp(p, 0.1) for p in (0.0, 0.05, 0.1, 1.0)] == pytest.approx(
        [0.006737947, 0.286504797, 1, 1], rel=1e-8
    )
    assert [cosine_ramp(p, 0.2) for p in (0.0, 0.1, 0.2, 1.0)] == pytest.approx([0, 0.5, 1, 1])
    assert sigmoid_ramp(0.0, 0.0) == cosine_ramp(0.0, 0.0) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ramp": 1.5}, r"cct: ramp must lie in \[0, 1\], got 1\.5"),
        ({"xi": 0.0}, r"cct: xi must be positive and finite, got 0\.0"),
        ({"heads": -1}, r"cct: heads must be finite and not negative, got -1"),
        ({"heads": 0}, r"cct: heads or vat_heads must be at least 1, got 0 and 0"),
        ({"vat_heads": -1}, r"cct: vat_heads must be finite and not negative, got -1"),
        ({"heads": 1.0}, r"cct: heads must be of type int, got 1\.0"),
        ({"background": "none"}, r"cct: background must be of type int \| None, got 'none'"),
        ({"background": -1}, r"cct: background must be finite and not negative, got -1"),
        ({"head": 2}, r"unknown key 'head' of method cct; similar keys: heads"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        methods.choose({"name": "cct", **options})


def test_the_background_must_be_a_class():
    with pytest.raises(ValueError, match=r"background must be one of 11 classes or null, got 11"):
        make_trainer({"name": "cct", "background": 11})


# ---- training -------------------------------------------------------------------------------------


def test_decoders_are_trained_and_change_nothing_else():
    alone, ours = make_trainer({"name": "fixmatch"}), make_trainer({"name": "cct"}, warm_up=1)
    assert_same(alone.student.state_dict(), ours.student.state_dict())
    decoders = ours.method.decoders
    before = decoders.weight.detach().clone()
    first, second = before.chunk(12)[:2]
    assert not torch.equal(first, second)  # decoders of one perturbation start differently
    ours.train_step()  # the warm-up
    assert torch.equal(before, decoders.weight)
    ours.train_step()
    assert (before != decoders.weight).unflatten(0, (12, 11)).flatten(1).any(1).all()
    assert all(p.grad.any() for p in decoders.parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_adversarial_decoders_train_and_resume(precision, tmp_path):
    rules = {"precision": precision, "steps": 4, "warm_up": 1}
    whole, first, second = (make_trainer({"name": "cct", **VAT}, **rules) for _ in range(3))
    whole.run(record_every=1)
    first.run(until=2, record_every=1)
    first.save(tmp_path / "c.pt")
    second.load(tmp_path / "c.pt")
    second.run(record_every=1)
    assert whole.history == second.history
    assert_same(state_of(whole), state_of(second))
    assert whole.history[-1]["unlabelled"] > 0
    assert all(p.grad.any() for p in whole.method.decoders.parameters())
