"""The teacher: a moving average of the student. It labels the unlabelled images. It is the network to keep."""

import copy

import torch
from torch import Tensor, nn

from dgcl_ops.schedules import ema_decay
from semi_supervised.settings import Settings


class Teacher(nn.Module):
    """A copy of the student that follows it. `settings.ema_from` and `settings.teacher_averages` determine how.

    Args:
        student: the network to copy.
        settings: see Settings.
        runs: whether the method runs the teacher. If not, its batch norms collect no averages, and copy the student's.

    Attributes:
        module: the network.
    """

    def __init__(self, student: nn.Module, settings: Settings, runs: bool = True):
        super().__init__()
        self.module = copy.deepcopy(student).requires_grad_(False)
        self.settings = settings
        self.own_averages = runs and settings.teacher_averages == "own"

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images)

    def two_sizes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logits at the images' size, and the classifier's own logits at the features' size."""
        small = []
        hook = self.module.classifier.register_forward_hook(lambda *call: small.append(call[-1]))
        with hook:
            return self(images), small.pop()

    def decay(self, step: int) -> float:
        """Returns the weight of the old values in the update after `step`. 0 copies the student."""
        settings = self.settings
        if settings.ema_from == "start":
            return ema_decay(step, settings.ema_maximum)
        updates = step - settings.warm_up
        return ema_decay(updates, settings.ema_maximum) if updates >= settings.epoch_steps else 0.0

    @torch.no_grad()
    def follow(self, student: nn.Module, step: int) -> None:
        """Moves towards the student. Called once after each step."""
        weight = 1 - self.decay(step)
        for mine, new in zip(self.module.parameters(), student.parameters(), strict=True):
            move(mine, new, weight)
        if not self.own_averages or step < self.settings.warm_up:
            for mine, new in zip(self.module.buffers(), student.buffers(), strict=True):
                mine.copy_(new)


@torch.no_grad()
def move(average: Tensor, new: Tensor, weight: float) -> None:
    """Moves an average towards a new value, in place. With weight 1 it copies the value, and always an integer."""
    copied = weight >= 1 or not average.is_floating_point()
    average.copy_(new) if copied else average.lerp_(new, weight)


def sees_labelled(settings: Settings) -> bool:
    """Returns whether the teacher also sees the labelled images.

    In train mode, they contribute to its batch statistics. The contrast may also need their confidence.
    """
    strategy = (settings.contrast.get("anchors"), settings.contrast.get("keys"))
    return settings.teacher_mode == "train" or any("confidence" in str(x) for x in strategy)
