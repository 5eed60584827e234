"""Chooses the labelled images: by number, by fraction, or by a list of names."""

import math
import unicodedata
from fractions import Fraction
from pathlib import Path

import numpy as np

from semi_supervised.images import Sample, name_of, read_label
from semi_supervised.label_values import LABELS
from semi_supervised.listing import read_lines


def choose(
    labelled: str | int | float, train: list[Sample], seed: int, shown_in: int, ignore_index: int
) -> tuple[list[Sample], list[Path]]:
    """Splits the training images into labelled and unlabelled ones.

    Args:
        labelled: a number "46", a fraction "0.125" or "1/8", or a file that lists the images.
        train: all training images.
        seed: seed of the random choice. With the same seed, a smaller choice is a subset of a larger one.
        shown_in: see `draw_order`.
        ignore_index: label of pixels without a class.

    Returns:
        The labelled samples, and the images of all others.

    Raises:
        ValueError: If `labelled` does not fit the images.
    """
    if Path(str(labelled)).is_file():
        chosen = listed(Path(str(labelled)), train)
    else:
        count = labelled_count(str(labelled), len(train))
        chosen = set(draw_order(train, count, seed, shown_in, ignore_index)[:count].tolist())
    return (
        [sample for i, sample in enumerate(train) if i in chosen],
        [sample.image for i, sample in enumerate(train) if i not in chosen],
    )


def labelled_count(text: str, available: int) -> int:
    """Converts "46" to 46, and "0.125" or "1/8" to an eighth of `available`, rounded up as in the published splits."""
    try:
        amount = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f"labelled must be a number or a fraction of the images, or a file that lists them, got {text}"
        ) from None
    if amount >= 1 and (amount.denominator > 1 or "." in text):
        raise ValueError(
            f"labelled must be a whole number or a fraction below 1 of the images, got {text}"
        )
    count = int(amount) if amount >= 1 else math.ceil(amount * available)
    if count < 1:
        raise ValueError(f"labelled must select at least one image, got {text} of {available}")
    if count > available:
        raise ValueError(f"labelled must be at most the {available} training images, got {text}")
    return count


def listed(path: Path, train: list[Sample]) -> set[int]:
    """Returns the indices of the images that a text file lists.

    A line holds a name ("2007_000032") or the image's path ("JPEGImages/2007_000032.jpg"). Text after a space, such as
    the label's path, is ignored. Names may hold spaces and dots themselves.
    """
    index = {unicodedata.normalize("NFC", sample.name): i for i, sample in enumerate(train)}
    names = [listed_name(line, index) for line in read_lines(path)]
    unknown = [name for name in names if name not in index]
    if unknown:
        raise ValueError(
            f"labelled: {path} must list training images, got {unknown[0]}"
            + (f" and {len(unknown) - 1} more" if unknown[1:] else "")
        )
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"labelled: {path} must list at least one image and each only once, got {len(names)} "
            f"lines with {len(set(names))} names"
        )
    return {index[name] for name in names}


def listed_name(line: str, index: dict[str, int]) -> str:
    """Returns the longest start of a line that names an image. If there is none, the name before the first space."""
    line = unicodedata.normalize("NFC", line.replace("\\", "/"))
    words = line.split(" ")
    for count in range(len(words), 0, -1):
        path = Path(" ".join(words[:count]).strip())
        for name in (path.name, name_of(path)):
            if name in index:
                return name
    return name_of(Path(line.split()[0]))


def draw_order(
    train: list[Sample], count: int, seed: int, shown_in: int, ignore_index: int
) -> np.ndarray:
    """Draws a random order of the images.

    Args:
        train: the images.
        count: number of labelled images, the first of the order.
        seed: seed of the random order.
        shown_in: each class must occur in at least this many labelled images, with at least 40 pixels in each. 0: no
            such rule.
        ignore_index: label of pixels without a class.

    Raises:
        ValueError: If none of 10,000 random orders meets the rule.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(train))
    if not shown_in:
        return order
    shown = np.zeros((len(train), LABELS), dtype=bool)
    for i, sample in enumerate(train):
        present = np.bincount(read_label(sample).ravel()) >= 40
        shown[i, : len(present)] = present
    shown[:, ignore_index] = False
    shown = shown[:, shown.any(0)]
    for _ in range(10_000):
        if (shown[order[:count]].sum(0) >= shown_in).all():
            return order
        order = rng.permutation(len(train))
    raise ValueError(
        f"labelled must allow {shown_in} images of each class, got {count}: none of 10,000 draws meets this"
    )
