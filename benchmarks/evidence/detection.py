"""Measures how well density, entropy and confidence find wrong pixels of the student, or pixels of an unknown class.

All scores come from the student in float32, since the bank holds the student's features. A score is higher where the
student is less certain:
- density: minus the density of the pixel's feature in the bank of the predicted class,
- entropy: of the class probabilities, in nats,
- confidence: 1 minus the largest probability.

Two scores combine density and entropy: the sum of their ranks, and a logistic regression, fitted to the validation
images. The figure of a score is its AUROC: the probability that a random wrong pixel scores higher than a random right
one. For an unknown class, its pixels take the place of the wrong ones. Ties count half. 0.5 is chance.

Classes that the contrast excludes have no bank. So pixels that the student assigns to them have no density of their
class. Comparisons of densities leave these pixels out, unless they say otherwise.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from semi_supervised.evaluate import predict
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from dgcl_ops import DensityContrastLoss, FeatureTap
from dgcl_ops.viz import feature_density

PER_IMAGE = 4000  # most pixels to sample
LEAST = 100  # a class needs as many right and as many wrong pixels for an AUROC
SINGLE = ("density", "entropy", "confidence")
SCORES = (*SINGLE, "ranks", "regression")


class Pixels(NamedTuple):
    """Sampled pixels, N in all.

    Attributes:
        labels: [N] int64.
        predicted: [N] int64, the student's classes.
        known: [N] bool, whether the predicted class has a bank.
        density: [N] float64, minus the density in the bank of the likeliest class that has one. This is the predicted
            class where `known`. NaN if no class has a bank.
        entropy: [N] float64.
        confidence: [N] float64, 1 minus the largest probability.
    """

    labels: NDArray
    predicted: NDArray
    known: NDArray
    density: NDArray
    entropy: NDArray
    confidence: NDArray

    @property
    def wrong(self) -> NDArray:
        """[N] bool, whether the prediction differs from the label."""
        return self.predicted != self.labels

    def where(self, chosen: NDArray) -> "Pixels":
        """Returns some of the pixels."""
        return Pixels(*(values[chosen] for values in self))


@torch.no_grad()
def sample_pixels(
    network: nn.Module,
    contrast: DensityContrastLoss,
    samples: Iterable[tuple[Tensor, Tensor]],
    ignore_index: int,
    per_image: int = PER_IMAGE,
) -> Pixels:
    """Scores random labelled pixels of each image. The choice of pixels depends only on labels and image order.

    A pixel's feature is the map before the classifier, interpolated bilinearly at the pixel. The classifier is a 1x1
    convolution, so it turns this feature into the pixel's logits.

    Args:
        network: the student.
        contrast: the loss with the bank of the student's features.
        samples: batches of images [B, 3, H, W] and labels [B, H, W].
        ignore_index: label of pixels that are not sampled.
        per_image: most pixels to sample per image.
    """
    network.eval()
    bank, parts, seen = contrast.bank, [], 0
    ready = bank.ready()
    with FeatureTap(network, "classifier") as tap:
        for images, labels in samples:
            predict(network, images)
            for features, label in zip(tap.pop(), labels, strict=True):
                rng, seen = np.random.default_rng((0, seen)), seen + 1
                pixels = (label.flatten() != ignore_index).nonzero()[:, 0]
                pixels = pixels[np.sort(rng.permutation(len(pixels))[:per_image])]
                whole = F.interpolate(features[None].float(), label.shape, mode="bilinear")
                rows = whole[0].flatten(1)[:, pixels].T.contiguous()
                parts.append(
                    (label.flatten()[pixels], *scores_of(rows, network.classifier, bank, ready))
                )
    return Pixels(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))


def scores_of(rows: Tensor, classifier: nn.Module, bank: nn.Module, ready: Tensor) -> tuple:
    """Returns the columns of `Pixels` after `labels`, for features [N, D]."""
    logits = F.linear(rows, classifier.weight.flatten(1), classifier.bias).double()
    logarithms = logits.log_softmax(1)
    predicted = logits.argmax(1)
    entropy = -(logarithms.exp() * logarithms).sum(1)
    confidence = -torch.expm1(logarithms.amax(1))  # exact near 0
    density = torch.full_like(entropy, torch.nan)
    if ready.any():
        likeliest = logits.masked_fill(~ready, -torch.inf).argmax(1)
        density = -feature_density(bank, rows, likeliest).double()
    return predicted, ready[predicted], density, entropy, confidence


def auroc(scores: NDArray, positive: NDArray, least: int = 1) -> float | None:
    """Returns the AUROC. Returns None if a side has fewer than `least` pixels, or if a score is not finite."""
    count = int(positive.sum())
    if min(count, len(positive) - count) < least or not np.isfinite(scores).all():
        return None
    return float(roc_auc_score(positive, scores))


def summed_ranks(pixels: Pixels) -> NDArray:
    """Returns the sum of each pixel's ranks by density and by entropy. Equal scores share their mean rank."""
    return rankdata(pixels.density) + rankdata(pixels.entropy)


