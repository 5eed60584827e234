"""Semi-supervised training with an EMA teacher, and the density-guided contrastive loss added to it.

`Trainer.losses` is the method; the rest of the file is book-keeping.

With `contrast_weight=0` the very same code runs, projection head, loss and memory bank included; only the factor
differs. Both runs therefore see the same batches, the same random numbers and the same batch-norm inputs: a control
that differs in any of these can move by more than the method does.
"""

import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from dgcl_ops import (
    DensityContrastLoss,
    FeatureTap,
    ProjectionHead,
    PseudoLabelLoss,
    entropy_filter,
    resize_labels,
)
from dgcl_ops.labels import (
    classification_drop_fraction,
    contrast_drop_fraction,
    ema_decay,
    poly_learning_rate,
    training_progress,
)
from semi_supervised.augment import cutmix, jitter

# The paper's bank and samples, in proportion to our maps: a tenth of the rows, 16 pushes to fill the bank.
SMALL = {
    "bank_capacity": 1024,
    "rows_per_push": 64,
    "max_candidates": 512,
    "num_anchors": 32,
    "num_keys": 16,
    "num_negatives": 256,
}


@dataclass(frozen=True)
class Settings:
    """All that decides what a run computes, besides the data and the network."""

    seed: int = 0
    contrast_weight: float = 0.5  # 0: plain self-training
    unlabelled_weight: float = 0.5
    steps: int = 500
    warm_up: int = 160  # first steps, on labelled images only; all `steps`: supervised training
    batch: int = 8  # labelled images a step, and as many unlabelled ones
    optimizer: str = "adamw"  # or "sgd"
    learning_rate: float = 3e-3
    head_factor: float = 1.0  # times the learning rate, for all but `network.backbone`
    momentum: float = 0.9  # of SGD
    weight_decay: float = 1e-2
    ema_maximum: float = 0.97  # 0.999 in the paper, whose runs are a hundred times longer
    teacher_mode: str = "train"  # batch norm by the batch, as in the paper; "eval": by the averages
    cutmix: float = 0.5  # probability
    balance: float = (
        0.0  # 0.5: a class a hundred times rarer weighs ten times more in the supervised loss
    )
    bfloat16: bool = False  # autocast
    projection_dim: int = 32
    density_of: str = "features"  # or "projections"
    # Arguments of DensityContrastLoss; {"paper": "voc"} takes DensityContrastLoss.paper.
    contrast: dict = field(default_factory=lambda: dict(SMALL))

    def __post_init__(self):
        for name, choices in (
            ("optimizer", ("adamw", "sgd")),
            ("teacher_mode", ("train", "eval")),
            ("density_of", ("features", "projections")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")


class Trainer:
    """Trains a network on labelled and unlabelled images.

    Args:
        network: logits [B, C, H, W] of images [B, 3, H, W]; its `classifier` reads features [B, D, h, w]. Its
            `backbone`, if it has one, learns at the plain rate, the rest at `head_factor` times that. Parameters
            that need no gradient stay as they are.
        data: `num_classes`, `ignore_index`, `labelled(count, rng)` -> (images, labels), `unlabelled(count, rng)` ->
            images, both drawing from the generator they are given and from nothing else; `description()` -> dict,
            what a resumed run must find again; for `settings.balance` also `pixels`, each class's labelled pixels.
        settings: see Settings.
        device: where to train.

    Attributes:
        student, teacher: the network, and its moving average: the one to evaluate and to keep.
        history: what `run` recorded: dicts of step, losses and the mean density of the bank.
    """

    def __init__(self, network: nn.Module, data, settings: Settings, device="cpu"):
        self.data, self.settings, self.device = data, settings, torch.device(device)
        self.step, self.history = 0, []
        self.student = network.to(self.device, memory_format=torch.channels_last)
        self.teacher = AveragedModel(self.student, avg_fn=self._average)
        self.teacher.requires_grad_(False)
        self.tap = FeatureTap(self.student, "classifier")
        feature_dim = self.student.classifier.in_channels
        self.projection = ProjectionHead(feature_dim, feature_dim, settings.projection_dim)
        self.contrast = contrast_loss(settings, data, feature_dim)
        self.projection.to(self.device)
        self.contrast.to(self.device)
        strategy = self.contrast.strategy
        self.asks_confidence = "confidence" in strategy.anchors + strategy.keys
        self.class_weights = torch.ones(data.num_classes, device=self.device)
        if settings.balance:
            self.class_weights = class_weights(data.pixels, settings.balance).to(self.device)
        self.pseudo_label_loss = PseudoLabelLoss(data.ignore_index)
        self.optimizer = optimizer(settings, self.student, self.projection)

    # ---- the method -----------------------------------------------------------------------------

    def losses(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """The losses of one step; "total" is the one to minimise."""
        settings, ignore = self.settings, self.data.ignore_index
        images, labels, weak = self.draw(rng)
        labelled = len(images)

        # The teacher labels the weak view. Its least certain pixels are ignored, far more of them for the contrast.
        with torch.no_grad():
            logits = self.teacher(torch.cat((images, weak)))
        progress = training_progress(self.step, settings.warm_up, settings.steps)
        pseudo, reliable = (
            entropy_filter(logits[labelled:], 1 - drop(progress), ignore_index=ignore)
            for drop in (classification_drop_fraction, contrast_drop_fraction)
        )
        views = [jitter(weak, rng), pseudo, reliable]
        if self.asks_confidence:
            confidence = logits.softmax(1).amax(1)
            views.append(confidence[labelled:])

        # The student sees both halves in one batch: other colours, and boxes of other images in the unlabelled half.
        strong, pseudo, reliable, *rest = cutmix(rng, *views, probability=settings.cutmix)
        logits = self.student(torch.cat((jitter(images, rng), strong)))
        features = self.tap.pop()
        supervised = self.supervised(logits[:labelled], labels)
        unlabelled = self.pseudo_label_loss(logits[labelled:], pseudo)

        # The density loss: projections get the gradient, features the densities, and the bank fills in passing.
        projections, size = self.projection(features), features.shape[-2:]
        small = resize_labels(torch.cat((labels, reliable)), size)
        if self.asks_confidence:
            rest = [F.interpolate(torch.cat((confidence[:labelled], *rest))[:, None], size)[:, 0]]
        densities_of = features if settings.density_of == "features" else projections
        contrast = self.contrast(projections, small, densities_of.detach(), *rest)

        total = supervised + settings.unlabelled_weight * unlabelled
        total = total + settings.contrast_weight * contrast
        return {
            "total": total,
            "supervised": supervised,
            "unlabelled": unlabelled,
            "contrast": contrast,
        }

    def warm_up_losses(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """The same for a step of the warm-up, in which there is no teacher worth asking."""
        images, labels, _ = self.draw(rng)
        logits = self.student(jitter(images, rng))
        self.tap.pop()
        supervised = self.supervised(logits, labels)
        return {"total": supervised, "supervised": supervised}

    def supervised(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with class weights; 0, and not NaN, where no pixel has a label."""
        ignore = self.data.ignore_index
        surprise = F.cross_entropy(logits, labels, ignore_index=ignore, reduction="none")
        weights = self.class_weights[labels.clamp(max=len(self.class_weights) - 1)]
        weights = weights * (labels != ignore)
        return (weights * surprise).sum() / weights.sum().clamp(min=1)

    # ---- the steps around it --------------------------------------------------------------------

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Images and labels of the labelled half of a batch, and the weak view of the unlabelled half."""
        images, labels = self.data.labelled(self.settings.batch, rng)
        weak = self.data.unlabelled(self.settings.batch, rng)
        images, weak = (
            x.to(self.device, memory_format=torch.channels_last) for x in (images, weak)
        )
        return images, labels.to(self.device), weak

    def train_step(self) -> dict[str, Tensor]:
        """One step. All its random numbers come from (seed, step), so a resumed run continues exactly."""
        settings = self.settings
        rng = np.random.default_rng((settings.seed, self.step))
        self.student.train()
        self.teacher.train(settings.teacher_mode == "train")
        warm_up = self.step < settings.warm_up
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.bfloat16):
            losses = self.warm_up_losses(rng) if warm_up else self.losses(rng)
        for group in self.optimizer.param_groups:
            rate = poly_learning_rate(settings.learning_rate, self.step, settings.steps)
            group["lr"] = rate * group["factor"]
        self.optimizer.zero_grad()
        losses["total"].backward()
        self.optimizer.step()
        self.teacher.update_parameters(self.student)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def _average(self, average, current, _):
        return average.lerp(current, 1 - ema_decay(self.step, self.settings.ema_maximum))

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
        """
        until = self.settings.steps if until is None else min(until, self.settings.steps)
        while self.step < until:
            losses = self.train_step()
            if self.step % record_every == 0 or self.step == self.settings.steps:
                record = {name: float(loss) for name, loss in losses.items()}
                self.history.append({"step": self.step, **record, "density": self.mean_density()})
            after_step(self)

    def mean_density(self) -> float:
        """Mean density of the rows in the bank, over the classes that are ready; 0 while there are none."""
        state = self.contrast.diagnostics()
        ready = state["ready"]
        return float((state["mean_density"] * ready).sum() / ready.sum().clamp(min=1))

    # ---- checkpoints ----------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Writes all that the next step depends on, the memory bank included; never half a file."""
        state = {name: getattr(self, name).state_dict() for name in self._parts}
        state |= {"step": self.step, "history": self.history, "run": self._description()}
        unfinished = path.with_suffix(".unfinished")
        torch.save(state, unfinished)
        unfinished.replace(path)

    def load(self, path: Path) -> None:
        """Continues from a checkpoint of a run with the same settings and data.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no checkpoint, or a setting or the data differ.
        """
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            stored = state["run"]
        except (RuntimeError, pickle.UnpicklingError, KeyError, TypeError):
            raise ValueError(f"{path} is no checkpoint of this program") from None
        ours = self._description()
        for name in ours.keys() | stored.keys():
            if stored.get(name) != ours.get(name):
                raise ValueError(
                    f"{name} must be {stored.get(name)!r} as in the checkpoint {path}, "
                    f"got {ours.get(name)!r}"
                )
        for name in self._parts:
            getattr(self, name).load_state_dict(state[name])
        self.step, self.history = state["step"], state["history"]

    def _description(self):
        return asdict(self.settings) | self.data.description()

    _parts = ("student", "teacher", "projection", "contrast", "optimizer")


def contrast_loss(settings: Settings, data, feature_dim: int) -> DensityContrastLoss:
    """The loss that `settings.contrast` describes, for these data."""
    arguments = {"ignore_index": data.ignore_index, "seed": settings.seed, **settings.contrast}
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    if settings.density_of == "projections":
        feature_dim = settings.projection_dim
    sizes = data.num_classes, feature_dim, settings.projection_dim
    if "paper" in arguments:
        return DensityContrastLoss.paper(arguments.pop("paper"), *sizes, **arguments)
    return DensityContrastLoss(*sizes, **arguments)


def optimizer(settings: Settings, network: nn.Module, projection: nn.Module):
    """AdamW or SGD; `network.backbone`, if there is one, at the plain learning rate."""
    backbone = {id(p) for p in getattr(network, "backbone", nn.Module()).parameters()}
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in backbone], "factor": 1.0},
        {
            "params": [p for p in trained if id(p) not in backbone] + [*projection.parameters()],
            "factor": settings.head_factor,
        },
    ]
    options = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, **options)
    return torch.optim.AdamW(groups, **options)


def class_weights(pixels: np.ndarray, balance: float) -> Tensor:
    """(median pixels of a class / pixels of class c) ** balance, within [1/4, 5]: [C]."""
    pixels = torch.as_tensor(pixels, dtype=torch.float32)
    return (pixels[pixels > 0].median() / pixels.clamp(min=1)).pow(balance).clamp(0.25, 5)
