"""Measures what advise.py needs, at the end of a run: the figures that say if the density loss is worth a trial."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dgcl_ops import FeatureTap, entropy_filter, resize_labels, viz
from semi_supervised import evaluate
from semi_supervised.images import batches

if TYPE_CHECKING:
    from semi_supervised.trainer import Trainer

SPARSE = 5  # 5: the sparsest fifth of each class


def measure(trainer: "Trainer", matrix: Tensor) -> dict:
    """Measures a finished run on the validation images.

    All ranks must call it, since each may hold only a shard of the bank.

    Args:
        trainer: the run.
        matrix: the predictor's confusion matrix for the validation images.

    Returns:
        A dict of plain numbers with
            validation_miou: in percent.
            validation_images: number of validation images.
            validated_on_test: whether these are also the test images.
            network: the network's class and number of parameters.
            labelled: number of labelled images.
            labelled_images, labelled_pixels: [C], numbers of labelled images and pixels of each class.
            pseudo_labels: see `pseudo_labels`. None without a density loss.
            bank: see `bank`. None without a density loss.
    """
    data, student = trainer.data, trainer.student
    parameters = sum(each.numel() for each in student.parameters())
    has_bank = trainer.contrast is not None
    return {
        "validation_miou": evaluate.mean_iou(matrix),
        "validation_images": len(data.val),
        "validated_on_test": data.val is data.test,
        "network": f"{type(student).__name__} with {parameters:,} parameters",
        "labelled": len(data.labelled_samples),
        "labelled_images": data.images.tolist(),
        "labelled_pixels": data.pixels.tolist(),
        "pseudo_labels": pseudo_labels(trainer, batches(data.val)) if has_bank else None,
        "bank": bank(trainer) if has_bank else None,
    }


def bank(trainer: "Trainer") -> dict:
    """Describes the bank of a finished run.

    Returns:
        A dict with
            capacity, rows_per_push, pushes: of the bank.
            rows: [C], rows that the bank holds.
            ready: [C], whether these are enough for a density.
            included: [C], whether the density loss uses the class.
            all_full: whether the loss waits until all banks are full.
    """
    contrast = trainer.contrast
    state = contrast.diagnostics()
    return {
        "capacity": contrast.bank.capacity,
        "rows_per_push": contrast.bank.rows_per_push,
        "pushes": int(state["num_pushes"]),
        "rows": state["rows"].tolist(),
        "ready": state["ready"].tolist(),
        "included": contrast.included.tolist(),
        "all_full": contrast.strategy.start == "all_full",
    }


@torch.no_grad()
def pseudo_labels(
    trainer: "Trainer", samples: Iterable[tuple[Tensor, Tensor]], *, per_group: int = 20_000
) -> dict[str, list[int]]:
    """Counts how many pseudo labels of the contrast are right at the end of training.

    The teacher labels whole images in eval mode. The entropy filter drops as large a share of the pixels as in the last
    step, from `settings.batch` images at a time. A pixel's density is that of the student's feature in the bank of the
    pseudo label's class. Pixels without a true label do not count.

    Args:
        trainer: the run.
        samples: batches of images and labels.
        per_group: largest number of pixels to draw from `settings.batch` images.

    Returns:
        Four lists with a count for each class that the pseudo labels name, [C]:
            pixels: kept pixels.
            right: kept pixels whose pseudo label is the true label.
            sparse_pixels, sparse_right: the same for the sparsest fifth of the class's kept pixels, rounded up. The
                anchors come from these pixels. 0 for a class without a density.
    """
    rng = np.random.default_rng(0)
    kept: list[list[Tensor]] = []
    for logits, rows, truth in _groups(trainer, samples):
        keep = 1 - trainer.method.contrast_drop(1.0)
        labels = entropy_filter(logits, keep, ignore_index=trainer.data.ignore_index)
        density = viz.feature_density(trainer.contrast.bank, rows, labels)
        counted = (labels != trainer.data.ignore_index) & (truth != trainer.data.ignore_index)
        chosen = counted.cpu().nonzero()[:, 0]
        chosen = chosen[rng.permutation(len(chosen))[:per_group]]
        kept.append([x.cpu()[chosen] for x in (labels, labels == truth, density)])
    classes, right, density = (torch.cat(parts) for parts in zip(*kept, strict=True))
    ready = trainer.contrast.bank.ready().tolist()
    counts: dict[str, list[int]] = {
        name: [] for name in ("pixels", "right", "sparse_pixels", "sparse_right")
    }
    for c in range(trainer.data.num_classes):
        own = right[classes == c]
        order = density[classes == c].argsort(stable=True)
        sparse = own[order[: -(-len(own) // SPARSE) * ready[c]]]
        numbers = len(own), own.sum(), len(sparse), sparse.sum()
        for name, number in zip(counts, numbers, strict=True):
            counts[name].append(int(number))
    return counts


def _groups(
    trainer: "Trainer", samples: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields logits [M, C], rows for the bank [M, D] and true labels [M] of the pixels of `settings.batch` images."""
    networks = trainer.student, trainer.teacher, trainer.method.head.module
    for network in networks:
        network.eval()
    weak, group, count = trainer.settings.contrast_view == "weak", [], 0
    for images, labels in samples:
        images = images.to(trainer.device, memory_format=torch.channels_last)
        with FeatureTap(trainer.student, "classifier") as tap:
            trainer.student(images)
            features = tap.pop()
        logits, small = trainer.teacher.two_sizes(images)
        maps = trainer.method.density_source(features, trainer.method.head.module(features))
        # In training, the strong view filters labels at full size. Here the logits shrink first.
        logits = small if weak else _resized(logits, maps.shape[-2:])
        truth = resize_labels(labels.to(trainer.device), maps.shape[-2:])
        group.append([x.movedim(1, -1).flatten(0, -2) for x in (logits, maps, truth[:, None])])
        count += len(images)
        if count >= trainer.settings.batch:
            yield _joined(group)
            group, count = [], 0
    if group:
        yield _joined(group)


def _resized(logits: Tensor, size: torch.Size) -> Tensor:
    """Resizes [B, C, H, W] to [B, C, h, w]. Picks the same pixels as `resize_labels`."""
    for dim, side in zip((2, 3), size, strict=True):
        places = torch.arange(side, device=logits.device) * logits.shape[dim] // side
        logits = logits.index_select(dim, places)
    return logits


def _joined(group: list[list[Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    logits, rows, truth = (torch.cat(parts) for parts in zip(*group, strict=True))
    return logits, rows.float(), truth[:, 0]
