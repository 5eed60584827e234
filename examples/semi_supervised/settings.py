"""The settings of a run, and what is built from them: density loss, optimizer, weights of pixels."""

import difflib
import math
import types
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import numpy as np
import torch
from torch import Tensor, nn

from dgcl_ops import DensityContrastLoss

# Allowed values of the settings that name one.
CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "ema_from": ("start", "warm_up"),
    "teacher_mode": ("train", "eval"),
    "teacher_averages": ("student", "own"),
    "cutmix_mode": ("image", "batch"),
    "schedule_by": ("step", "epoch"),
    "precision": ("float32", "bfloat16", "float16"),
    "contrast_view": ("weak", "strong"),
    "density_of": ("features", "projections"),
}

# Without these checks a wrong value fails late: a wrong decay of the teacher only an epoch after the warm-up.
SHARES = ("cutmix", "ema_maximum")
FACTORS = (
    *("contrast_weight", "unlabelled_weight", "auxiliary_weight", "learning_rate", "head_factor"),
    *("momentum", "weight_decay", "jitter", "balance"),
)

# Keys of earlier versions, and their replacements.
REPLACED = {"bfloat16": "precision=bfloat16 or precision=float32"}

# The paper's bank and samples, scaled to our maps: a tenth of the rows, 16 pushes to fill the bank.
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
    """Everything that determines what a run computes, apart from the data and the network."""

    seed: int = 0
    # Its name and its options, see `methods`. Without options, {"name": ...}.
    method: dict = field(default_factory=lambda: {"name": "dgcl"})
    contrast_weight: float = 0.5  # 0: plain self-training
    unlabelled_weight: float = 0.5
    steps: int = 500
    warm_up: int = (
        160  # first steps, with labelled images only; equal to `steps`: supervised training
    )
    epoch_steps: int = 1  # steps per epoch, for `ema_from`, `schedule_by` and ps_mt
    batch: int = 8  # labelled images per step, and as many unlabelled ones
    optimizer: str = "adamw"  # or "sgd"
    learning_rate: float = 3e-3
    head_factor: float = 1.0  # learning rate factor outside `network.backbone`
    momentum: float = 0.9  # SGD only
    weight_decay: float = 1e-2
    ema_maximum: float = 0.97  # the paper uses 0.999 for runs that are a hundred times longer
    # "start": the teacher averages from the first step. "warm_up": it copies the student until one epoch after the
    # warm-up, and counts its updates from the end of the warm-up.
    ema_from: str = "start"
    # Batch norm of the teacher. "train": statistics of the batch, as in the paper. "eval": the running averages.
    teacher_mode: str = "train"
    # The teacher's running averages, used in evaluation. "student": copied from the student. "own": updated by its own
    # forward passes after the warm-up.
    teacher_averages: str = "student"
    cutmix: float = 0.5  # probability
    cutmix_mode: str = "image"  # or "batch": see `augment.cutmix`
    schedule_by: str = "step"  # or "epoch": how often the fractions of dropped pseudo labels change
    jitter: float = 0.4  # strength of the student's colour changes; 0: none
    # 0.5: a class that is a hundred times rarer weighs ten times more in the supervised loss
    balance: float = 0.0
    # [0.7, 100_000]: use labelled pixels whose class has a probability of at most 0.7, but at least 100,000 pixels
    ohem: list | None = None
    auxiliary_weight: float = 0.0  # weight of the second head's supervised loss
    # "bfloat16": autocast for student and teacher. "float16": autocast for the student, with a gradient scaler; the
    # teacher stays in float32. float16 convolutions are very slow on a CPU.
    precision: str = "float32"
    # The unlabelled images that the density loss and the bank use. "weak": unmixed, with labels filtered at the
    # features' size. "strong": mixed, with labels filtered at full size. "strong" sends a third fewer images through
    # the student.
    contrast_view: str = "weak"
    projection_dim: int = 32
    density_of: str = "features"  # or "projections"
    # Arguments of DensityContrastLoss; {"paper": "voc"} takes DensityContrastLoss.paper.
    contrast: dict = field(default_factory=lambda: dict(SMALL))

    def __post_init__(self):
        check_types(self)
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in FACTORS:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be finite and not negative, got {getattr(self, name)}"
                )
        if self.ohem is not None:
            check_ohem(self.ohem)
        if self.epoch_steps < 1:
            raise ValueError(f"epoch_steps must be at least 1, got {self.epoch_steps}")
        if (self.teacher_mode, self.teacher_averages) == ("eval", "own"):
            raise ValueError(
                "teacher_averages must be 'student' with teacher_mode 'eval', got 'own'; "
                "forward passes in eval mode do not update the averages"
            )


def check_ohem(ohem: list) -> None:
    numbers = len(ohem) == 2 and all(type(each) in (int, float) for each in ohem)
    if not numbers or not (0 < ohem[0] <= 1 <= ohem[1]):
        raise ValueError(
            f"ohem must hold a probability above 0 and a number of pixels of at least 1, got {ohem}"
        )


