"""DGCL: self-training with the density-guided contrastive loss. Wang et al., CVPR 2023.

    L = CE(f(x), y) + W_u PLL(f(s), q_u) + W_c L_c

x: labelled images with labels y. u, s: weak and strong view of the unlabelled images. f: student, f': teacher.
q_u: argmax f'(u), without the pixels of highest entropy. PLL: cross-entropy over the pixels that are kept, times the
inverse of their share. L_c: density-guided contrast of the features of f, with labels y and with argmax f'(u) after a
stricter filter. The shares of dropped pixels fall during the training.

Keys: `unlabelled_weight` W_u, `contrast_weight` W_c, `contrast`, `contrast_view`, `density_of`, `projection_dim`.
Deviations from the authors' program: docs/methods.md lists them.

`contrast_weight=0` is self-training. It runs the same code, including the projection head, the loss and the memory
bank. Only the factor differs. Both runs therefore see the same batches, random numbers and batch-norm inputs. A control
that differs in any of these can move by more than the method does.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dgcl_ops import PseudoLabelLoss, entropy_filter, resize_labels
from dgcl_ops.schedules import classification_drop_fraction, contrast_drop_fraction
from semi_supervised.loading import Batch
from semi_supervised.methods import representations as reps
from semi_supervised.methods.base import Method, Passes
from semi_supervised.settings import Settings, contrast_loss
from semi_supervised.teacher import sees_labelled
from semi_supervised.views import Views


class PseudoLabels(NamedTuple):
    """The teacher's labels of the unlabelled images. Uncertain pixels have `ignore_index`.

    Attributes:
        classification: [B, H, W].
        contrast: [B, h, w], with far more pixels ignored. The weak view has the features' size, the strong view the
            images' size.
        confidence: [B, h, w] of the same pixels. None if the contrast does not use it.
        labelled_confidence: [B, h, w] of the labelled images, or None.
    """

    classification: Tensor
    contrast: Tensor
    confidence: Tensor | None
    labelled_confidence: Tensor | None


class DGCL(Method):
    """Self-training with the density loss."""

    keys = frozenset(("unlabelled_weight", "contrast_weight", "contrast", "contrast_view"))
    keys |= {"density_of", "projection_dim"}
    alone = False

    def __init__(self, *given: Any):
        super().__init__(*given)
        trainer, settings, data = self.trainer, self.trainer.settings, self.trainer.data
        self.weight = settings.contrast_weight
        self.head, width = reps.Head(trainer), reps.feature_dim(trainer)
        # DDP must not see the bank: it would broadcast the buffers.
        self.contrast = contrast_loss(settings, data, width, trainer.ranks).to(trainer.device)
        self.networks = {"projection": self.head.module}
        self.state = {"contrast": self.contrast}
        self.needs_confidence = self.contrast.strategy.by_confidence
        self.pseudo_label_loss = PseudoLabelLoss(data.ignore_index)

    @classmethod
    def passes(cls, settings: Settings, options: Any) -> Passes:
        trained = 3 if settings.contrast_view == "weak" else 2
        return Passes(trained, forward=2 if sees_labelled(settings) else 1)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Returns the losses of one step."""
        trainer, settings, batch = self.trainer, self.trainer.settings, views.batch
        pseudo, reliable, confidence, labelled_confidence = self.teach(batch)

        # The student sees all views in one batch.
        if settings.contrast_view == "weak":
            [pseudo] = views.strong.paste(pseudo)
            unmixed = [batch.weak]
        else:
            pseudo, reliable, confidence = views.strong.paste(pseudo, reliable, confidence)
            unmixed = []
        images = torch.cat((views.images, *unmixed, views.strong.images))
        logits, supervised, features = reps.classify(trainer, images, batch.labels)
        unlabelled = self.pseudo_label_loss(logits[-len(pseudo) :], pseudo)

        # The density loss computes densities from the features and sends its gradient to the projections. It also
        # fills the bank. It uses the labelled images and the unlabelled ones that follow them in the batch.
        projections, size = self.head.project(features), features.shape[-2:]
        small = torch.cat([resize_labels(each, size) for each in (batch.labels, reliable)])
        optional = ()
        if self.needs_confidence:
            halves = (labelled_confidence, confidence)
            optional = (torch.cat([F.interpolate(each[:, None], size)[:, 0] for each in halves]),)
        density_source = self.density_source(features, projections)[: len(small)]
        contrast = self.contrast(
            projections[: len(small)], small, density_source.detach(), *optional
        )

        total = supervised + settings.unlabelled_weight * unlabelled + self.weight * contrast
        parts = {"supervised": supervised, "unlabelled": unlabelled, "contrast": contrast}
        return {"total": total, **parts}

    def density_source(self, features: Tensor, projections: Tensor) -> Tensor:
        """Returns the maps, [B, D, h, w], that the bank stores and whose densities it computes."""
        return features if self.trainer.settings.density_of == "features" else projections

    def contrast_drop(self, progress: float) -> float:
        """Returns the share of pseudo labels that the contrast drops."""
        return contrast_drop_fraction(progress)

    def teach(self, batch: Batch) -> PseudoLabels:
        """Labels the weak view with the teacher and ignores the least certain pixels."""
        trainer, settings = self.trainer, self.trainer.settings
        count, images = len(batch.weak), batch.weak
        if sees_labelled(settings):
            images = torch.cat((batch.images, images))
        with torch.no_grad(), trainer.autocast("bfloat16"):
            logits, small = trainer.teacher.two_sizes(images)
        contrast_logits = small if settings.contrast_view == "weak" else logits
        progress = trainer.progress()
        classification, contrast = (
            entropy_filter(
                each[-count:],
                1 - drop,
                ignore_index=trainer.data.ignore_index,
                valid_mask=resize_labels(batch.inside, each.shape[-2:]),
            )
            for each, drop in (
                (logits, classification_drop_fraction(progress)),
                (contrast_logits, self.contrast_drop(progress)),
            )
        )
        labelled = unlabelled = None
        if self.needs_confidence:
            confidence = contrast_logits.softmax(1).amax(1)
            labelled, unlabelled = confidence.tensor_split((len(batch.images),))
        return PseudoLabels(classification, contrast, unlabelled, labelled)

    def report(self) -> dict[str, float]:
        """Returns the mean density of the bank's rows over the ready classes, or 0 if there are none."""
        state = self.contrast.diagnostics()
        ready = state["ready"]
        density = (state["mean_density"] * ready).sum() / ready.sum().clamp(min=1)
        return {"density": float(density)}
