"""ReCo: regional contrast. Liu et al., ICLR 2022.

    L = CE(f(x), y) + W mean of eta CE(f(s), q) + W_c L_c,    e(a, b) = exp(cos(a, b) / tau)
    L_c = mean over c and i of -log [e(r_ci, r_c) / (e(r_ci, r_c) + sum over j of e(r_ci, n_cj))]

x: labelled images with labels y. u: weak view of the unlabelled images. s: u with boxes from other images. f: student,
f': teacher. q: argmax f'(u) with the same boxes, m: its probability. eta: for each image of s, the share of its pixels
with m >= delta_s. r: representations of x and s, by a head on f. p_c: probability of class c by f. Pixels of c: those
with label c, and those of s with q = c and m >= delta_w. r_ci: r at random pixels of c with p_c < delta_s. r_c: mean of
r over the pixels of c. n_cj: r at random pixels of other classes. The class is drawn first, class k in proportion to
e(r_c, r_k), and then one of its pixels. r_c and n_cj have no gradient. The means leave out borders.

Deviations:
- The anchors of a class share their negatives. The program draws new ones for each anchor.
- L_c is the mean over the classes with an anchor and a negative. The program divides by the number of classes.
- s is the strong view of all methods. The program always mixes, or uses CutOut or ClassMix instead. Then it changes
  colours, blurs and mirrors.
- The head is a `ProjectionHead` on the classifier's input. The program's has a 3x3 convolution.
- Labelled and mixed images share a batch norm. The program normalises them separately.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dgcl_ops import resize_labels
from semi_supervised.methods import representations as reps
from semi_supervised.methods.base import Method, Passes
from semi_supervised.methods.options import MethodOptions, Share, Temperature
from semi_supervised.methods.pixels import mean_over, most_likely
from semi_supervised.views import Views


@dataclass(frozen=True)
class Options(MethodOptions):
    """The hyper-parameters of ReCo."""

    weight: float = 1.0  # W
    contrast_weight: float = 1.0  # W_c
    threshold: Share = 0.97  # delta_s
    weak_threshold: Share = 0.7  # delta_w
    anchors: int = 256  # per class
    negatives: int = 512  # per class
    temperature: Temperature = 0.5  # tau


class ReCo(Method):
    """Pixels whose class is hard to predict, contrasted with pixels of similar classes."""

    Options = Options
    keys = frozenset({"projection_dim"})
    mixes = True
    step_passes = Passes(trained=2, forward=1)

    def __init__(self, trainer: Any, options: Options):
        super().__init__(trainer, options)
        self.head = reps.Head(trainer)
        self.networks = {"projection": self.head.module}

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Returns the losses of one step."""
        trainer, options, batch = self.trainer, self.options, views.batch
        ignore, count = trainer.data.ignore_index, len(batch.weak)
        confidence, label = most_likely(trainer.teach(batch.weak))
        confidence, label, inside = views.strong.paste(confidence, label, batch.inside)
        images = torch.cat((views.images, views.strong.images))
        logits, supervised, maps = self.head.classify(images, batch.labels)

        sure = (confidence >= options.threshold) & inside
        shares = sure.sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
        each = F.cross_entropy(logits[count:], label, reduction="none")
        unlabelled = mean_over(each * shares[:, None, None], inside)

        kept = (confidence >= options.weak_threshold) & inside
        known = torch.cat((batch.labels, label.masked_fill(~kept, ignore)))
        known = resize_labels(known, maps.shape[-2:])
        with trainer.autocast():
            p = F.interpolate(logits.detach(), maps.shape[-2:])  # nearest, like the labels
            contrast = self.contrast_of(maps, p, known)
        total = supervised + options.weight * unlabelled + options.contrast_weight * contrast
        parts = {"supervised": supervised, "unlabelled": unlabelled, "contrast": contrast}
        return {"total": total, **parts, "kept": shares.mean()}

    def contrast_of(self, maps: Tensor, logits: Tensor, known: Tensor) -> Tensor:
        """Returns L_c.

        Args:
            maps: [2B, E, h, w], r.
            logits: [2B, C, h, w], of f.
            known: [2B, h, w], labels of the pixels that have a class.
        """
        options, rows = self.options, reps.rows_of(maps.detach())
        members = reps.pixels_of(known, logits.shape[1])
        hard = members & (reps.rows_of(logits).softmax(1) < options.threshold)
        anchors, counts = reps.draw(hard, options.anchors)
        keys = reps.class_means(rows, members)
        negatives = rows[reps.draw_similar(members, keys, options.temperature, options.negatives)]
        present = members.any(0)
        active = (counts > 0) & (present.sum() > 1)
        return reps.mean_contrast(maps, anchors, keys, negatives, active, options.temperature)
