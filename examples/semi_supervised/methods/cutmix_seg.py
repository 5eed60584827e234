"""CutMix-Seg. French et al., BMVC 2020.

    L = CE(f(x), y) + W c mean of |p(s) - t|^2

x: labelled images with labels y. s: unlabelled images u with boxes from other ones. p: probabilities of the student f.
t: the same boxes pasted into the probabilities of the teacher f'(u), no gradient. c: the share of pixels where t has a
probability of at least tau, one number for the batch. The squares are summed over the classes. Mean and share leave out
borders. Labelled and mixed images share a batch norm.

Deviations:
- The program mixes all images, with boxes of half of the area. Here `cutmix` is the chance and `cutmix_mode` says which
  boxes.
- s also has other colours; `jitter=0` leaves them out.
- The program freezes batch norm and gives the labelled images a backward pass of their own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from semi_supervised.methods.base import Method, Passes
from semi_supervised.methods.options import MethodOptions, Share
from semi_supervised.methods.pixels import mean_over, share, squared_differences
from semi_supervised.views import Views


@dataclass(frozen=True)
class Options(MethodOptions):
    """The hyper-parameters of CutMix-Seg."""

    weight: float = 1.0  # W
    threshold: Share = 0.97  # tau


class CutMixSeg(Method):
    """The student's probabilities on a mixed image move towards the teacher's mixed probabilities."""

    Options = Options
    mixes = True
    step_passes = Passes(trained=2, forward=1)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Returns the losses of one step."""
        trainer, strong, batch = self.trainer, views.strong, views.batch
        targets = trainer.teach(batch.weak).softmax(1)
        targets, inside = strong.paste(targets, batch.inside)
        kept = share(targets.amax(1) >= self.options.threshold, inside)

        images = torch.cat((views.images, strong.images))
        logits, supervised = trainer.classify(images, batch.labels)
        differences = squared_differences(logits[-len(targets) :], targets)
        unlabelled = kept * mean_over(differences, inside)
        total = supervised + self.options.weight * unlabelled
        parts = {"supervised": supervised, "unlabelled": unlabelled}
        return {"total": total, **parts, "kept": kept}
