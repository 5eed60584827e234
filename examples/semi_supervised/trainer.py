"""Semi-supervised training with an EMA teacher, and the density-guided contrastive loss added to it.

`Trainer.losses` is the method; the rest of the file is book-keeping.

With `contrast_weight=0` the very same code runs, projection head, loss and memory bank included; only the factor
differs. Both runs therefore see the same batches, the same random numbers and the same batch-norm inputs: a control
that differs in any of these can move by more than the method does.
"""

import math
from collections.abc import Callable
from pathlib import Path

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
from semi_supervised.settings import Settings, class_weights, contrast_loss, optimizer
from semi_supervised.teacher import Teacher


class Trainer:
    """Trains a network on labelled and unlabelled images.

    Args:
        network: logits [B, C, H, W] of images [B, 3, H, W]; its `classifier` maps features [B, D, h, w] to
            logits, and the network upsamples these. Its `backbone`, if it has one, learns at the plain rate, the
            rest at `head_factor` times that. Parameters that need no gradient stay as they are. For
            `settings.auxiliary_weight` it has a second head `auxiliary`, whose logits
            `network(images, auxiliary=True)` returns as well.
        data: `num_classes`, `ignore_index`; `labelled(count, rng)` -> (images, labels) and `unlabelled(count, rng)` ->
            (images, where they are and not a border), both drawing from the generator they are given and from nothing
            else; `description()` -> dict, what a resumed run must find again; for `settings.balance` also `pixels`,
            each class's labelled pixels.
        settings: see Settings.
        device: where to train.
        workers: processes that read ahead; the batches are the same with any number of them.

    In a process group each rank draws batches of its own; gradients are averaged, and the memory bank is shared.

    Attributes:
        student, teacher: the network, and its moving average: the one to evaluate and to keep.
        history: what `run` recorded: dicts of step, losses and the mean density of the bank. A checkpoint has that of
            the first rank.
    """

    def __init__(self, network: nn.Module, data, settings: Settings, device="cpu", workers=0):
        self.data, self.settings, self.device = data, settings, torch.device(device)
        self.step, self.history = 0, []
        self.rank, self.ranks = distributed.rank_and_ranks()
        self.batches = Batches(data, settings, self.rank, self.device, workers)
        if bool(settings.auxiliary_weight) != (getattr(network, "auxiliary", None) is not None):
            raise ValueError(
                "auxiliary_weight must be positive with an auxiliary head and 0 without, "
                f"got {settings.auxiliary_weight} for {type(network).__name__}"
            )
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
        self.asks_confidence = self.contrast.strategy.by_confidence
        self.class_weights = torch.ones(data.num_classes, device=self.device)
        if settings.balance:
            self.class_weights = class_weights(data.pixels, settings.balance).to(self.device)
        self.pseudo_label_loss = PseudoLabelLoss(data.ignore_index)
        self.optimizer = optimizer(settings, self.student, self.projection)
        scaled = settings.precision == "float16"  # otherwise the scaler is a no-op
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        # What a step calls. The bank is outside: DDP never sees it.
        self.model, self.project = self.student, self.projection
        if self.ranks > 1:
            self.model, self.project = (
                DistributedDataParallel(module, forward_sync_buffers=False)
                for module in (self.student, self.projection)
            )

    # ---- the method -----------------------------------------------------------------------------

    def losses(self, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        """The losses of one step; "total" is the one to minimise."""
        settings, weak_view = self.settings, self.settings.contrast_view == "weak"
        images, labels, weak, _ = batch
        pseudo, of_contrast, confidence = self.teach(batch)

        # The student sees all views in one batch. The strong view has other colours and boxes of other images.
        views = [jitter(weak, rng, settings.jitter), pseudo, *([] if weak_view else of_contrast)]
        strong, pseudo, *mixed = cutmix(
            rng, *views, probability=settings.cutmix, mode=settings.cutmix_mode
        )
        reliable, *rest = of_contrast if weak_view else mixed
        unmixed = [weak] if weak_view else []
        images = torch.cat((jitter(images, rng, settings.jitter), *unmixed, strong))
        logits, supervised = self.classify(images, labels)
        features = self.tap.pop()
        unlabelled = self.pseudo_label_loss(logits[-len(strong) :], pseudo)

        # The density loss computes densities from the features and sends its gradient to the projections. It also
        # fills the bank. It uses the labelled images and the unlabelled ones that follow them in the batch.
        projections, size = self.project(features), features.shape[-2:]
        small = torch.cat([resize_labels(each, size) for each in (labels, reliable)])
        shown = len(small)
        if self.asks_confidence:
            halves = (confidence, *rest)
            rest = [torch.cat([F.interpolate(each[:, None], size)[:, 0] for each in halves])]
        densities_of = features if settings.density_of == "features" else projections
        contrast = self.contrast(projections[:shown], small, densities_of[:shown].detach(), *rest)

        total = supervised + settings.unlabelled_weight * unlabelled
        total = total + settings.contrast_weight * contrast
        return {
            "total": total,
            "supervised": supervised,
            "unlabelled": unlabelled,
            "contrast": contrast,
        }

    def teach(self, batch: Batch) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """The teacher's labels of the weak view. The least certain pixels are ignored, far more for the contrast.

        Returns:
            The labels for the classification. The labels for the contrast, with their confidence if it needs one; their
            size depends on `settings.contrast_view`. The confidence of the labelled images, or None.
        """
        images, _, weak, inside = batch
        with torch.no_grad(), self.autocast("bfloat16"):
            logits, small = self.teacher.two_sizes(torch.cat((images, weak)))
        judged = small if self.settings.contrast_view == "weak" else logits
        progress = self.progress()
        pseudo, reliable = (
            entropy_filter(
                seen[len(images) :],
                1 - drop(progress),
                ignore_index=self.data.ignore_index,
                valid_mask=resize_labels(inside, seen.shape[-2:]),
            )
            for seen, drop in (
                (logits, classification_drop_fraction),
                (judged, contrast_drop_fraction),
            )
        )
        if not self.asks_confidence:
            return pseudo, [reliable], None
        labelled, unlabelled = judged.softmax(1).amax(1).tensor_split((len(images),))
        return pseudo, [reliable, unlabelled], labelled

    def warm_up_losses(self, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        """The same for a step of the warm-up, in which there is no teacher worth asking."""
        images = jitter(batch.images, rng, self.settings.jitter)
        _, supervised = self.classify(images, batch.labels)
        self.tap.pop()
        return {"total": supervised, "supervised": supervised}

    def classify(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The student's logits, and the supervised loss of the first images, which have the labels."""
        weight = self.settings.auxiliary_weight
        if not weight:
            logits = self.model(images)
            return logits, self.supervised(logits[: len(labels)], labels)
        logits, auxiliary = self.model(images, auxiliary=True)
        first, second = (self.supervised(x[: len(labels)], labels) for x in (logits, auxiliary))
        return logits, first + weight * second

    def supervised(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with class weights; 0, and not NaN, where no pixel has a label."""
        ignore = self.data.ignore_index
        surprise = F.cross_entropy(logits, labels, ignore_index=ignore, reduction="none")
        weights = self.class_weights[labels.clamp(max=len(self.class_weights) - 1)]
        weights = weights * (labels != ignore)
        if self.settings.ohem:
            weights = weights * hard_pixels(surprise.detach(), *self.settings.ohem)
        return (weights * surprise).sum() / weights.sum().clamp(min=1)

    # ---- the steps around it --------------------------------------------------------------------

    def train_step(self) -> dict[str, Tensor]:
        """One step. All its random numbers come from (seed, step, rank), so a resumed run continues exactly."""
        settings = self.settings
        batch, rng = self.batches.take(self.step)
        # Of dropout. Here, since a loader of batches draws from the global generator when it starts.
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
        # Skipped if a float16 gradient overflowed. The bank and the teacher are updated anyway.
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.teacher.follow(self.student, self.step)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def progress(self) -> float:
        """Progress of the training after the warm-up, 0 to 1. It changes once per epoch or at each step."""
        settings = self.settings
        epoch = settings.epoch_steps if settings.schedule_by == "epoch" else 1
        return training_progress(self.step - self.step % epoch, settings.warm_up, settings.steps)

    def autocast(self, *precisions: str):
        """Autocast, if the settings choose one of these precisions."""
        name = self.settings.precision
        return torch.autocast(self.device.type, getattr(torch, name), enabled=name in precisions)

    def run(
        self,
        *,
        until: int | None = None,
        record_every: int = 10,
        after_step: Callable[["Trainer"], None] = lambda trainer: None,
    ) -> None:
        """Trains up to step `until`, by default to the end.

        Every `record_every` steps, losses and the mean density of the bank are read into the history (on a GPU,
        reading waits for the step). `after_step` is called after each step.

        Raises:
            RuntimeError: the ranks are not at the same step.
        """
        if not distributed.agree(self.step, self.device):
            raise RuntimeError(
                f"all ranks must go on from one step, got {self.step} on rank {self.rank}; "
                "do all of them see the same checkpoint?"
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
        """Mean density of the rows in the bank, over the classes that are ready; 0 while there are none."""
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


def hard_pixels(surprise: Tensor, probability: float, least: int) -> Tensor:
    """Where the right class has at most this probability; in any case at the `least` most surprising pixels.

    Args:
        surprise: -log(probability of the right class) of each pixel, 0 where there is no label; no gradient.
    """
    enough = surprise.flatten().topk(min(int(least), surprise.numel())).values[-1]
    return surprise >= enough.clamp(max=-math.log(probability))