def fitted(pixels: Pixels) -> Pipeline | None:
    """Fits a logistic regression that predicts errors from density and entropy.

    It uses the pixels whose predicted class has a bank.

    Returns:
        The regression. None if there is no bank, or if the pixels are all right or all wrong.
    """
    pixels = pixels.where(pixels.known)
    if not 0 < pixels.wrong.sum() < len(pixels.wrong):
        return None
    regression = make_pipeline(StandardScaler(), LogisticRegression())
    return regression.fit(both(pixels), pixels.wrong)


def both(pixels: Pixels) -> NDArray:
    """Returns density and entropy, [N, 2]."""
    return np.stack((pixels.density, pixels.entropy), axis=1)


def scored(pixels: Pixels, regression: Pipeline | None) -> dict[str, NDArray]:
    """Returns every score in SCORES, [N] each. Missing scores are NaN.

    Args:
        pixels: pixels whose predicted class has a bank, for scores with density.
        regression: see `fitted`.
    """
    none = np.full(len(pixels.labels), np.nan)
    combined = np.isfinite(pixels.density).all()
    usable = regression is not None and len(pixels.labels) and combined
    return {
        **{name: getattr(pixels, name) for name in SINGLE},
        "ranks": summed_ranks(pixels) if combined else none,
        "regression": regression.decision_function(both(pixels)) if usable else none,
    }


# ---- columns of the CSV files --------------------------------------------------------------------------

ERRORS = (
    *("wrong_all", "all_entropy", "all_confidence", "share_banked", "wrong_banked"),
    *(f"banked_{name}" for name in SCORES),
    *("class_wrong", *(f"class_{name}" for name in SCORES)),
)
UNKNOWN = tuple(f"{where}_{name}" for where in ("hidden", "hidden_banked") for name in SINGLE)
UNKNOWN = ("hidden_pixels", "hidden_share_banked", *UNKNOWN)


def error_columns(pixels: Pixels, regression: Pipeline | None, num_classes: int) -> dict:
    """Measures how well each score finds wrong pixels.

    Args:
        pixels: sampled pixels.
        regression: see `fitted`.
        num_classes: C.

    Returns:
        wrong_all: share of wrong pixels.
        all_*: AUROC over all pixels. There is none for density, since some predicted classes may have no bank.
        share_banked: share of the pixels whose predicted class has a bank.
        wrong_banked: share of wrong pixels among those.
        banked_*: AUROC over those.
        class_wrong: share of wrong pixels of each predicted class, C numbers.
        class_*: AUROC over the pixels of each predicted class, C numbers. "-" if fewer than LEAST are right or wrong.
            For scores with density: also "-" if the class has no bank.
    """
    known = pixels.where(pixels.known)
    overall = scored(known, regression)
    by_class = {name: [] for name in SCORES}
    errors = []
    for number in range(num_classes):
        some = pixels.where(pixels.predicted == number)
        errors.append(share(some.wrong))
        banked = some.known.all()  # also True without pixels, whose AUROC is None anyway
        for name, values in scored(some, regression).items():
            usable = banked or name in ("entropy", "confidence")
            by_class[name].append(auroc(values, some.wrong, LEAST) if usable else None)
    return {
        "wrong_all": share(pixels.wrong),
        **{
            f"all_{name}": text(auroc(getattr(pixels, name), pixels.wrong))
            for name in ("entropy", "confidence")
        },
        "share_banked": share(pixels.known),
        "wrong_banked": share(known.wrong),
        **{f"banked_{name}": text(auroc(overall[name], known.wrong)) for name in SCORES},
        "class_wrong": " ".join(errors),
        **{f"class_{name}": " ".join(map(text, by_class[name])) for name in SCORES},
    }


def unknown_columns(pixels: Pixels, hidden: int, background: int | None) -> dict:
    """Measures how well each score finds the pixels of a class without training labels, among all labelled pixels.

    Args:
        pixels: sampled pixels.
        hidden: the class.
        background: a class whose labelled pixels do not count, or None.

    Returns:
        hidden_pixels: number of pixels of the class.
        hidden_share_banked: share of these pixels whose predicted class has a bank.
        hidden_*: AUROC over all pixels. Density uses the likeliest class that has a bank.
        hidden_banked_*: AUROC over the pixels whose predicted class has a bank.
    """
    counted = pixels.where(pixels.labels != (-1 if background is None else background))
    known = counted.where(counted.known)
    figures = {
        f"{where}_{name}": text(auroc(getattr(some, name), some.labels == hidden))
        for where, some in (("hidden", counted), ("hidden_banked", known))
        for name in SINGLE
    }
    unknown = counted.labels == hidden
    found = {
        "hidden_pixels": int(unknown.sum()),
        "hidden_share_banked": share(counted.known[unknown]),
    }
    return found | figures


def share(chosen: NDArray) -> str:
    """Formats the share of chosen pixels. Returns "-" without pixels."""
    return text(chosen.mean() if len(chosen) else None)


def text(value: float | None) -> str:
    """Formats a figure. Returns "-" for None."""
    return "-" if value is None else f"{value:.4f}"
