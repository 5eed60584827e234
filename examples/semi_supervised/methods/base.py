"""The interface of a method: the losses of a step, and the networks that it trains with the student."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from dgcl_ops import DensityContrastLoss
from semi_supervised.settings import Settings
from semi_supervised.views import Views

if TYPE_CHECKING:
    from semi_supervised.trainer import Trainer


class Passes(NamedTuple):
    """The images that a step sends through a whole network, in labelled batches.

    Attributes:
        trained: forward and backward.
        forward: forward only.
    """

    trained: int
    forward: int = 0

    @property
    def units(self) -> int:
        """The cost, in forward passes of a labelled batch. A backward pass counts as two."""
        return 3 * self.trained + self.forward


@dataclass(frozen=True)
class NoOptions:
    """A method without options."""


class Method:
    """A method of semi-supervised training. It is evaluated by its teacher, the moving average of the student.

    Args:
        trainer: the run. It already has the student and the teacher.
        options: its Options.

    Attributes:
        Options: a frozen dataclass of its own hyper-parameters.
        keys: the keys of Settings that no other part of the trainer uses.
        teaches: whether its steps run the teacher.
        alone: whether its steps send only `batch` images through a network at once, such as the weak view.
        mixes: whether its steps need boxes from other images.
        warm_up_passes: the passes of a warm-up step.
        networks: the networks that it trains with the student, by their name in the checkpoint.
        averages: its further moving averages, by their name in the checkpoint. The method updates them.
        state: its other modules, such as a bank or prototypes, by their name in the checkpoint. No optimizer trains
            them. They are equal on all ranks.
        contrast: its density loss with the bank, or None.
    """

    Options: type = NoOptions
    keys: frozenset[str] = frozenset()
    teaches = True
    alone = True
    mixes = False
    warm_up_passes = Passes(trained=1)
    contrast: DensityContrastLoss | None = None

    def __init__(self, trainer: "Trainer", options: Any):
        self.trainer, self.options = trainer, options
        self.networks: dict[str, nn.Module] = {}
        self.averages: dict[str, nn.Module] = {}
        self.state: dict[str, nn.Module] = {}
        settings = trainer.settings
        if self.mixes and settings.cutmix and settings.batch < 2:
            name = settings.method["name"]
            raise ValueError(
                f"batch must be at least 2 with method {name} and CutMix, got {settings.batch}: the boxes come from "
                "other images of the batch"
            )

    @staticmethod
    def passes(settings: Settings, options: Any) -> Passes:
        """Returns the passes of a step after the warm-up."""
        raise NotImplementedError

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Returns the losses of one step. "total" is minimised. The rest is logged."""
        raise NotImplementedError

    def warm_up_losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Returns the losses of a warm-up step: supervised only, as the teacher is still untrained."""
        _, supervised = self.trainer.classify(images, labels)
        return {"total": supervised, "supervised": supervised}

    def after_step(self) -> None:
        """Called at the end of each step, when the student and the teacher have their new weights."""

    def report(self) -> dict[str, float]:
        """Returns what the history records with the losses."""
        return {}
