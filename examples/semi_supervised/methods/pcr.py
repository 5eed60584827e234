"""PCR: prototype-based consistency regularization. Xu et al., NeurIPS 2022.

    L = CE(f(x), y) + W_p CE(h(x), y) + W mean of 1[m >= tau] [CE(f(s), q) + W_p CE(h(s), q)]
    h_c = max over k of cos(z, P_ck) / T

x: labelled images with labels y. u: weak view of the unlabelled images. s: u with boxes from other images. f: student,
f': teacher. q: argmax f'(u) with the same boxes, m: its probability. z: the features that the classifier of f sees.
P_ck: K prototypes of each class, without a gradient. The means run over all pixels except borders and those without a
label, so pixels below tau count as 0. Labelled and mixed images share a batch norm. After each step:

    P_ck <- mu P_ck + (1 - mu) mean of z / |z| over the pixels of c for which P_ck is the most similar of c's prototypes

The pixels of c are those with label c, and those of s with q = c and m >= tau, on all ranks.

The authors have not published their training program. We follow the paper. These points are ours:
- The prototypes start when the warm-up ends: k-means with 10 rounds, on random labelled pixels of its last steps. The
  paper clusters the features of another, supervised network. A class that appears later starts with its mean.
- h covers all pixels at the features' size. The paper resizes z to the image and draws 1,024 pixels.
- The threshold applies to h(s) as well as f(s), without a ramp. The features are normalised before averaging.
- s also has other colours; `jitter=0` leaves them out.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgcl_ops import resize_labels
from semi_supervised.methods import representations as reps
from semi_supervised.methods.base import Method, Passes
from semi_supervised.methods.options import MethodOptions, Share, Temperature
from semi_supervised.methods.pixels import confident_cross_entropy, most_likely, share
from semi_supervised.methods.prototypes import Prototypes
from semi_supervised.views import Views


@dataclass(frozen=True)
class Options(MethodOptions):
    """The hyper-parameters of PCR."""

    weight: float = 1.0  # W
    prototype_weight: float = 1.0  # W_p
    threshold: Share = 0.8  # tau
    prototypes: int = 4  # K
    temperature: Temperature = 0.1  # T
    momentum: Share = 0.99  # mu
    rows: int = 1_000  # per class; the prototypes start from them
    rows_per_push: int = 100


class PCR(Method):
    """The classifier and the prototypes learn the same pseudo labels."""

    Options = Options
    mixes = True
    step_passes = Passes(trained=2, forward=1)

    def __init__(self, trainer: Any, options: Options):
        super().__init__(trainer, options)
        width, classes = reps.feature_dim(trainer), trainer.data.num_classes
        self.prototypes = Prototypes(classes, options.prototypes, width).to(trainer.device)
        self.rows = reps.queue(trainer, width, options.rows, options.rows_per_push)
        self.state = {"rows": self.rows, "prototypes": self.prototypes}
        self.seen: tuple[Tensor, Tensor] | None = None  # rows and classes of this step

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Returns the losses of one step."""
        trainer, options, batch = self.trainer, self.options, views.batch
        ignore, count = trainer.data.ignore_index, len(batch.weak)
        confidence, label = most_likely(trainer.teach(batch.weak))
        confidence, label, inside = views.strong.paste(confidence, label, batch.inside)
        images = torch.cat((views.images, views.strong.images))
        logits, supervised, features = reps.classify(trainer, images, batch.labels)
        kept = (confidence >= options.threshold) & inside
        linear = confident_cross_entropy(logits[count:], label, kept, inside)

        known = torch.cat((batch.labels, label.masked_fill(~kept, ignore)))
        known, small = (resize_labels(each, features.shape[-2:]) for each in (known, inside))
        labelled, unlabelled = self.prototype_losses(features, known).chunk(2)
        labelled = labelled.sum() / (known[:count] != ignore).sum().clamp(min=1)
        unlabelled = unlabelled.sum() / small.sum().clamp(min=1)
        weight, parts = options.prototype_weight, {"supervised": supervised, "unlabelled": linear}
        total = supervised + weight * labelled + options.weight * (linear + weight * unlabelled)
        prototypes = {"prototypes": labelled, "unlabelled_prototypes": unlabelled}
        return {"total": total, **parts, **prototypes, "kept": share(kept, inside)}

    def prototype_losses(self, features: Tensor, known: Tensor) -> Tensor:
        """Returns the cross-entropy of h at each pixel, [N]. It is 0 without a label, or if its class has not started.

        Args:
            features: [2B, D, h, w].
            known: [2B, h, w], labels of the pixels that count.
        """
        trainer, prototypes = self.trainer, self.prototypes
        with trainer.autocast():
            rows, members = reps.rows_of(features), reps.pixels_of(known, len(prototypes.started))
            self.seen = rows.detach(), members
            if trainer.step == trainer.settings.warm_up:
                reps.push(self.rows, *(each[: len(rows) // 2] for each in self.seen))
                prototypes.start(self.rows)
            similar = prototypes(rows).amax(2) / self.options.temperature
            right = members & prototypes.started
            return similar.logsumexp(1) * right.any(1) - (similar * right).sum(1)

    def warm_up_losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Returns the losses of a warm-up step, and collects rows that the prototypes start from."""
        _, supervised, features = reps.classify(self.trainer, images, labels)
        labels = resize_labels(labels, features.shape[-2:])
        with self.trainer.autocast():
            rows = reps.rows_of(features.detach())
            reps.push(self.rows, rows, reps.pixels_of(labels, self.trainer.data.num_classes))
        return {"total": supervised, "supervised": supervised}

    def after_step(self) -> None:
        """Moves the prototypes."""
        if self.seen is not None:
            self.prototypes.update(*self.seen, self.options.momentum)
            self.seen = None

    def report(self) -> dict[str, float]:
        """Returns the number of classes with prototypes. The others have no prototype loss."""
        return {"started": float(self.prototypes.started.sum())}