def check_types(values: Any) -> None:
    """Raises TypeError if a field of a dataclass does not have its declared type."""
    for each in fields(values):
        value, kind = getattr(values, each.name), each.type
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        if not fits(value, kind):
            raise TypeError(
                f"{each.name} must be of type {getattr(kind, '__name__', kind)}, got {value!r}"
            )


def fits(value: Any, kind: Any) -> bool:
    """Returns whether a YAML value has a declared type. Lists fit tuples, strings fit paths, ints fit floats."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(fits(each, inner[0]) for each in value)
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    return isinstance(value, {float: int | float, Path: str | Path}.get(kind, kind))


def refuse_unknown(keys: Iterable[str], known: set[str], where: str) -> None:
    """Raises ValueError for a key that is not known, and suggests similar ones."""
    for key in sorted(set(keys) - known):
        if key in REPLACED:
            raise ValueError(f"unknown key {key!r} of {where}; it is now {REPLACED[key]}")
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or sorted(known)
        similar = f"similar keys: {', '.join(near)}" if near else "it has no keys"
        raise ValueError(f"unknown key {key!r} of {where}; {similar}")


def contrast_loss(
    settings: Settings, data: Any, feature_dim: int, ranks: int
) -> DensityContrastLoss:
    """Builds the density loss that `settings.contrast` describes.

    Args:
        settings: see Settings.
        data: has `num_classes` and `ignore_index`.
        feature_dim: channels of the features.
        ranks: number of processes. They share one bank, "replicated" (the default) or "sharded". The published
            loss divides its gradient by this number.

    Raises:
        ValueError: If an argument does not fit.
    """
    arguments = {"ignore_index": data.ignore_index, "seed": settings.seed, **settings.contrast}
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    if ranks > 1 and arguments.get("placement") == "local":
        raise ValueError(
            f"contrast.placement must be 'replicated' or 'sharded' on {ranks} ranks, since a checkpoint holds one "
            "bank, got 'local'"
        )
    if settings.density_of == "projections":
        feature_dim = settings.projection_dim
    sizes = data.num_classes, feature_dim, settings.projection_dim
    try:
        if "paper" in arguments:
            name = arguments.pop("paper")
            return DensityContrastLoss.paper(name, *sizes, **{"world_size": ranks, **arguments})
        return DensityContrastLoss(*sizes, **arguments)
    except TypeError as error:
        raise ValueError(f"contrast: {error}") from None


def check_network(settings: Settings, network: nn.Module, images: int, alone: bool) -> None:
    """Checks that a network can be trained with the settings.

    Args:
        settings: see Settings.
        network: see Trainer.
        images: labelled images that a batch norm sees per step, over all ranks that normalise together.
        alone: whether the method sends only this many images through a network at once after the warm-up, too.
            Otherwise it sends at least twice as many.

    Raises:
        ValueError: If a setting does not fit the network.
    """
    name, weight = type(network).__name__, settings.auxiliary_weight
    if bool(weight) != (getattr(network, "auxiliary", None) is not None):
        raise ValueError(
            f"auxiliary_weight must be positive with an auxiliary head and 0 without, got {weight} for {name}"
        )
    least = getattr(network, "min_batch", 1)
    if (settings.warm_up or alone) and images < least:
        why = "a warm-up" if settings.warm_up else f"method {settings.method['name']}"
        raise ValueError(
            f"batch must be at least {least} with network {name} and {why}, got {settings.batch}: the batch norm "
            "after its image pooling sees one value per image"
        )


def optimizer(settings: Settings, *networks: nn.Module) -> torch.optim.Optimizer:
    """Builds AdamW or SGD. `network.backbone`, if there is one, trains at the plain learning rate."""
    backbones = (getattr(network, "backbone", nn.Module()) for network in networks)
    backbone = {id(p) for each in backbones for p in each.parameters()}
    trained = [p for network in networks for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in backbone], "factor": 1.0},
        {"params": [p for p in trained if id(p) not in backbone], "factor": settings.head_factor},
    ]
    options = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, **options)
    return torch.optim.AdamW(groups, **options)


def hard_pixels(pixel_loss: Tensor, probability: float, least: int) -> Tensor:
    """Selects the pixels whose correct class has at most a given probability.

    Args:
        pixel_loss: -log(probability of the correct class) of each pixel, 0 without a label. No gradient.
        probability: the limit.
        least: minimum number of pixels to select. Those with the largest loss come first.

    Returns:
        A mask of `pixel_loss`'s shape.
    """
    enough = pixel_loss.flatten().topk(min(int(least), pixel_loss.numel())).values[-1]
    return pixel_loss >= enough.clamp(max=-math.log(probability))


def class_weights(pixels: np.ndarray, balance: float) -> Tensor:
    """Returns (median pixels of a class / pixels of class c) ** balance, clamped to [1/4, 5].

    Args:
        pixels: [C], labelled pixels of each class.
        balance: the exponent.

    Returns:
        [C] float32.
    """
    pixels = torch.as_tensor(pixels, dtype=torch.float32)
    return (pixels[pixels > 0].median() / pixels.clamp(min=1)).pow(balance).clamp(0.25, 5)
