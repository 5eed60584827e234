"""U2PL: unreliable pseudo labels. Wang et al., CVPR 2022.

    L = CE(f(x), y) + W_u PLL(f(s), q) + W_c L_c,    e(a, b) = exp(cos(a, b) / tau)
    L_c = mean over c and i of -log [e(z_ci, z_c) / (e(z_ci, z_c) + sum over j of e(z_ci, n_cij))]

x: labelled images with labels y. u: weak view of the unlabelled images. s: u with boxes from other images. f: student,
f': teacher. q: argmax f'(u) with the same boxes, without the share alpha of the pixels where f'(s) has the highest
entropy. alpha falls from alpha_0 to 0. PLL: cross-entropy over the kept pixels, times the inverse of their share.
z, z': representations of x and s, by a head on f and by its moving average. p'_c: probability of class c by f'.
rank_c: the number of classes with a larger p'. Certain pixels of c: those with label c, and those of s with q = c among
the share alpha of lowest entropy. z_ci: z at random certain pixels of c with p'_c > delta. z_c: the mean of z' over all
certain pixels of c. n_cij: random rows of the queue of c. That queue takes z' at pixels of x with another label and
rank_c < r_l, and at the pixels of s among the share alpha of highest entropy with r_l <= rank_c < r_h.

Deviations:
- L_c is the mean over the classes with an anchor and a negative. The program divides by the number of classes with
  certain pixels, and loops over the first n classes instead of the n classes in the batch. It only takes negatives of
  c with label c, so no labelled pixel is one. We follow the paper in both.
- W_c is the paper's; the program's is 1. r_l must be below the number of classes. With two classes, set it to 1.
- A queue takes at most `rows_per_push` random rows per step. All have one length. The program's take all rows, and the
  queue of class 0 is longer.
- The head is a `ProjectionHead` on the classifier's input. The program's has two 3x3 convolutions.
- `teacher_mode` applies to both passes of the teacher. The program labels in eval mode and then runs in train mode.
- alpha falls from the end of the warm-up. s also has other colours; `jitter=0` leaves them out.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgcl_ops import PseudoLabelLoss, resize_labels
from dgcl_ops.schedules import linear_schedule
from semi_supervised.methods import representations as reps
from semi_supervised.methods.base import Method, Passes
from semi_supervised.methods.options import MethodOptions, Share, Temperature
from semi_supervised.methods.pixels import certain
from semi_supervised.views import Views


@dataclass(frozen=True)
class Options(MethodOptions):
    """The hyper-parameters of U2PL."""

    weight: float = 1.0  # W_u
    contrast_weight: float = 0.1  # W_c
    unreliable: Share = 0.2  # alpha_0
    threshold: Share = 0.3  # delta
    low_rank: int = 3  # r_l
    high_rank: int = 20  # r_h
    anchors: int = 256  # per class
    negatives: int = 50  # per anchor
    temperature: Temperature = 0.5  # tau
    queue: int = 30_000  # rows per class
    rows_per_push: int = 1_000

    def __post_init__(self):
        super().__post_init__()
        if self.high_rank <= self.low_rank:
            raise ValueError(
                f"high_rank must be above low_rank {self.low_rank}, got {self.high_rank}"
            )


class U2PL(Method):
    """Uncertain pixels are negatives of the classes that they are unlikely to have."""

    Options = Options
    keys = frozenset({"projection_dim"})
    mixes = True
    step_passes = Passes(trained=2, forward=3)

    def __init__(self, trainer: Any, options: Options):
        super().__init__(trainer, options)
        settings, classes = trainer.settings, trainer.data.num_classes
        if options.low_rank >= classes:
            raise ValueError(
                f"method u2pl: low_rank must be below the number of classes {classes}, got {options.low_rank}: no "
                "class has such a rank, so there would be no negatives; method.low_rank=1 always works"
            )
        self.head = reps.Head(trainer)
        self.teacher_head = reps.TeacherHead(self.head.module, settings)
        width = settings.projection_dim
        self.queue = reps.queue(trainer, width, options.queue, options.rows_per_push)
        self.networks = {"projection": self.head.module, "teacher_projection": self.teacher_head}
        self.state = {"queue": self.queue}
        self.pseudo_label_loss = PseudoLabelLoss(trainer.data.ignore_index)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Returns the losses of one step."""
        trainer, options, batch = self.trainer, self.options, views.batch
        ignore, count = trainer.data.ignore_index, len(batch.weak)
        label = trainer.teach(batch.weak).argmax(1)
        label, inside = views.strong.paste(label, batch.inside)
        images = torch.cat((views.images, views.strong.images))
        predicted, small, targets = self.teacher_head.teach(trainer, images)
        logits, supervised, maps = self.head.classify(images, batch.labels)

        alpha = linear_schedule(options.unreliable, 0.0, trainer.progress())
        reliable, sure = (certain(predicted[count:], each, inside) for each in (1 - alpha, alpha))
        kept = label.masked_fill(~reliable, ignore)
        unlabelled = self.pseudo_label_loss(logits[count:], kept)

        known = torch.cat((batch.labels, label.masked_fill(~sure, ignore)))
        unsure = inside & ~reliable
        size = small.shape[-2:]
        known, unsure = (resize_labels(each, size) for each in (known, unsure))
        with trainer.autocast():
            contrast = self.contrast_of(maps, targets, small, known, unsure)
        total = supervised + options.weight * unlabelled + options.contrast_weight * contrast
        parts = {"supervised": supervised, "unlabelled": unlabelled, "contrast": contrast}
        return {"total": total, **parts}

    def contrast_of(
        self, maps: Tensor, targets: Tensor, predicted: Tensor, known: Tensor, unsure: Tensor
    ) -> Tensor:
        """Fills the queues and returns L_c.

        Args:
            maps: [2B, E, h, w], z.
            targets: [2B, E, h, w], z'.
            predicted: [2B, C, h, w], logits of f'.
            known: [2B, h, w], labels of the certain pixels.
            unsure: [B, h, w] bool, the pixels of s of highest entropy.
        """
        options, queue, half = self.options, self.queue, unsure.numel()
        targets, p = reps.rows_of(targets), reps.rows_of(predicted).softmax(1)
        sure = reps.pixels_of(known, queue.num_classes)
        rank = p.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        confused = (rank[:half] < options.low_rank) & ~sure[:half] & sure[:half].any(1, True)
        unlikely = (options.low_rank <= rank[half:]) & (rank[half:] < options.high_rank)
        unlikely &= unsure.flatten()[:, None]
        reps.push(queue, targets, torch.cat((confused, unlikely)))
        anchors, counts = reps.draw(sure & (p > options.threshold), options.anchors)
        negatives = reps.draw_rows(queue, options.anchors, options.negatives)
        keys, active = reps.class_means(targets, sure), (counts > 0) & (queue.counts > 0)
        return reps.mean_contrast(maps, anchors, keys, negatives, active, options.temperature)

    def after_step(self) -> None:
        self.teacher_head.follow(self.head.module, self.trainer.step)

    def report(self) -> dict[str, float]:
        return {"queue": float(self.queue.counts.float().mean())}
