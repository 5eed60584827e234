"""The interface of a method: the losses of a step, and the networks that it trains with the student."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from dgcl_ops import DensityContrastLoss
from semi_supervised.methods.options import MethodOptions
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


class Phase(NamedTuple):
    """A part of a step with its own backward pass.

    Attributes:
        losses: "total" is minimised. The rest is logged.
        optimizer: minimises the total.
    """

    losses: dict[str, Tensor]
    optimizer: Optimizer


class Method:
    """A method of semi-supervised training.

    Args:
        trainer: the run. It already has the student and the teacher.
        options: its Options.

    Attributes:
        Options: its MethodOptions.
        keys: the keys of Settings that no other part of the trainer uses.
        teaches: whether its steps run the teacher.
        alone: whether its steps send only `batch` images through a network at once, such as the weak view.
        mixes: whether its steps need boxes from other images.
        step_passes: the passes of a step after the warm-up, unless they depend on settings or options, see `passes`.
        warm_up_passes: the passes of a warm-up step.
        networks: the networks that it trains with the student, and its own moving averages, by their name in the
            checkpoint. The method updates the averages. Their weights need no gradient.
        state: its other modules, such as a bank or prototypes, by their name in the checkpoint. No optimizer trains
            them. They are equal on all ranks.
        optimizers: the optimizers of its networks that do not share the student's, by the network's name. Each
            parameter group has a `factor`. It may have an `initial_lr`; the default is `settings.learning_rate`.
        contrast: its density loss with the bank, or None.
    """

    Options: type = MethodOptions
    keys: frozenset[str] = frozenset()
    teaches = True
    alone = True
    mixes = False
    step_passes: Passes
    warm_up_passes = Passes(trained=1)
    contrast: DensityContrastLoss | None = None

    def __init__(self, trainer: "Trainer", options: Any):
        self.trainer, self.options = trainer, options
        self.networks: dict[str, nn.Module] = {}
        self.state: dict[str, nn.Module] = {}
        self.optimizers: dict[str, Optimizer] = {}
        settings = trainer.settings
        if self.mixes and settings.cutmix and settings.batch < 2:
            name = settings.method["name"]
            raise ValueError(
                f"batch must be at least 2 with method {name} and CutMix, got {settings.batch}: the boxes come from "
                "other images of the batch"
            )

    @classmethod
    def passes(cls, settings: Settings, options: Any) -> Passes:
        """Returns the passes of a step after the warm-up."""
        return cls.step_passes

    def phases(self, views: Views) -> Iterator[Phase]:
        """Yields the phases of a step. The trainer minimises each before it asks for the next."""
        yield Phase(self.losses(views), self.trainer.optimizer)

    def warm_up_phases(self, images: Tensor, labels: Tensor) -> Iterator[Phase]:
        """Yields the phases of a warm-up step."""
        yield Phase(self.warm_up_losses(images, labels), self.trainer.optimizer)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Returns the losses of one step. "total" is minimised. The rest is logged."""
        raise NotImplementedError

    def warm_up_losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Returns the losses of a warm-up step: supervised only, as the teacher is still untrained."""
        _, supervised = self.trainer.classify(images, labels)
        return {"total": supervised, "supervised": supervised}

    def predictor(self) -> nn.Module:
        """Returns the network to evaluate."""
        return self.trainer.teacher.module

    def after_step(self) -> None:
        """Called at the end of each step, when the student and the teacher have their new weights."""

    def report(self) -> dict[str, float]:
        """Returns what the history records with the losses."""
        return {}


class TwoNetworks(Method):
    """A method that trains a second network of the student's kind, with other initial weights.

    Attributes:
        second: the second network.
        second_model: the same, with gradients averaged over the ranks.
    """

    teaches = False
    warm_up_passes = Passes(trained=2)

    def __init__(self, trainer: "Trainer", options: Any):
        super().__init__(trainer, options)
        self.second = self.networks["second"] = trainer.another_network(1)
        self.second_model = trainer.synchronised(self.second)

    def warm_up_losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Returns the losses of a warm-up step: both networks are supervised."""
        _, supervised = self.classify(images, labels)
        return {"total": supervised, "supervised": supervised}

    def classify(self, images: Tensor, labels: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns the logits of both networks, and the sum of their supervised losses."""
        models = self.trainer.model, self.second_model
        logits, losses = zip(
            *(self.trainer.classify(images, labels, each) for each in models), strict=True
        )
        return [*logits], sum(losses)
