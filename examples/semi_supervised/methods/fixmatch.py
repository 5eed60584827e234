"""FixMatch, for pixels. Sohn et al., NeurIPS 2020.

    L = CE(f(x), y) + W mean of 1[m >= tau] CE(f(s), q)

x: labelled images with labels y. u, s: weak and strong view of the unlabelled images. f: student, f': teacher.
q: argmax f'(u). m: the largest probability of f'(u). The mean runs over all pixels except borders, so pixels below tau
count as 0. Labelled and strong images share a batch norm.

Deviations:
- The paper and the first segmentation programs label with the student. Here the teacher does, as in later ones.
- The segmentation programs halve L. We do not, so the learning rate must include this factor.
- The strong view is the same as in all methods: colours and CutMix, without blur and greyscale. The boxes come from the
  batch itself instead of a second batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from semi_supervised.methods.base import Method, Passes
from semi_supervised.methods.options import MethodOptions, Share
from semi_supervised.methods.pixels import confident_cross_entropy, most_likely, share
from semi_supervised.views import Views


@dataclass(frozen=True)
class Options(MethodOptions):
    """The hyper-parameters of FixMatch."""

    weight: float = 1.0  # W
    threshold: Share = 0.95  # tau; 0 keeps all pixels


class FixMatch(Method):
    """Pseudo labels above a fixed confidence."""

    Options = Options
    mixes = True
    step_passes = Passes(trained=2, forward=1)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Returns the losses of one step."""
        trainer, strong, options = self.trainer, views.strong, self.options
        confidence, label = most_likely(trainer.teach(views.batch.weak))
        confidence, label, inside = strong.paste(confidence, label, views.batch.inside)

        images = torch.cat((views.images, strong.images))
        logits, supervised = trainer.classify(images, views.batch.labels)
        kept = confidence >= options.threshold
        unlabelled = confident_cross_entropy(logits[-len(label) :], label, kept, inside)
        total = supervised + options.weight * unlabelled
        parts = {"supervised": supervised, "unlabelled": unlabelled}
        return {"total": total, **parts, "kept": share(kept, inside)}
