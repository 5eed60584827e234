"""Semi-supervised training with an EMA teacher.

The method, in `methods/`, computes the losses. This file has the training loop, which all methods share: batches,
views, optimizer, learning rate, teacher, history. With the same seed, all methods see the same batches and draw the
same first strong view.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from dgcl_ops import DensityContrastLoss
from dgcl_ops.schedules import poly_learning_rate, training_progress
from semi_supervised import checkpoint, distributed, methods
from semi_supervised.augment import jitter
from semi_supervised.loading import Batches
from semi_supervised.methods.base import Phase
from semi_supervised.settings import (
    Settings,
    check_network,
    class_weights,
    hard_pixels,
    optimizer,
)
from semi_supervised.teacher import Teacher
from semi_supervised.views import Views


class Trainer:
    """Trains a network on labelled and unlabelled images.

    In a process group each rank draws its own batches, gradients are averaged, and all ranks share one memory bank.

    Args:
        network: returns logits [B, C, H, W] for images [B, 3, H, W]. Its `classifier` maps features [B, D, h, w] to
            logits, which the network upsamples. A `backbone`, if there is one, trains at the plain learning rate, the
            rest at `head_factor` times it. Parameters that need no gradient stay unchanged. With
            `settings.auxiliary_weight`, `network(images, auxiliary=True)` also returns the logits of a second head,
            `auxiliary`. `min_batch`, if there is one, is the smallest batch that its batch norms can train on. Some
            methods call `network(images, perturb=f)`. `f` perturbs the list of encoded maps, and the decoder reads both
            lists. The logits of the perturbed maps are appended to the batch. Some methods perturb the input of
            `last_convolutions`, the convolutions before the classifier.
        data: has `num_classes` and `ignore_index`. `labelled(count, rng)` returns images and labels.
            `unlabelled(count, rng)` returns images and a mask that is False in borders. Both draw from `rng` only.
            `description()` returns a dict that must not change between save and resume. `settings.balance` also needs
            `pixels`: the number of labelled pixels per class.
        settings: see Settings.
        device: where to train.
        workers: number of processes that read ahead. It does not change the batches.
        make_network: builds another network like `network`. Methods with two networks need it.

    Attributes:
        student: the network.
        teacher: its moving average.
        method: the method that `settings.method` names.
        history: what `run` recorded: dicts of step, losses and what the method reports. A checkpoint holds the first
            rank's.

    Raises:
        ValueError: If `settings`, the method and `network` do not match.
    """

    def __init__(
        self,
        network: nn.Module,
        data: Any,
        settings: Settings,
        device: str | torch.device = "cpu",
        workers: int = 0,
        make_network: Callable[[], nn.Module] | None = None,
    ):
        self.data, self.settings, self.device = data, settings, torch.device(device)
        self.step, self.history, self.make_network = 0, [], make_network
        self.rank, self.ranks = distributed.rank_and_world_size()
        self.batches = Batches(data, settings, self.rank, self.device, workers)
        images = settings.batch * distributed.ranks_that_share_batch_norm(self.device)
        kind, options = methods.choose(settings.method)
        check_network(settings, network, images, kind.alone)
        self.student = self.placed(network)
        self.teacher = Teacher(self.student, settings, runs=kind.teaches)
        self.method = kind(self, options)
        self.class_weights = torch.ones(data.num_classes, device=self.device)
        if settings.balance:
            self.class_weights = class_weights(data.pixels, settings.balance).to(self.device)
        own = self.method.optimizers  # the other networks share the student's optimizer
        others = [each for name, each in self.method.networks.items() if name not in own]
        self.optimizer = optimizer(settings, self.student, *others)
        scaled = settings.precision == "float16"  # otherwise the scaler is a no-op
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.model = self.synchronised(self.student)

    def placed(self, network: nn.Module) -> nn.Module:
        """Returns the network on the device, with batch statistics over all ranks where PyTorch supports it."""
        network = distributed.with_shared_batch_norm(network, self.device)
        return network.to(self.device, memory_format=torch.channels_last)

    def another_network(self, number: int) -> nn.Module:
        """Builds a network like the student. Its initial weights depend on the seed and the number only."""
        if self.make_network is None:
            name = self.settings.method["name"]
            raise ValueError(
                f"method {name} trains another network, so make_network must build one, got None"
            )
        with torch.random.fork_rng(devices=[]):
            seed = np.random.SeedSequence((self.settings.seed, number)).generate_state(1)[0]
            torch.manual_seed(int(seed))
            return self.placed(self.make_network())

    def synchronised(self, network: nn.Module) -> nn.Module:
        """Returns the network with gradients averaged over the ranks. Each rank keeps its own batch-norm averages."""
        if self.ranks == 1:
            return network
        return DistributedDataParallel(network, forward_sync_buffers=False)

    @property
    def contrast(self) -> DensityContrastLoss | None:
        """The density loss with its bank, or None if the method has none."""
        return self.method.contrast

    @property
    def predictor(self) -> nn.Module:
        """The network to evaluate and keep. It is the teacher, unless the method has another one."""
        return self.method.predictor()

    # ---- what methods share ----------------------------------------------------------------------

    def teach(self, images: Tensor, teacher: nn.Module | None = None) -> Tensor:
        """Returns the logits of the teacher or of `teacher`, without a gradient. Teachers never run in float16."""
        with torch.no_grad(), self.autocast("bfloat16"):
            return (self.teacher if teacher is None else teacher)(images)

    def classify(
        self, images: Tensor, labels: Tensor, model: nn.Module | None = None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns logits and the supervised loss of the first images, the labelled ones.

        Args:
            images: [N, 3, H, W].
            labels: [B, H, W].
            model: the network. None: the student.
            options: of its forward.
        """
        model, weight = self.model if model is None else model, self.settings.auxiliary_weight
        if not weight:
            logits = model(images, **options)
            return logits, self.supervised(logits[: len(labels)], labels)
        logits, auxiliary = model(images, auxiliary=True, **options)
        first, second = (self.supervised(x[: len(labels)], labels) for x in (logits, auxiliary))
        return logits, first + weight * second

    def supervised(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the cross-entropy with class weights, or 0 if no pixel has a label."""
        ignore = self.data.ignore_index
        pixel_loss = F.cross_entropy(logits, labels, ignore_index=ignore, reduction="none")
        weights = self.class_weights[labels.clamp(max=len(self.class_weights) - 1)]
        weights = weights * (labels != ignore)
        if self.settings.ohem:
            weights = weights * hard_pixels(pixel_loss.detach(), *self.settings.ohem)
        return (weights * pixel_loss).sum() / weights.sum().clamp(min=1)

    # ---- the steps around it --------------------------------------------------------------------

    def train_step(self) -> dict[str, Tensor]:
        """Runs one step. All its random numbers come from (seed, step, rank), so a resumed run continues exactly."""
        settings = self.settings
        batch, rng = self.batches.take(self.step)
        # For dropout. Seeded after `take`, since a starting loader draws from the global generator.
        seed = np.random.SeedSequence((settings.seed, self.step, self.rank)).generate_state(1)[0]
        torch.manual_seed(int(seed))
        for network in (self.student, *self.method.networks.values()):
            network.train()
        self.teacher.train(settings.teacher_mode == "train")
        warm_up = self.step < settings.warm_up
        with self.autocast("bfloat16", "float16"):
            if warm_up:
                images = jitter(batch.images, rng, settings.jitter)
                phases = self.method.warm_up_phases(images, batch.labels)
            else:
                views = Views(batch, rng, settings, (settings.seed, self.step, self.rank))
                phases = self.method.phases(views)
        for each in (self.optimizer, *self.method.optimizers.values()):
            for group in each.param_groups:
                first = group.get("initial_lr", settings.learning_rate)
                group["lr"] = poly_learning_rate(first, self.step, settings.steps) * group["factor"]
        losses = self.minimise(phases)
        self.teacher.follow(self.student, self.step)
        self.method.after_step()
        self.step += 1
        return losses

    def minimise(self, phases: Iterator[Phase]) -> dict[str, Tensor]:
        """Runs the phases of a step. Returns their losses. "total" is the sum of their totals."""
        logged: dict[str, Tensor] = {}
        while True:
            with self.autocast("bfloat16", "float16"):
                phase = next(phases, None)
            if phase is None:
                break
            losses, chosen = phase
            chosen.zero_grad()
            self.scaler.scale(losses["total"]).backward()
            # The scaler skips a step whose float16 gradients overflow. The bank and the teacher are updated anyway.
            self.scaler.step(chosen)
            losses = {name: loss.detach() for name, loss in losses.items()}
            if logged:
                losses["total"] = losses["total"] + logged["total"]
            logged |= losses
        self.scaler.update()
        return logged

    def progress(self) -> float:
        """Returns the progress after the warm-up, in [0, 1]. It changes once per epoch or at each step."""
        settings = self.settings
        epoch = settings.epoch_steps if settings.schedule_by == "epoch" else 1
        return training_progress(self.step - self.step % epoch, settings.warm_up, settings.steps)

    def autocast(self, *precisions: str) -> torch.autocast:
        """Returns autocast, enabled if the settings choose one of these precisions."""
        name = self.settings.precision
        return torch.autocast(self.device.type, getattr(torch, name), enabled=name in precisions)

    def run(
        self,
        *,
        until: int | None = None,
        record_every: int = 10,
        after_step: Callable[["Trainer"], None] = lambda trainer: None,
    ) -> None:
        """Trains up to step `until`.

        Args:
            until: the last step. None: the end.
            record_every: how often to record losses and what the method reports, in steps. On a GPU this waits for
                the step.
            after_step: called after each step.

        Raises:
            RuntimeError: If the ranks are not at the same step.
        """
        if not distributed.agree(self.step, self.device):
            raise RuntimeError(
                f"all ranks must start at the same step, got {self.step} on rank {self.rank}; "
                "do all ranks see the same checkpoint?"
            )
        until = self.settings.steps if until is None else min(until, self.settings.steps)
        while self.step < until:
            losses = self.train_step()
            if self.step % record_every == 0 or self.step == self.settings.steps:
                record = {name: float(loss) for name, loss in losses.items()}
                self.history.append({"step": self.step, **record, **self.method.report()})
            after_step(self)
        self.batches.close()

    # ---- checkpoints ----------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """See `checkpoint.save`."""
        checkpoint.save(self, path)

    def load(self, path: Path) -> int:
        """See `checkpoint.load`."""
        return checkpoint.load(self, path)
