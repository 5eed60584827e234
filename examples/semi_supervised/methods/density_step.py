"""Density step: pseudo labels for features that took a step into a sparser region. Ours, after DDFP.

    L = CE(f(x), y) + W [l(h) + l(h + r)] / 2,    l(.) = mean of 1[m >= tau] CE(g(.), q)
    r = -eps |h| d / |d|,    d = gradient of rho_q at h

x: labelled images with labels y. u: weak view of the unlabelled images. s: u with other colours, and boxes from other
images. f: student, f': teacher. q: argmax f'(u), m: its probability, both with the same boxes. h: features of s, the
input of f's classifier g; r has no gradient. rho_c: density of a feature among the memory bank's rows of class c, the
mean cosine to its nearest neighbours. `knn_density` differentiates it. The bank takes the features of x and s, with
labels y and with q where m >= tau. r is 0 for the other pixels of s, and while class q is not ready. The means run over
all pixels except borders. Labelled and mixed images share a batch norm.

This method follows DDFP (Wang et al., CVPR 2024). DDFP differs in these points:
- It fits a normalising flow to the teacher's features. One density serves all classes.
- It perturbs the input of the decoder's last three convolutions, and gives it batch norms of its own. Here only g sees
  the perturbed features.
- Its step has length 4. Ours is relative to |h|, since the cosine does not depend on |h|: a feature rotates by
  atan(eps). We have not tuned eps.
- Its unlabelled loss is the mean over the kept pixels only.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dgcl_ops import MemoryBank, resize_labels
from semi_supervised.methods import representations as reps
from semi_supervised.methods.base import Method, Passes
from semi_supervised.methods.options import MethodOptions, Share
from semi_supervised.methods.pixels import confident_cross_entropy, most_likely, share
from semi_supervised.views import Views


@dataclass(frozen=True)
class Options(MethodOptions):
    """The hyper-parameters of the density step."""

    weight: float = 1.0  # W
    threshold: Share = 0.95  # tau; 0 keeps all pixels
    step: float = 0.5  # eps
    bank_capacity: int = 1024  # rows per class
    rows_per_push: int = 64  # per class and step


class DensityStep(Method):
    """Pseudo labels above a fixed confidence, for the features and for a sparser region."""

    Options = Options
    mixes = True
    step_passes = Passes(trained=2, forward=1)

    def __init__(self, trainer: Any, options: Options):
        super().__init__(trainer, options)
        self.bank = MemoryBank(
            trainer.data.num_classes,
            reps.feature_dim(trainer),
            1,
            capacity=options.bank_capacity,
            rows_per_push=options.rows_per_push,
            seed=trainer.settings.seed,
            device=trainer.device,
        )
        self.state = {"bank": self.bank}

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Returns the losses of one step."""
        trainer, strong, options, batch = self.trainer, views.strong, self.options, views.batch
        ignore, count = trainer.data.ignore_index, len(batch.weak)
        confidence, label = most_likely(trainer.teach(batch.weak))
        confidence, label, inside = strong.paste(confidence, label, batch.inside)
        kept = confidence >= options.threshold
        known = torch.cat((batch.labels, label.masked_fill(~(kept & inside), ignore)))
        read = []

        def append_step(_: Any, inputs: tuple[Tensor]) -> Tensor:
            [features] = inputs
            small = resize_labels(known, features.shape[-2:])
            moved = self.step_down(features[count:].detach(), small[count:])
            read.extend((features.detach(), small, moved))
            return torch.cat((features, features[count:] + moved))

        images = torch.cat((views.images, strong.images))
        with trainer.student.classifier.register_forward_pre_hook(append_step):
            logits, supervised = trainer.classify(images, batch.labels)
        features, small, moved = read
        self.bank.push(features, features[:, :1], small, ignore_index=ignore)

        plain, stepped = (
            confident_cross_entropy(each, label, kept, inside)
            for each in logits[count:].split(count)
        )
        total = supervised + options.weight * (plain + stepped) / 2
        parts = {"supervised": supervised, "unlabelled": plain, "stepped": stepped}
        parts["moved"] = moved.detach().any(1).float().mean()  # share of the features of s
        return {"total": total, **parts, "kept": share(kept, inside)}

    def step_down(self, features: Tensor, labels: Tensor) -> Tensor:
        """Returns r for features [B, D, h, w] without a gradient, and labels [B, h, w]."""
        classes = torch.arange(self.bank.num_classes + 1, device=labels.device)
        numbers = labels.flatten()
        numbers = numbers.where(numbers != self.trainer.data.ignore_index, classes[-1])
        numbers, order = numbers.sort(stable=True)
        rows = features.movedim(1, -1).flatten(0, 2)
        with self.trainer.autocast():  # off
            queries = rows[order].to(torch.promote_types(rows.dtype, torch.float32))
            queries.requires_grad_()
            density = self.bank.density_of(queries, torch.searchsorted(numbers, classes))
            [gradient] = torch.autograd.grad(density.sum(), queries)
            lengths = queries.detach().norm(dim=1, keepdim=True)
            steps = -self.options.step * lengths * F.normalize(gradient, dim=1)
        moved = torch.empty_like(rows)
        moved[order] = steps.to(rows.dtype)
        return moved.view(*labels.shape, -1).movedim(-1, 1)
