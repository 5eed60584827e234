"""Semi-supervised training with an EMA teacher and the density-guided contrastive loss.

`Trainer.losses` is the method. The rest of the file is bookkeeping.

`contrast_weight=0` runs the same code, including the projection head, the loss and the memory bank. Only the factor
differs. Both runs therefore see the same batches, random numbers and batch-norm inputs. A control that differs in any
of these can move by more than the method does.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from dgcl_ops import (
    FeatureTap,
    ProjectionHead,
    PseudoLabelLoss,
    entropy_filter,
    resize_labels,
)
from dgcl_ops.schedules import (
    classification_drop_fraction,
    contrast_drop_fraction,
    poly_learning_rate,
    training_progress,
)
from semi_supervised import checkpoint, distributed
from semi_supervised.augment import cutmix, jitter
from semi_supervised.loading import Batch, Batches
from semi_supervised.settings import (
    Settings,
    check_network,
    class_weights,
    contrast_loss,
    hard_pixels,
    optimizer,
)
from semi_supervised.teacher import PseudoLabels, Teacher


class Trainer:
    """Trains a network on labelled and unlabelled images.

    In a process group each rank draws its own batches, gradients are averaged, and all ranks share one memory bank.

    Args:
        network: returns logits [B, C, H, W] for images [B, 3, H, W]. Its `classifier` maps features [B, D, h, w] to
            logits, which the network upsamples. A `backbone`, if there is one, trains at the plain learning rate, the
            rest at `head_factor` times it. Parameters that need no gradient stay unchanged. With
            `settings.auxiliary_weight`, `network(images, auxiliary=True)` also returns the logits of a second head,
            `auxiliary`. `min_batch`, if there is one, is the smallest batch that its batch norms can train on.
        data: has `num_classes` and `ignore_index`. `labelled(count, rng)` returns images and labels.
            `unlabelled(count, rng)` returns images and a mask that is False in borders. Both draw from `rng` only.
            `description()` returns a dict that must not change between save and resume. `settings.balance` also needs
            `pixels`: the number of labelled pixels per class.
        settings: see Settings.
        device: where to train.
        workers: number of processes that read ahead. It does not change the batches.

    Attributes:
        student: the network.
        teacher: its moving average. Evaluate and keep this one.
        history: what `run` recorded: dicts of step, losses and the bank's mean density. A checkpoint holds the first
            rank's.

    Raises:
        ValueError: If `settings` and `network` do not match.
    """

    def __init__(
        self,
        network: nn.Module,
        data: Any,
        settings: Settings,
        device: str | torch.device = "cpu",
        workers: int = 0,
    ):
        self.data, self.settings, self.device = data, settings, torch.device(device)
        self.step, self.history = 0, []
        self.rank, self.ranks = distributed.rank_and_world_size()
        self.batches = Batches(data, settings, self.rank, self.device, workers)
        images = settings.batch * distributed.ranks_that_share_batch_norm(self.device)
        check_network(settings, network, images)
        shared = distributed.with_shared_batch_norm
        self.student = shared(network, self.device)
        self.student.to(self.device, memory_format=torch.channels_last)
        self.teacher = Teacher(self.student, settings)
        self.tap = FeatureTap(self.student, "classifier")
        feature_dim = self.tap.channels
        self.projection = ProjectionHead(feature_dim, feature_dim, settings.projection_dim)
        self.projection = shared(self.projection, self.device)
        self.contrast = contrast_loss(settings, data, feature_dim, self.ranks)
        self.projection.to(self.device)
        self.contrast.to(self.device)
        self.needs_confidence = self.contrast.strategy.by_confidence
        self.class_weights = torch.ones(data.num_classes, device=self.device)
        if settings.balance:
            self.class_weights = class_weights(data.pixels, settings.balance).to(self.device)
        self.pseudo_label_loss = PseudoLabelLoss(data.ignore_index)
        self.optimizer = optimizer(settings, self.student, self.projection)
        scaled = settings.precision == "float16"  # otherwise the scaler is a no-op
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        # DDP must not see the bank: it would broadcast the buffers.
        self.model, self.project = self.student, self.projection
        if self.ranks > 1:
            self.model, self.project = (
                DistributedDataParallel(module, forward_sync_buffers=False)
                for module in (self.student, self.projection)
            )

    # ---- the method -----------------------------------------------------------------------------

    def losses(self, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        """Returns the losses of one step. Minimise "total"."""
        settings, weak_view = self.settings, self.settings.contrast_view == "weak"
        images, labels, weak, _ = batch
        pseudo, reliable, confidence, labelled_confidence = self.teach(batch)

        # The student sees all views in one batch. The strong view has other colours and boxes of other images.
        strong = jitter(weak, rng, settings.jitter)
        how = {"probability": settings.cutmix, "mode": settings.cutmix_mode}
        if weak_view:
            strong, pseudo = cutmix(rng, strong, pseudo, **how)
            unmixed = [weak]
        else:
            mixed = cutmix(rng, strong, pseudo, reliable, confidence, **how)
            strong, pseudo, reliable, confidence = mixed
            unmixed = []
        images = torch.cat((jitter(images, rng, settings.jitter), *unmixed, strong))
        logits, supervised = self.classify(images, labels)
        features = self.tap.pop()
        unlabelled = self.pseudo_label_loss(logits[-len(strong) :], pseudo)

        # The density loss computes densities from the features and sends its gradient to the projections. It also
        # fills the bank. It uses the labelled images and the unlabelled ones that follow them in the batch.
        projections, size = self.project(features), features.shape[-2:]
        small = torch.cat([resize_labels(each, size) for each in (labels, reliable)])
        optional = ()
        if self.needs_confidence:
            halves = (labelled_confidence, confidence)
            optional = (torch.cat([F.interpolate(each[:, None], size)[:, 0] for each in halves]),)
        density_source = features if settings.density_of == "features" else projections
        contrast = self.contrast(
            projections[: len(small)], small, density_source[: len(small)].detach(), *optional
        )

        total = supervised + settings.unlabelled_weight * unlabelled
        total = total + settings.contrast_weight * contrast
        return {
            "total": total,
            "supervised": supervised,
            "unlabelled": unlabelled,
            "contrast": contrast,
        }

    def teach(self, batch: Batch) -> PseudoLabels:
        """Labels the weak view with the teacher and ignores the least certain pixels."""
        images, _, weak, inside = batch
        with torch.no_grad(), self.autocast("bfloat16"):
            logits, small = self.teacher.two_sizes(torch.cat((images, weak)))
        contrast_logits = small if self.settings.contrast_view == "weak" else logits
        progress = self.progress()
        classification, contrast = (
            entropy_filter(
                each[len(images) :],
                1 - drop(progress),
                ignore_index=self.data.ignore_index,
                valid_mask=resize_labels(inside, each.shape[-2:]),
            )
            for each, drop in (
                (logits, classification_drop_fraction),
                (contrast_logits, contrast_drop_fraction),
            )
        )
        labelled = unlabelled = None
        if self.needs_confidence:
            confidence = contrast_logits.softmax(1).amax(1)
            labelled, unlabelled = confidence.tensor_split((len(images),))
        return PseudoLabels(classification, contrast, unlabelled, labelled)

    def warm_up_losses(self, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        """Returns the losses of a warm-up step: supervised only, as the teacher is still untrained."""
        images = jitter(batch.images, rng, self.settings.jitter)
        _, supervised = self.classify(images, batch.labels)
        self.tap.pop()
        return {"total": supervised, "supervised": supervised}

    def classify(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the student's logits and the supervised loss of the first images, the labelled ones."""
        weight = self.settings.auxiliary_weight
        if not weight:
            logits = self.model(images)
            return logits, self.supervised(logits[: len(labels)], labels)
        logits, auxiliary = self.model(images, auxiliary=True)
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
        self.student.train()
        self.teacher.train(settings.teacher_mode == "train")
        warm_up = self.step < settings.warm_up
        with self.autocast("bfloat16", "float16"):
            losses = (self.warm_up_losses if warm_up else self.losses)(batch, rng)
        for group in self.optimizer.param_groups:
            rate = poly_learning_rate(settings.learning_rate, self.step, settings.steps)
            group["lr"] = rate * group["factor"]
        self.optimizer.zero_grad()
        self.scaler.scale(losses["total"]).backward()
        # The scaler skips a step whose float16 gradients overflow. The bank and the teacher are updated anyway.
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.teacher.follow(self.student, self.step)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

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
            record_every: how often to record losses and the bank's mean density, in steps. On a GPU this waits for
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
                self.history.append({"step": self.step, **record, "density": self.mean_density()})
            after_step(self)
        self.batches.close()

    def mean_density(self) -> float:
        """Returns the mean density of the bank's rows over the ready classes, or 0 if there are none."""
        state = self.contrast.diagnostics()
        ready = state["ready"]
        return float((state["mean_density"] * ready).sum() / ready.sum().clamp(min=1))

    # ---- checkpoints ----------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """See `checkpoint.save`."""
        checkpoint.save(self, path)

    def load(self, path: Path) -> int:
        """See `checkpoint.load`."""
        return checkpoint.load(self, path)
