"""Shared by the methods with a contrast of pixels: a head, random pixels of each class, and the loss.

Pixels are numbered over images, rows and columns. All shapes are static, and nothing waits for the device.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgcl_ops import FeatureTap, MemoryBank, ProjectionHead, density_contrast
from dgcl_ops.ops import gather_rows
from semi_supervised import distributed
from semi_supervised.teacher import Teacher


class Head:
    """A projection head on the features that the student's classifier sees, trained with the student.

    Args:
        trainer: the run.

    Attributes:
        module: the head.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        width = feature_dim(trainer)
        head = ProjectionHead(width, width, trainer.settings.projection_dim)
        head = distributed.with_shared_batch_norm(head, trainer.device)
        self.module: nn.Module = head.to(trainer.device)
        self.project = trainer.synchronised(self.module)

    def classify(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what `Trainer.classify` does, and the representations of all images, [N, E, h, w]."""
        logits, supervised, features = classify(self.trainer, images, labels)
        return logits, supervised, self.project(features)


class TeacherHead(Teacher):
    """The moving average of a head."""

    @torch.no_grad()
    def teach(self, trainer: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the teacher's logits at the images' size and at the features' size, and its representations."""
        self.train(trainer.settings.teacher_mode == "train")
        with trainer.autocast("bfloat16"), FeatureTap(trainer.teacher.module, "classifier") as tap:
            return *trainer.teacher.two_sizes(images), self(tap.pop())


def classify(trainer: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what `Trainer.classify` does, and the features that the classifier saw, [N, D, h, w]."""
    with FeatureTap(trainer.student, "classifier") as tap:
        return *trainer.classify(images, labels), tap.pop()


def feature_dim(trainer: Any) -> int:
    """Returns the channels of the features that the student's classifier sees."""
    with FeatureTap(trainer.student, "classifier") as tap:
        return tap.channels


def queue(trainer: Any, width: int, capacity: int, rows_per_push: int) -> MemoryBank:
    """Builds a bank of unit rows [C, capacity, width] that is never searched. `push` fills it."""
    options = {"capacity": capacity, "rows_per_push": rows_per_push, "backfill": False}
    options |= {"seed": trainer.settings.seed, "device": trainer.device}
    return MemoryBank(trainer.data.num_classes, width, 1, **options)


def rows_of(maps: Tensor) -> Tensor:
    """[B, D, h, w] -> [N, D], one row per pixel, in float32 or float64."""
    return maps.movedim(1, -1).flatten(0, 2).to(torch.promote_types(maps.dtype, torch.float32))


def pixels_of(labels: Tensor, num_classes: int) -> Tensor:
    """Returns which pixels have each label, [N, C] bool, for labels of any shape. Other labels have no class."""
    return labels.flatten()[:, None] == torch.arange(num_classes, device=labels.device)


def class_means(rows: Tensor, members: Tensor) -> Tensor:
    """Returns the mean row of each class, [C, D], or 0 without a member, for rows [N, D] and members [N, C] bool."""
    weights = members.T.to(rows.dtype)
    return weights @ rows / weights.sum(1, keepdim=True).clamp(min=1)


def draw(allowed: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Draws pixels of each class with replacement.

    Args:
        allowed: [N, C] bool, the pixels of each class to draw from.
        number: how many to draw.

    Returns:
        Pixels [C, number], which are arbitrary for a class without an allowed pixel, and the number of allowed pixels
        [C].
    """
    places = allowed.T.cumsum(1)  # the allowed pixels of each class, numbered from 1
    counts = places[:, -1]
    numbers = 1 + random_below(counts[:, None].expand(-1, number))
    pixels = torch.searchsorted(places.contiguous(), numbers)
    return pixels.clamp(max=len(allowed) - 1), counts


def random_below(counts: Tensor) -> Tensor:
    """Draws an integer in [0, count) for each count. For a count of 0, draws 0."""
    drawn = torch.rand(counts.shape, device=counts.device) * counts
    return torch.minimum(drawn.long(), counts - 1).clamp(min=0)  # the product may round up


def draw_similar(members: Tensor, keys: Tensor, temperature: float, number: int) -> Tensor:
    """Draws pixels of other classes with replacement. Class k is drawn in proportion to exp(cos(keys) / temperature).

    Args:
        members: [N, C] bool, the pixels of each class.
        keys: [C, D].
        temperature: of the softmax over the classes.
        number: how many to draw.

    Returns:
        Pixels [C, number]. They are arbitrary if no other class has a pixel.
    """
    counts, unit = members.sum(0), F.normalize(keys, dim=1)
    others = (counts > 0) & ~torch.eye(len(counts), dtype=torch.bool, device=keys.device)
    weights = (unit @ unit.T / temperature).exp() * others
    limits = weights.cumsum(1)
    places = torch.rand(len(counts), number, dtype=keys.dtype, device=keys.device)
    classes = torch.searchsorted(limits, places * limits[:, -1:], right=True)
    # Rounding may reach the last limit. The largest class index with a weight is then the right one.
    numbers = torch.arange(len(counts), device=keys.device)
    classes = torch.minimum(classes, (numbers * others).amax(1, keepdim=True))
    by_class = (members.to(torch.int8).argmax(1) + ~members.any(1) * len(counts)).argsort(
        stable=True
    )
    places = (counts.cumsum(0) - counts)[classes] + random_below(counts[classes])
    return by_class[places.clamp(max=len(members) - 1)]


def push(bank: MemoryBank, rows: Tensor, allowed: Tensor) -> None:
    """Appends random rows of each class to a bank, at most its `rows_per_push`. Their density is 0.

    Args:
        bank: the bank. Its projections have one channel, which stays 0.
        rows: [N, D].
        allowed: [N, C] bool, the rows of each class to draw from.
    """
    keys = torch.rand(allowed.T.shape, device=rows.device).masked_fill(~allowed.T, -1)
    chosen = rows[keys.topk(min(bank.rows_per_rank, len(rows))).indices]
    nothing = torch.zeros_like(chosen[..., 0])
    counts = allowed.sum(0).clamp(max=nothing.shape[1])
    bank.push_rows(chosen, nothing[..., None], nothing, counts)


def draw_rows(bank: MemoryBank, *shape: int) -> Tensor:
    """Draws rows of each class of a bank with replacement, [C, *shape, D]. They are arbitrary for an empty class."""
    numbers = torch.arange(bank.num_classes, device=bank.counts.device)
    classes = numbers.view(-1, *[1] * len(shape)).expand(-1, *shape)
    return bank.features[classes, random_below(bank.counts[classes])]


def mean_contrast(
    maps: Tensor,
    anchors: Tensor,
    keys: Tensor,
    negatives: Tensor,
    active: Tensor,
    temperature: float,
) -> Tensor:
    """Returns the mean of `density_contrast` over the anchors of the active classes, or 0 without one.

    Args:
        maps: [B, E, h, w], the representations. They receive the gradient.
        anchors: [C, A] int64, pixels.
        keys: [C, E].
        negatives: [C, M, E], shared by the anchors of a class, or [C, A, M, E], of each anchor.
        active: [C] bool. The others' anchors, keys and negatives are arbitrary.
        temperature: of the contrast.
    """
    rows, counts = gather_rows(maps, anchors), active * anchors.shape[1]
    if negatives.dim() == 4:  # one group per anchor
        number = anchors.shape[1]
        rows, negatives = rows.flatten(0, 1)[:, None], negatives.flatten(0, 1)
        keys, counts = (each.repeat_interleave(number, 0) for each in (keys, active.long()))
    losses = density_contrast(rows, keys, negatives, temperature, anchor_counts=counts)
    groups = counts.count_nonzero()
    return losses.sum() / groups.clamp(min=1)
