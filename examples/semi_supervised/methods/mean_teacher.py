"""Mean Teacher. Tarvainen and Valpola, NeurIPS 2017; for segmentation as in the tables of CPS.

    L = CE(f(x), y) + W mean of |p - p'|^2 / C

x: labelled images with labels y. u: unlabelled images. p: probabilities of the student f on x and u in other colours.
p': probabilities of the teacher f' on x and u, no gradient. C: classes. The mean runs over x and u, except for borders
and pixels without a label. One batch norm sees x and u together.

Deviations:
- The program gives both networks the same pixels, so only batch norm and dropout differ. `jitter=0` does that.
- The mean leaves out the pixels of x without a label, since some of them are borders.
- The program normalises x and u separately, and averages from the first step at 0.99. Here `ema_maximum`, `ema_from`
  and `warm_up` determine this.
- W = 100 is the program's value, for a mean over classes and pixels. For a sum over 21 classes, it equals 4.8.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from semi_supervised.methods.base import Method, Passes
from semi_supervised.methods.options import MethodOptions
from semi_supervised.methods.pixels import mean_over, squared_differences
from semi_supervised.views import Views


@dataclass(frozen=True)
class Options(MethodOptions):
    """The hyper-parameters of Mean Teacher."""

    weight: float = 100.0  # W


class MeanTeacher(Method):
    """The student's probabilities move towards the teacher's."""

    Options = Options
    alone = False
    step_passes = Passes(trained=2, forward=2)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Returns the losses of one step."""
        trainer, batch = self.trainer, views.batch
        targets = trainer.teach(torch.cat((batch.images, batch.weak))).softmax(1)
        counted = torch.cat((batch.labels != trainer.data.ignore_index, batch.inside))

        images = torch.cat((views.images, views.strong.recoloured))
        logits, supervised = trainer.classify(images, batch.labels)
        differences = squared_differences(logits, targets) / logits.shape[1]
        unlabelled = mean_over(differences, counted)
        total = supervised + self.options.weight * unlabelled
        return {"total": total, "supervised": supervised, "unlabelled": unlabelled}
