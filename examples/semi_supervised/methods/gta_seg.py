"""GTA-Seg: gentle teaching assistant. Jin, Wang and Lin, NeurIPS 2022.

    L_a = W [sum over kept pixels of (m + 1) CE(a(s), q)] / [sum over kept pixels of (m + 1) + number of dropped pixels]
    extractor of f <- d extractor of f + (1 - d) extractor of a,    d = min(1 - 1 / (i + 1), D)
    L = CE(f(x), y)

x: labelled images with labels y. u, s: weak and strong view of the unlabelled images. f: student, f': teacher.
a: assistant, a copy of f at the end of the warm-up. q: argmax f'(u) with the boxes of s. m: the largest probability of
f'(s). The share `dropped` of the pixels, those with the smallest m, is dropped. Borders never count. i: steps since
the warm-up.

A step has two phases. First a minimises L_a, and the extractor of f moves. Then f minimises L. So only a learns pseudo
labels, and only f learns labels. In f', a and f, one batch norm sees x and s together. The extractor is the whole
network without `classifier` and `auxiliary`. Only its weights move: f has its own batch-norm averages.

Deviations:
- a does not pass on its classifier. The program's has three convolutions. Here it has one.
- In the program the two classifiers share their storage, so both optimizers train one classifier. `program: true` does
  the same with copies. In the first epoch after its warm-up, the program's a and f share all weights. Ours never do.
- The program labels with a teacher in evaluation mode, and runs it in training mode for m. Here `teacher_mode`
  applies to both passes.
- The program moves the auxiliary head of f towards a's, which learns nothing. Here a has no auxiliary head.
- s also has other colours; `jitter=0` leaves them out.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgcl_ops.schedules import ema_decay
from semi_supervised.methods.base import Method, Passes, Phase
from semi_supervised.methods.options import MethodOptions, Share
from semi_supervised.methods.pixels import most_likely
from semi_supervised.settings import optimizer
from semi_supervised.teacher import move
from semi_supervised.views import Views

HEADS = ("classifier.", "auxiliary.")


@dataclass(frozen=True)
class Options(MethodOptions):
    """The hyper-parameters of GTA-Seg."""

    weight: float = 1.0  # W
    dropped: Share = 0.2
    extractor_ema_maximum: Share = 0.999  # D
    program: bool = False  # one classifier for student and assistant


class GTASeg(Method):
    """An assistant learns the pseudo labels, and passes its feature extractor on to the student."""

    Options = Options
    mixes = True
    step_passes = Passes(trained=4, forward=3)

    def __init__(self, trainer: Any, options: Options):
        super().__init__(trainer, options)
        self.assistant = copy.deepcopy(trainer.student)
        self.assistant.auxiliary = None
        self.networks = {"assistant": self.assistant}
        self.optimizers = {"assistant": optimizer(trainer.settings, self.assistant)}
        self.assistant_model = trainer.synchronised(self.assistant)

    def phases(self, views: Views) -> Iterator[Phase]:
        trainer = self.trainer
        if trainer.step == trainer.settings.warm_up:
            copy_into(self.assistant, trainer.student)
        yield Phase(self.assistant_losses(views), self.optimizers["assistant"])
        self.move_extractor()
        yield Phase(self.losses(views), trainer.optimizer)

    def assistant_losses(self, views: Views) -> dict[str, Tensor]:
        """Returns the assistant's losses."""
        trainer, batch, count = self.trainer, views.batch, len(views.images)
        _, label = most_likely(trainer.teach(batch.weak))
        label, inside = views.strong.paste(label, batch.inside)
        images = torch.cat((views.images, views.strong.images))
        confidence, _ = most_likely(trainer.teach(images)[count:])
        kept = most_confident(confidence, inside, self.options.dropped)

        logits = self.assistant_model(images)[count:]
        # A dropped pixel weighs 1 in the denominator.
        weights = (confidence * kept + 1) * inside
        each = F.cross_entropy(logits, label, reduction="none")
        unlabelled = (each * weights * kept).sum() / weights.sum().clamp(min=1)
        return {"total": self.options.weight * unlabelled, "unlabelled": unlabelled}

    def move_extractor(self) -> None:
        """Moves the student's feature extractor towards the assistant's."""
        student, updates = self.trainer.student, self.trainer.step - self.trainer.settings.warm_up
        weight = 1 - ema_decay(updates, self.options.extractor_ema_maximum)
        own = dict(student.named_parameters())
        for name, new in self.assistant.named_parameters():
            if not name.startswith(HEADS):
                move(own[name], new, weight)
        if self.options.program:
            copy_into(student.classifier, self.assistant.classifier)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Returns the student's losses."""
        images = torch.cat((views.images, views.strong.images))
        _, supervised = self.trainer.classify(images, views.batch.labels)
        return {"total": supervised, "supervised": supervised}

    def after_step(self) -> None:
        if self.options.program:
            copy_into(self.assistant.classifier, self.trainer.student.classifier)


def copy_into(network: nn.Module, source: nn.Module) -> None:
    """Copies weights and averages. The source may have more of them."""
    theirs = source.state_dict()
    network.load_state_dict({name: theirs[name] for name in network.state_dict()})


def most_confident(confidence: Tensor, inside: Tensor, dropped: float) -> Tensor:
    """Drops the pixels at or below a quantile of the confidence, as `entropy_filter` does with the entropy.

    Args:
        confidence: [B, H, W].
        inside: [B, H, W] bool. Other pixels are dropped, and the quantile leaves them out.
        dropped: the quantile, in [0, 1]. 0 drops none.

    Returns:
        [B, H, W] bool, the pixels that are kept.
    """
    ordered = confidence.masked_fill(~inside, torch.inf).flatten().sort().values
    last = (inside.sum() - 1).clamp(min=0).to(torch.float64)  # float32 ends at 2**24 pixels
    limit = ordered.index_select(0, (dropped * last).long().view(1))
    return ((confidence > limit) | (dropped == 0)) & inside
