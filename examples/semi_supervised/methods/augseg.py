"""AugSeg. Zhao et al., CVPR 2023.

    L = CE(f(x), y) + W mean of 1[m >= tau] CE(f(s), q)

x: labelled images with labels y. u: weak view of the unlabelled images. f: student, f': teacher. q: argmax f'(u).
m: the largest probability of f'(u). s: u after 1 to `operations` random colour operations, with boxes from another
image u'. Before that, u' gets a box of a labelled image with probability 1 - rho(u'), with its labels and m = 1.
rho(u') = mean of m (1 - H / log C) over the pixels of u', H: entropy of f'(u'), C: classes. So an image is more likely
to get labelled pixels if the teacher is less certain about it. The means run over all pixels except borders and pasted
pixels without a label. Labelled and mixed images share a batch norm.

Deviations:
- The boxes between unlabelled images are the same as in all methods. In the program, their sides are
  sqrt(1 - Beta(4, 4)) of the image's. With `cutmix` 0, no labelled pixel is pasted.
- The labelled boxes have the program's sides, sqrt(1 - Beta(8, 2)). Each image draws its own, and it lies inside the
  image.
- The program's mean also counts borders. Its teacher also averages the batch-norm averages.
- Hue is rotated in floating point. Posterize and equalize work on 8 bits. `operations=0` uses the colours of the other
  methods.
- Pasted labelled pixels have the same colours as in the student's labelled images.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from semi_supervised.colours import random_operations
from semi_supervised.methods.base import Method, Passes
from semi_supervised.methods.options import MethodOptions, NumberOrZero, Share
from semi_supervised.methods.pixels import confident_cross_entropy, most_likely, share
from semi_supervised.views import AUGSEG, Views


@dataclass(frozen=True)
class Options(MethodOptions):
    """The hyper-parameters of AugSeg."""

    weight: float = 1.0  # W
    threshold: Share = 0.95  # tau; 0 keeps all pixels
    operations: NumberOrZero = 3


class AugSeg(Method):
    """Pseudo labels above a fixed confidence. Uncertain images get boxes of labelled ones."""

    Options = Options
    mixes = True
    step_passes = Passes(trained=2, forward=1)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Returns the losses of one step."""
        trainer, options, batch = self.trainer, self.options, views.batch
        logits = trainer.teach(batch.weak)
        confidence, label = most_likely(logits)
        mixed = self.mix(views, confidence, label, certainty(logits, batch.inside))
        images, confidence, label, inside = mixed

        logits, supervised = trainer.classify(torch.cat((views.images, images)), batch.labels)
        kept = confidence >= options.threshold
        unlabelled = confident_cross_entropy(logits[-len(label) :], label, kept, inside)
        total = supervised + options.weight * unlabelled
        parts = {"supervised": supervised, "unlabelled": unlabelled}
        return {"total": total, **parts, "kept": share(kept, inside)}

    def mix(
        self, views: Views, confidence: Tensor, label: Tensor, certainty: Tensor
    ) -> list[Tensor]:
        """Returns s, its confidence, its labels, and a mask that is False where nothing counts."""
        batch, rng = views.batch, views.generator(AUGSEG)
        images = views.strong.recoloured
        if self.options.operations:
            images = random_operations(batch.weak, rng, self.options.operations)
        covered = boxes(rng, *batch.labels.shape).to(images.device, non_blocking=True)
        drawn = torch.from_numpy(rng.random(len(images))).to(certainty, non_blocking=True)
        covered = covered & (drawn >= certainty)[:, None, None]

        known = batch.labels != self.trainer.data.ignore_index
        unlabelled = images, confidence, label, batch.inside
        labels = batch.labels.where(known, 0)  # a class, for the cross-entropy
        labelled = views.images, torch.ones_like(confidence), labels, known
        numbers = torch.arange(len(images), device=images.device)[:, None, None].expand_as(label)
        from_another = views.strong.paste(numbers)[0] != numbers
        return [
            choose(from_another, views.strong.paste(choose(covered, theirs, own))[0], own)
            for own, theirs in zip(unlabelled, labelled, strict=True)
        ]


def choose(where: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Returns `torch.where` of maps [B, H, W] or [B, 3, H, W] with a mask [B, H, W]."""
    return torch.where(where[:, None] if no.dim() == 4 else where, yes, no)


def certainty(logits: Tensor, inside: Tensor) -> Tensor:
    """Returns rho of each image, [B], for logits [B, C, H, W] and a mask [B, H, W] that is False in borders."""
    logarithms = logits.log_softmax(1)
    probabilities = logarithms.exp()
    entropy = -(probabilities * logarithms).sum(1) / np.log(logits.shape[1])
    values = probabilities.amax(1) * (1 - entropy) * inside
    return values.sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)


def boxes(rng: np.random.Generator, count: int, height: int, width: int) -> Tensor:
    """Draws one box for each image. Returns a mask [B, H, W]."""
    mask = torch.zeros(count, height, width, dtype=torch.bool)
    for each in mask:
        side = (1 - rng.beta(8, 2)) ** 0.5
        rows, columns = int(height * side), int(width * side)
        top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
        each[top : top + rows, left : left + columns] = True
    return mask
