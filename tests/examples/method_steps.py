"""One step of a method on given features in float64, and what oracles of its loss need. Not a test file."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from semi_supervised import methods
from semi_supervised.loading import Batch
from semi_supervised.settings import Settings
from semi_supervised.teacher import Teacher
from semi_supervised.trainer import Trainer
from semi_supervised.views import Views

B, D, SMALL, LARGE = 2, 5, (3, 4), (6, 8)
# Classes, label of ignored pixels, and the classes that labels hold.
LABELS = {"four": (4, 255, 4), "two": (2, 255, 2), "minus one": (4, -1, 4), "absent": (4, 255, 3)}


class Fixed(nn.Module):
    """A network whose features do not depend on the images, only on how many there are."""

    def __init__(self, classes, *features):
        super().__init__()
        self.features = {len(each): each for each in features}
        self.classifier = nn.Conv2d(D, classes, 1, dtype=torch.float64).requires_grad_(False)

    def forward(self, images):
        logits = self.classifier(self.features[len(images)])
        return F.interpolate(logits, LARGE, mode="bilinear", align_corners=True)


def batch_of(size, present, ignore, ignored, rng=None):
    """Draws a batch with pixels that do not count, or with these only.

    Args:
        size: height and width.
        present: the number of classes that labels hold.
        ignore: the label of ignored pixels.
        ignored: whether no pixel counts.
        rng: a generator. None: the global one.
    """
    labels = torch.randint(present, (B, *size), generator=rng)
    labels[0, :2] = ignore
    inside = torch.ones(B, *size, dtype=torch.bool)
    inside[1, :, :2] = False
    if ignored:
        labels[:], inside[:] = ignore, False
    images = torch.rand(2 * B, 3, *size, generator=rng)
    return Batch(images[:B], labels, images[B:], inside)


class Step:
    """One step after the warm-up.

    Attributes:
        student: [2B, D, h, w], the student's features of labelled and mixed images.
        weak, mixed: the teacher's features, of the weak view [B, D, h, w], and of what the student sees.
        method, trainer, views: of the step.
    """

    def __init__(self, name, options, case="four", ignored=False, seed=1):
        classes, ignore, present = LABELS[case]
        rng = torch.Generator().manual_seed(seed)
        draw = lambda n: torch.randn(n, D, *SMALL, generator=rng, dtype=torch.float64)
        self.student = draw(2 * B).requires_grad_()
        self.weak, self.mixed = 2 * draw(B), 2 * draw(2 * B)
        batch = batch_of(LARGE, present, ignore, ignored, rng)
        settings = Settings(
            method={"name": name, **options}, batch=B, cutmix=1.0, seed=3, steps=10, warm_up=0
        )
        self.views = Views(batch, np.random.default_rng(0), settings, (3, 0, 0))
        torch.manual_seed(0)
        trainer = self.trainer = object.__new__(Trainer)
        trainer.settings, trainer.step, trainer.ranks = settings, 1, 1
        trainer.data = SimpleNamespace(num_classes=classes, ignore_index=ignore)
        trainer.device, trainer.class_weights = torch.device("cpu"), torch.ones(classes).double()
        trainer.student = trainer.model = Fixed(classes, self.student)
        trainer.teacher = Teacher(nn.Identity(), settings)
        trainer.teacher.module = Fixed(classes, self.weak, self.mixed)
        kind, chosen = methods.choose(settings.method)
        self.method, self.options = kind(trainer, chosen), chosen

    def losses(self):
        return self.method.losses(self.views)

    # ---- for oracles ------------------------------------------------------------------------------

    def pixels(self):
        return [(b, i, j) for b in range(B) for i in range(LARGE[0]) for j in range(LARGE[1])]

    def small_pixels(self):
        """Returns the pixels at the features' size, and the pixel of the label that each has."""
        found = []
        for b in range(2 * B):
            for i in range(SMALL[0]):
                for j in range(SMALL[1]):
                    label = (b % B, i * LARGE[0] // SMALL[0], j * LARGE[1] // SMALL[1])
                    found.append(((b, i, j), label))
        return found

    def sources(self):
        """Returns for each pixel of the strong view the pixel of the weak view that it shows."""
        numbers = torch.arange(B * LARGE[0] * LARGE[1]).view(B, *LARGE)
        [shown] = self.views.strong.paste(numbers)
        return {at: np.unravel_index(int(shown[at]), (B, *LARGE)) for at in self.pixels()}

    def logits(self, network, count):
        """Returns a network's logits at the images' and at the features' size, channels last."""
        features = network.features[count].detach()
        with torch.no_grad():
            large, small = network(torch.empty(count)), network.classifier(features)
        return (x.numpy().transpose(0, 2, 3, 1) for x in (large, small))

    def supervised(self):
        logits, _ = self.logits(self.trainer.student, 2 * B)
        labels, ignore = self.views.batch.labels.numpy(), self.trainer.data.ignore_index
        found = [
            cross_entropy(logits[at], labels[at]) for at in self.pixels() if labels[at] != ignore
        ]
        return sum(found) / len(found)


def softmax(row):
    z = np.exp(row - row.max())
    return z / z.sum()


def cross_entropy(row, label):
    return -np.log(softmax(row)[label])


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def contrast(anchors, key, negatives, temperature):
    """The mean over the anchors of -log softmax at the key, for negatives of each anchor."""
    found = []
    for anchor, others in zip(anchors, negatives, strict=True):
        logits = [cosine(anchor, row) / temperature for row in (key, *others)]
        found.append(-np.log(softmax(np.array(logits))[0]))
    return np.mean(found)


def recorded(monkeypatch, module, name):
    """Returns a list of what a function of a module returns from now on."""
    function, results = getattr(module, name), []

    def record(*args, **kwargs):
        results.append(function(*args, **kwargs))
        return results[-1]

    monkeypatch.setattr(module, name, record)
    return results


def run_without_values(step):
    """Computes the losses on tensors without values. Python code that reads one, and so waits for a GPU, raises."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return step.losses()
