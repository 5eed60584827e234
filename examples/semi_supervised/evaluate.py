"""Evaluates a network: IoU of its predictions, cluster scores and densities of its features."""

from collections.abc import Iterable
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from dgcl_ops import (
    DensityContrastLoss,
    FeatureTap,
    calinski_harabasz_score,
    davies_bouldin_score,
    resize_labels,
    silhouette_score,
    viz,
)
from semi_supervised.augment import border_sides, with_border
from semi_supervised.images import batches

SCORES = {
    "silhouette": silhouette_score,
    "calinski_harabasz": calinski_harabasz_score,
    "davies_bouldin": davies_bouldin_score,
}


@torch.no_grad()
def confusion_matrix(
    network: nn.Module,
    samples: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    ignore_index: int,
) -> Tensor:
    """Counts pixels by label and prediction.

    In a process group each rank passes its own samples and gets the counts of all ranks.

    Args:
        network: returns logits [B, C, H, W] for images [B, 3, H, W].
        samples: batches of images and labels.
        num_classes: C.
        ignore_index: label of pixels that do not count.

    Returns:
        [C, C] int64.
    """
    network.eval()
    device = next(network.parameters()).device
    options = {"ignore_index": ignore_index, "validate_args": False}
    counts = MulticlassConfusionMatrix(num_classes, **options).to(device)
    for images, labels in samples:
        counts.update(predict(network, images), labels.to(device))
    return counts.compute().cpu()


@torch.no_grad()
def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Returns the class of each pixel, [B, H, W], on the network's device."""
    device = next(network.parameters()).device
    return network(images.to(device, memory_format=torch.channels_last)).argmax(1)


class Windows(nn.Module):
    """Predicts an image in overlapping windows and averages the logits at each pixel.

    The stride is two thirds of the window, rounded up. The last window ends at the image's edge. An image smaller than
    the window gets a border. Its logits are cut off. The network sees one window at a time. Input: images
    [B, 3, H, W]. Output: logits [B, C, H, W].

    Args:
        network: returns logits [B, C, h, w] for images [B, 3, h, w].
        window: height and width of a window.
        border_colour: one of augment.BORDER_COLOURS.
    """

    def __init__(self, network: nn.Module, window: tuple[int, int], border_colour: str):
        super().__init__()
        self.network, self.window, self.border_colour = network, tuple(window), border_colour

    def forward(self, images: Tensor) -> Tensor:
        sides = left, right, top, bottom = border_sides(images, self.window)
        images = with_border(images, sides, self.border_colour)
        height, width = images.shape[-2:]
        total, count = None, images.new_zeros(height, width)
        for y, x in product(*map(starts, (height, width), self.window)):
            box = np.s_[..., y : y + self.window[0], x : x + self.window[1]]
            logits = self.network(images[box])
            if total is None:
                dtype = torch.promote_types(logits.dtype, torch.float32)
                total = logits.new_zeros(*logits.shape[:2], height, width, dtype=dtype)
            total[box] += logits
            count[box] += 1
        return total.div_(count)[..., top : height - bottom, left : width - right]


