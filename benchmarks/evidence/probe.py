"""DGCL with changes that only an experiment can make, on scenes whose true labels are known."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from semi_supervised.augment import random_crop
from semi_supervised.loading import Batch
from semi_supervised.methods import METHODS
from semi_supervised.methods.dgcl import DGCL, PseudoLabels
from semi_supervised.methods.options import MethodOptions, Rule, Share
from semi_supervised.network import SegmentationNetwork
from semi_supervised.scenes import CROP, DigitScenes, draw_scenes
from semi_supervised.settings import Settings
from semi_supervised.trainer import Trainer
from torch import Tensor

from dgcl_ops import FeatureTap, resize_labels
from dgcl_ops.schedules import linear_schedule

LABELS = ("pseudo", "labelled", "right", "true")


class KnownScenes(DigitScenes):
    """Scenes that remember the true labels of the last unlabelled batch: `truth`, [B, h, w]."""

    def __init__(self, labelled: int, unlabelled: int, seed: int, evaluated: int):
        super().__init__(labelled, unlabelled, seed, evaluated)
        self._true_labels = draw_scenes(labelled + unlabelled, "train", seed)[1][labelled:]

    def unlabelled(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """See `DigitScenes.unlabelled`."""
        chosen = rng.integers(len(self.unlabelled_images), size=count)
        crops = [
            random_crop(
                self.unlabelled_images[i], self._true_labels[i], (CROP, CROP), rng, scale=(0.9, 1.1)
            )
            for i in chosen
        ]
        images, self.truth = map(torch.stack, zip(*crops, strict=True))
        return images, torch.ones(self.truth.shape, dtype=torch.bool)


@dataclass(frozen=True)
class Probe(MethodOptions):
    """The differences from DGCL.

    Attributes:
        labels: which labels the contrast uses, one of LABELS.
        drop: shares of pseudo labels that the contrast drops, at the start and at the end. None: as published.
        from_progress: share of the training before which the contrast has weight 0.
        teacher_bank: whether densities and bank use the teacher's features.
    """

    labels: Annotated[str, Rule(f"be one of {', '.join(LABELS)}", LABELS.__contains__)] = "pseudo"
    drop: Annotated[tuple[float, ...] | None, Rule("be two", lambda drop: len(drop) == 2)] = None
    from_progress: Share = 0.0
    teacher_bank: bool = False


class ProbedDGCL(DGCL):
    """DGCL with changes that make sense only in an experiment."""

    Options = Probe

    def __init__(self, *given: Any):
        super().__init__(*given)
        self.full_weight, self.features, self.right = self.weight, None, []

    def losses(self, views: Any) -> dict[str, Tensor]:
        """See DGCL."""
        started = self.trainer.progress() >= self.options.from_progress
        self.weight = self.full_weight if started else 0.0
        return super().losses(views)

    def density_source(self, features: Tensor, projections: Tensor) -> Tensor:
        """See DGCL."""
        return self.features if self.options.teacher_bank else features

    def contrast_drop(self, progress: float) -> float:
        """See DGCL."""
        drop = self.options.drop
        return super().contrast_drop(progress) if drop is None else linear_schedule(*drop, progress)

    def teach(self, batch: Batch) -> PseudoLabels:
        """See DGCL."""
        tapped = FeatureTap(self.trainer.teacher.module, "classifier")
        with tapped if self.options.teacher_bank else nullcontext() as tap:
            pseudo = super().teach(batch)
            self.features = tap.pop() if tap else None
        used, ignore = pseudo.contrast, self.trainer.data.ignore_index
        truth = resize_labels(self.trainer.data.truth, used.shape[-2:])
        kept = used != ignore
        self.right.append(float((used == truth)[kept].float().mean()))
        changed = {
            "pseudo": used,
            "labelled": torch.full_like(used, ignore),
            "right": used.where(used == truth, ignore),
            "true": truth,
        }
        return pseudo._replace(contrast=changed[self.options.labels])


def build(data: KnownScenes, settings: Settings) -> Trainer:
    """Builds a run. No other run knows the method "probe". The weights at the start depend on the seed only."""
    torch.manual_seed(settings.seed)
    METHODS["probe"] = ProbedDGCL
    try:
        return Trainer(SegmentationNetwork(data.num_classes), data, settings)
    finally:
        del METHODS["probe"]
