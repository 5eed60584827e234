"""Supervised training: the first row of the published tables.

    L = CE(f(x), y)

x: labelled images with labels y. f: student. Unlabelled images are not used.

Deviations:
- We evaluate the teacher, as for all methods. Here it does not label. `ema_maximum=0` evaluates the student itself.
- Other programs double the labelled batch to see as many images as their method does. Here a budget of passes gives the
  run more steps.
"""

from torch import Tensor

from semi_supervised.methods.base import Method, Passes
from semi_supervised.views import Views


class Supervised(Method):
    """Labelled images only."""

    teaches = False
    step_passes = Passes(trained=1)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Returns the losses of one step, which equal those of a warm-up step."""
        return self.warm_up_losses(views.images, views.batch.labels)
