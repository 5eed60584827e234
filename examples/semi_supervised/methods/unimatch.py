"""UniMatch. Yang et al., CVPR 2023.

    L = CE(f(x), y) + W [(l(s1) + l(s2)) / 4 + l(z) / 2],    l(.) = mean of 1[m >= tau] CE(., q)

x: labelled images with labels y. u: weak view of the unlabelled images. s1, s2: two strong views. f: student.
q: argmax f(u), no gradient. m: the largest probability of f(u). z: the logits that the decoder returns for the
encoder's maps of u with dropped channels. The means run over all pixels except borders. One batch norm sees x, u, s1
and s2. The decoder's also see the maps with dropped channels.

Deviations:
- The program halves L. We do not, so the learning rate must include this factor.
- The program evaluates the student. We evaluate the teacher, as for all methods; `ema_maximum=0` evaluates the student.
- The program's boxes come from a second batch, which a separate pass labels. Here they come from the batch itself, so
  no pass without gradients is needed.
- The program normalises (x, u) and (s1, s2) separately, and also drops channels of x, without a loss on them.
- The strong views are made as in all methods: colours and CutMix, without blur and greyscale. The first is the strong
  view of the other methods.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from semi_supervised.methods.base import Method, Passes
from semi_supervised.methods.options import MethodOptions, Share
from semi_supervised.methods.pixels import confident_cross_entropy, most_likely, share
from semi_supervised.views import Views


@dataclass(frozen=True)
class Options(MethodOptions):
    """The hyper-parameters of UniMatch."""

    weight: float = 1.0  # W
    threshold: Share = 0.95  # tau; 0 keeps all pixels
    dropout: Share = 0.5  # share of the channels that are dropped


class UniMatch(Method):
    """The student labels itself. It learns from two strong views and from perturbed features."""

    Options = Options
    teaches, alone, mixes = False, False, True
    step_passes = Passes(trained=4)

    def __init__(self, *given: Any):
        super().__init__(*given)
        student = self.trainer.student
        if "perturb" not in inspect.signature(student.forward).parameters:
            raise ValueError(
                f"method {self.trainer.settings.method['name']} needs a network whose forward takes perturb, see "
                f"SegmentationNetwork; {type(student).__name__} does not"
            )

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Returns the losses of one step."""
        trainer, options, batch = self.trainer, self.options, views.batch
        count, strong = len(batch.weak), (views.strong, views.another_strong())

        def drop_channels(maps: list[Tensor]) -> list[Tensor]:
            return [F.dropout2d(each[count : 2 * count], options.dropout) for each in maps]

        images = torch.cat((views.images, batch.weak, *(view.images for view in strong)))
        logits, supervised = trainer.classify(images, batch.labels, perturb=drop_channels)
        _, weak, *learning = logits.split(count)  # s1, s2, z

        confidence, label = most_likely(weak)
        maps = label, confidence >= options.threshold, batch.inside
        losses = [
            confident_cross_entropy(each, *mixed)
            for each, mixed in zip(
                learning, (*(view.paste(*maps) for view in strong), maps), strict=True
            )
        ]
        unlabelled = (losses[0] + losses[1]) / 4 + losses[2] / 2
        total = supervised + options.weight * unlabelled
        parts = {"supervised": supervised, "unlabelled": unlabelled, "perturbed": losses[2]}
        return {"total": total, **parts, "kept": share(maps[1], batch.inside)}
