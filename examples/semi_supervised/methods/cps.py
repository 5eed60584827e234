"""CPS: cross pseudo supervision. Chen et al., CVPR 2021.

    L = CE(f1(x), y) + CE(f2(x), y) + W [mean of CE(f1(s), q2) + mean of CE(f2(s), q1)]

x: labelled images with labels y. f1: student. f2: a second network of the same kind, with other initial weights.
u: unlabelled images. s: u with boxes from other images. q1, q2: argmax f1(u) and argmax f2(u) with the same boxes, no
gradient. The means run over all pixels except borders. Labelled and mixed images share a batch norm. `cutmix: false` is
the method without mixing: s is x and u, with labels of the same pass. The paper's W is then 1.5.

Deviations:
- We evaluate the teacher, as for all methods. Here it is the moving average of f1, and does not label. The program
  evaluates f1; so does `ema_maximum=0`.
- s also has other colours; `jitter=0` leaves them out. The program pastes three boxes, from a second batch.
- The program normalises labelled and unlabelled images separately. In both, the labelling passes run in training mode
  and update the batch-norm averages.
- The program's mean also counts borders. Without mixing, ours leaves out the pixels of x without a label, too.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from semi_supervised.methods.base import Passes, TwoNetworks
from semi_supervised.methods.options import MethodOptions
from semi_supervised.methods.pixels import mean_over
from semi_supervised.settings import Settings
from semi_supervised.views import Views


@dataclass(frozen=True)
class Options(MethodOptions):
    """The hyper-parameters of CPS."""

    weight: float = 1.0  # W
    cutmix: bool = True


class CPS(TwoNetworks):
    """Two networks that label for each other."""

    Options = Options

    def __init__(self, trainer: Any, options: Options):
        self.mixes = options.cutmix
        super().__init__(trainer, options)

    @classmethod
    def passes(cls, settings: Settings, options: Options) -> Passes:
        return Passes(trained=4, forward=2 if options.cutmix else 0)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Returns the losses of one step."""
        batch, strong, count = views.batch, views.strong, len(views.images)
        if self.options.cutmix:
            with torch.no_grad():
                pair = self.trainer.student, self.second
                labels = [network(batch.weak).argmax(1) for network in pair]
            # Autocast keeps the weights that it has cast. In PyTorch 2.10 these would have no gradient below.
            torch.clear_autocast_cache()
            *labels, counted = strong.paste(*labels, batch.inside)
            images = torch.cat((views.images, strong.images))
            logits, supervised = self.classify(images, batch.labels)
            logits = [each[count:] for each in logits]
        else:
            images = torch.cat((views.images, strong.recoloured))
            logits, supervised = self.classify(images, batch.labels)
            labels = [each.detach().argmax(1) for each in logits]
            counted = torch.cat((batch.labels != self.trainer.data.ignore_index, batch.inside))
        unlabelled = sum(
            mean_over(F.cross_entropy(own, other, reduction="none"), counted)
            for own, other in zip(logits, reversed(labels), strict=True)
        )
        total = supervised + self.options.weight * unlabelled
        return {"total": total, "supervised": supervised, "unlabelled": unlabelled}