def starts(side: int, window: int) -> list[int]:
    """Returns where the windows along one side of an image start."""
    step = -(-2 * window // 3)
    return [*range(0, side - window, step), side - window]


def as_evaluated(
    network: nn.Module, window: tuple[int, int] | None, border_colour: str
) -> nn.Module:
    """Returns the network in `Windows`, or the network itself if there is no window."""
    return network if window is None else Windows(network, window, border_colour)


def class_iou(matrix: Tensor) -> Tensor:
    """Returns the IoU of each class in percent, [C]. A class that is neither labelled nor predicted has NaN."""
    matrix = matrix.double()
    return 100 * matrix.diag() / (matrix.sum(0) + matrix.sum(1) - matrix.diag())


def mean_iou(matrix: Tensor) -> float:
    """Returns the mean IoU in percent over the classes with an IoU."""
    return class_iou(matrix).nanmean().item()


@torch.no_grad()
def sample_features(
    network: nn.Module,
    samples: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    *,
    per_batch: int = 20,
    per_class: int = 200,
) -> tuple[Tensor, Tensor]:
    """Samples unit features at random pixels, the same number per class where there are enough.

    The choice of pixels depends only on the labels, so two networks are compared on the same pixels.

    Args:
        network: has a `classifier` that reads the features.
        samples: batches of images and labels.
        num_classes: C.
        per_batch: pixels per class and batch, at most.
        per_class: pixels per class in all, at most.

    Returns:
        Features [N, D] float32 and labels [N] int64.
    """
    network.eval()
    rng = np.random.default_rng(0)
    features, classes = [], []
    with FeatureTap(network, "classifier") as tap:
        for images, labels in samples:
            predict(network, images)
            maps = tap.pop()
            small = resize_labels(labels, maps.shape[-2:]).flatten()
            pixels = few_of_each(small, num_classes, per_batch, rng)
            rows = maps.permute(0, 2, 3, 1).flatten(0, 2)[pixels.to(maps.device)]
            features.append(F.normalize(rows.float()).cpu())
            classes.append(small[pixels])
    features, classes = torch.cat(features), torch.cat(classes)
    chosen = few_of_each(classes, num_classes, per_class, rng)
    return features[chosen], classes[chosen]


def few_of_each(labels: Tensor, num_classes: int, limit: int, rng: np.random.Generator) -> Tensor:
    """Returns indices of at most `limit` random entries per class, sorted by class. Other labels are skipped."""
    labels = labels.numpy()
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    ordered = labels[order]
    rank = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    return torch.from_numpy(order[(rank < limit) & (ordered >= 0) & (ordered < num_classes)])


def cluster_scores(features: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Computes silhouette and Calinski-Harabasz (higher is better), and Davies-Bouldin (lower is better).

    All are None if there are fewer than 2 classes, or if a feature is not finite because training diverged.
    """
    if len(labels.unique()) < 2 or not features.isfinite().all():
        return dict.fromkeys(SCORES)
    return {name: float(score(features, labels)) for name, score in SCORES.items()}


@torch.no_grad()
def predict_with_density(
    network: nn.Module, contrast: DensityContrastLoss, images: Tensor
) -> tuple[Tensor, Tensor]:
    """Predicts the class of each pixel, and the density of its feature in the bank of that class.

    Args:
        network: the student, since the bank holds the student's features.
        contrast: the loss with the bank.
        images: [B, 3, H, W].

    Returns:
        Predicted classes [B, H, W] int64, and densities [B, H, W]. The density is 0 if the class has no bank.
    """
    network.eval()
    with FeatureTap(network, "classifier") as tap:
        predicted = predict(network, images)
        features = tap.pop()
    small = resize_labels(predicted, features.shape[-2:])
    density = viz.density_map(contrast.bank, features, small, images.shape[-2:])
    return predicted.cpu(), density.cpu()


def error_by_density(
    network: nn.Module,
    contrast: DensityContrastLoss | None,
    samples: Iterable[tuple[Tensor, Tensor]],
    ignore_index: int,
    *,
    per_batch: int = 20_000,
) -> list[float]:
    """Measures the error rate in each fifth of the pixels, from the sparsest features to the densest.

    Args:
        network: the student.
        contrast: the loss with the bank, or None.
        samples: batches of images and labels.
        ignore_index: label of pixels that do not count.
        per_batch: random pixels per batch, at most. Only pixels with a label and a density count.

    Returns:
        Percent of wrong pixels in each fifth, or an empty list if there is no bank or fewer than five pixels.
    """
    if contrast is None:
        return []
    rng = np.random.default_rng(0)
    densities, errors = [], []
    for images, labels in samples:
        predicted, density = predict_with_density(network, contrast, images)
        counted = ((labels != ignore_index) & (density != 0)).flatten().nonzero()[:, 0]
        chosen = counted[rng.permutation(len(counted))[:per_batch]]
        densities.append(density.flatten()[chosen])
        errors.append((predicted != labels).flatten()[chosen])
    errors = torch.cat(errors)[torch.cat(densities).argsort()].double()
    return [100 * fifth.mean().item() for fifth in errors.chunk(5)] if len(errors) >= 5 else []


@torch.no_grad()
def overlays(
    network: nn.Module,
    student: nn.Module,
    contrast: DensityContrastLoss | None,
    data: Any,
    count: int = 6,
) -> dict[str, np.ndarray]:
    """Draws strips of image, label, prediction and density for some test images.

    Args:
        network: the network that predicts.
        student: the network that provides the features for the densities.
        contrast: the loss with the bank. None: the strips have no density.
        data: has `test` and `num_classes`.
        count: number of images.

    Returns:
        [H, 4 W, 3] uint8 of each image, or [H, 3 W, 3] without density, by its name.
    """
    network.eval()
    strips = {}
    for i in np.linspace(0, len(data.test) - 1, min(count, len(data.test))).astype(int):
        [(images, labels)] = batches([data.test[i]])
        predicted = predict(network, images).cpu()
        image = images[0].numpy()
        strip = [
            image.transpose(1, 2, 0),
            viz.class_image(labels[0], data.num_classes),
            viz.class_image(predicted[0], data.num_classes),
        ]
        if contrast is not None:
            _, [density] = predict_with_density(student, contrast, images)
            strip.append(viz.density_image(image, density))
        pixels = np.concatenate(strip, axis=1).clip(0, 1) * 255
        strips[data.test[i].name] = pixels.astype(np.uint8)
    return strips
