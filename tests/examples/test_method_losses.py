"""The losses of each method against loops in float64, their gradients, and their edge cases."""

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

from method_steps import batch_of, softmax  # noqa: E402
from semi_supervised import methods  # noqa: E402
from semi_supervised.settings import Settings  # noqa: E402
from semi_supervised.views import Views  # noqa: E402

B, H, W = 2, 4, 5
# Thresholds that about half of the pixels reach.
OPTIONS = [
    ("supervised", {}),
    ("fixmatch", {"weight": 0.7, "threshold": 0.6}),
    ("mean_teacher", {"weight": 3.0}),
    ("cutmix_seg", {"weight": 0.7, "threshold": 0.6}),
    ("unimatch", {"weight": 0.7, "threshold": 0.6}),
    ("cps", {"weight": 0.7}),
    ("cps", {"weight": 0.7, "cutmix": False}),
]
EACH = pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
# Classes, label of ignored pixels, and the classes that labels hold.
LABELS = {"three": (3, 255, 3), "two": (2, 255, 2), "minus one": (3, -1, 3), "absent": (3, 255, 2)}


class Fixed(nn.Module):
    """A network that returns the same logits for all images."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images, perturb=None):
        return self.logits


class Step:
    """One step of a method on given logits, in place of a trainer.

    Attributes:
        student, second: logits of all images that the networks train on.
        teacher: logits of labelled and weak images.
        labelling: logits of the passes without gradients, of the student and of the second network.
    """

    def __init__(self, name, options, case="three", ignored=False):
        classes, ignore, present = LABELS[case]
        rng = torch.Generator().manual_seed(1)
        draw = lambda n: torch.randn(n, classes, H, W, generator=rng, dtype=torch.float64)
        parts = {"supervised": 1, "unimatch": 5, "unimatch_v2": 4}.get(name, 2)
        self.student, self.second = (draw(parts * B).requires_grad_() for _ in range(2))
        self.teacher = draw(2 * B) * 2
        self.labelling = [draw(B), draw(B)]
        batch = batch_of((H, W), present, ignore, ignored, rng)
        self.settings = Settings(method={"name": name, **options}, batch=B, cutmix=1.0, seed=3)
        self.views = Views(batch, np.random.default_rng(0), self.settings, (3, 0, 0))
        self.data = SimpleNamespace(num_classes=classes, ignore_index=ignore)
        self.model = "first"
        self.trainer = SimpleNamespace(
            settings=self.settings,
            data=self.data,
            model=self.model,
            student=Fixed(self.labelling[0]),
            another_network=lambda number: Fixed(self.labelling[1]),
            synchronised=lambda network: "second",
            teach=lambda images: self.teacher[-len(images) :],
            classify=self.classify,
        )
        kind, chosen = methods.choose(self.settings.method)
        self.method = kind(self.trainer, chosen)
        self.options = chosen

    def classify(self, images, labels, model=None, **options):
        logits = self.second if model == "second" else self.student
        count = len(images) + (B if "perturb" in options else 0)
        assert len(logits) == count
        total = F.cross_entropy(
            logits[:B], labels, ignore_index=self.data.ignore_index, reduction="sum"
        )
        return logits, total / (labels != self.data.ignore_index).sum().clamp(min=1)

    def losses(self):
        return self.method.losses(self.views)


# ---- loops ----------------------------------------------------------------------------------------


def pixels():
    return [(b, i, j) for b in range(B) for i in range(H) for j in range(W)]


class Loops:
    """The formulas, pixel by pixel."""

    def __init__(self, step):
        self.step, self.views = step, step.views
        self.logits, self.other, self.judged = (
            x.detach().numpy().transpose(0, 2, 3, 1)
            for x in (step.student, step.second, step.teacher)
        )
        self.labels, self.inside = (
            x.numpy() for x in (step.views.batch.labels, step.views.batch.inside)
        )

    def sources(self, view):
        """Returns for each pixel of a strong view the pixel of the weak view that it shows."""
        numbers = torch.arange(B * H * W).view(B, H, W)
        [shown] = view.paste(numbers)
        return {at: np.unravel_index(int(shown[at]), (B, H, W)) for at in pixels()}

    def supervised(self, logits):
        found = [
            -np.log(softmax(logits[at])[self.labels[at]])
            for at in pixels()
            if self.labels[at] != self.step.data.ignore_index
        ]
        return sum(found) / len(found)

    def pseudo(self, logits, sources, judged, threshold):
        """The mean over the pixels inside of the cross-entropy where the judge is certain."""
        total = count = 0
        for at in pixels():
            b, i, j = sources[at]
            if not self.inside[b, i, j]:
                continue
            p = softmax(judged[b, i, j])
            count += 1
            if p.max() >= threshold:
                total -= np.log(softmax(logits[at])[p.argmax()])
        assert count > 0
        return total / count

    def total(self):
        name, o = self.step.settings.method["name"], self.step.options
        here = {at: at for at in pixels()}
        strong = self.sources(self.views.strong)
        weak = self.judged[B:]
        supervised = self.supervised(self.logits)
        if name == "supervised":
            return supervised
        if name == "fixmatch":
            return supervised + o.weight * self.pseudo(self.logits[B:], strong, weak, o.threshold)
        if name == "mean_teacher":
            found = []
            for n, counted in enumerate((self.labels != self.step.data.ignore_index, self.inside)):
                for b, i, j in pixels():
                    if counted[b, i, j]:
                        p, q = (softmax(x[n * B + b, i, j]) for x in (self.logits, self.judged))
                        found.append(((p - q) ** 2).mean())
            return supervised + o.weight * np.mean(found)
        if name == "cutmix_seg":
            found, certain = [], []
            for at in pixels():
                if self.inside[strong[at]]:
                    q = softmax(weak[strong[at]])
                    found.append(((softmax(self.logits[B:][at]) - q) ** 2).sum())
                    certain.append(q.max() >= o.threshold)
            assert 0 < np.mean(certain) < 1
            share = float(np.float32(np.mean(certain)))  # the method counts pixels in float32
            return supervised + o.weight * share * np.mean(found)
        if name == "unimatch":
            own, first, second, perturbed = (self.logits[n * B : (n + 1) * B] for n in range(1, 5))
            views = strong, self.sources(self.views.another_strong()), here
            assert views[0] != views[1]
            s1, s2, z = (
                self.pseudo(x, view, own, o.threshold)
                for x, view in zip((first, second, perturbed), views, strict=True)
            )
            return supervised + o.weight * ((s1 + s2) / 4 + z / 2)
        supervised += self.supervised(self.other)
        if o.cutmix:
            judges = [x.numpy().transpose(0, 2, 3, 1) for x in self.step.labelling]
            crossed = self.pseudo(self.logits[B:], strong, judges[1], 0)
            return supervised + o.weight * (
                crossed + self.pseudo(self.other[B:], strong, judges[0], 0)
            )
        counted = np.concatenate((self.labels != self.step.data.ignore_index, self.inside))
        crossed = [
            -np.log(softmax(x[at])[y[at].argmax()])
            for x, y in ((self.logits, self.other), (self.other, self.logits))
            for at in zip(*counted.nonzero(), strict=True)
        ]
        return supervised + o.weight * sum(crossed) / counted.sum()


@pytest.mark.parametrize("case", LABELS)
@EACH
def test_the_loss_is_that_of_the_formula(name, options, case):
    step = Step(name, options, case)
    found = step.losses()["total"]
    assert found.item() == pytest.approx(Loops(step).total(), rel=1e-12)


@pytest.mark.long
@EACH
def test_gradients_are_those_of_the_loss(name, options):
    step = Step(name, options)
    inputs = [step.student, step.second] if name == "cps" else [step.student]
    assert torch.autograd.gradcheck(lambda *logits: step.losses()["total"], inputs)


@EACH
def test_weight_zero_is_the_supervised_loss(name, options):
    losses = Step(name, {**options, **({} if name == "supervised" else {"weight": 0.0})}).losses()
    assert losses["total"] == losses["supervised"] > 0


@EACH
def test_without_a_pixel_that_counts_the_loss_is_a_connected_zero(name, options):
    step = Step(name, options, ignored=True)
    losses = step.losses()
    assert all(loss == 0 for loss in losses.values())
    losses["total"].backward()
    assert not step.student.grad.any()


@pytest.mark.parametrize("name", ["fixmatch", "cutmix_seg", "unimatch"])
def test_the_kept_share_is_that_of_the_pixels_inside(name):
    everything = Step(name, {"threshold": 0.0}).losses()["kept"]
    nothing = Step(name, {"threshold": 1.0}).losses()
    assert everything == 1
    assert nothing["kept"] == nothing["unlabelled"] == 0


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"name": "fixmatch", "threshold": 1.5},
            r"fixmatch: threshold must lie in \[0, 1\], got 1\.5",
        ),
        (
            {"name": "cutmix_seg", "threshold": -1.0},
            r"cutmix_seg: threshold must lie in \[0, 1\], got -1",
        ),
        ({"name": "unimatch", "dropout": 2}, r"unimatch: dropout must lie in \[0, 1\], got 2"),
        (
            {"name": "unimatch", "treshold": 1},
            r"unknown key 'treshold' of method unimatch; similar keys: thr",
        ),
        (
            {"name": "mean_teacher", "weight": -1},
            r"mean_teacher: weight must be finite and not neg.*got -1",
        ),
        (
            {"name": "mean_teacher", "weight": "1"},
            r"mean_teacher: weight must be of type float, got '1'",
        ),
        (
            {"name": "cps", "weight": float("nan")},
            r"cps: weight must be finite and not negative, got nan",
        ),
        ({"name": "cps", "cutmix": 1}, r"cps: cutmix must be of type bool, got 1"),
        (
            {"name": "supervised", "weight": 1},
            r"unknown key 'weight' of method supervised; it has no",
        ),
    ],
)
def test_wrong_options_are_named(method, message):
    with pytest.raises(ValueError, match=message):
        methods.choose(method)
