"""Which images are used with their labels: a number, a share, or a list of names."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np

from semi_supervised.images import LABELS, Sample, name_of, read_label


def choose(
    labelled: str | int | float, train: list[Sample], seed: int, shown_in: int, ignore_index: int
) -> tuple[list[Sample], list[Path]]:
    """The labelled samples, and the images of all others.

    Args:
        labelled: "46" images, the share "0.125" or "1/8" of them, or a file that lists them.
        train: all of them.
        seed: of the random choice. A smaller share of the same seed is a part of a larger one.
        shown_in: see `draw_order`.
        ignore_index: label of the pixels without one.
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
    """ "46" -> 46; "0.125" and "1/8" -> an eighth of those available, rounded up as in the published splits."""
    try:
        amount = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f"labelled must be a number or a share of the images, or a file that lists them, got {text}"
        ) from None
    if amount >= 1 and (amount.denominator > 1 or "." in text):
        raise ValueError(
            f"labelled must be a whole number or a share below 1 of the images, got {text}"
        )
    count = int(amount) if amount >= 1 else math.ceil(amount * available)
    if count < 1:
        raise ValueError(
            f"labelled must leave at least one labelled image, got {text} of {available}"
        )
    if count > available:
        raise ValueError(f"labelled must be at most the {available} training images, got {text}")
    return count


def listed(path: Path, train: list[Sample]) -> set[int]:
    """Indices of the images that a text file lists.

    A line holds a name ("2007_000032") or the image's path ("JPEGImages/2007_000032.jpg"); what follows a blank, such
    as the label's path, is not read.
    """
    index = {sample.name: i for i, sample in enumerate(train)}
    names = [
        name_of(Path(line.split()[0])) for line in path.read_text().splitlines() if line.strip()
    ]
    unknown = [name for name in names if name not in index]
    if unknown:
        raise ValueError(
            f"labelled: {path} must list training images, got {unknown[0]}"
            + (f" and {len(unknown) - 1} more" if unknown[1:] else "")
        )
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"labelled: {path} must list each image once, and one at least, got {len(names)} "
            f"lines with {len(set(names))} names"
        )
    return {index[name] for name in names}


def draw_order(
    train: list[Sample], count: int, seed: int, shown_in: int, ignore_index: int
) -> np.ndarray:
    """A random order of the images, of which the first `count` show each class in `shown_in` images or more."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(train))
    if not shown_in:
        return order
    shown = np.zeros((len(train), LABELS), dtype=bool)
    for i, sample in enumerate(train):
        found = np.bincount(read_label(sample).ravel()) >= 40
        shown[i, : len(found)] = found
    shown[:, ignore_index] = False
    shown = shown[:, shown.any(0)]
    for _ in range(10_000):
        if (shown[order[:count]].sum(0) >= shown_in).all():
            return order
        order = rng.permutation(len(train))
    raise ValueError(
        f"labelled must allow {shown_in} images of each class, got {count}, of which no draw of 10,000 has them"
    )
