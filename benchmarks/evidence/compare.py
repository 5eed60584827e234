"""Compares the study's runs seed by seed, with confidence intervals."""

import csv
import statistics
from pathlib import Path
from typing import NamedTuple

from semi_supervised.intervals import half_interval

# column, title, digits, and whether more is better
METRICS = (
    ("miou", "mIoU %", 2, True),
    ("silhouette", "silhouette", 4, True),
    ("calinski_harabasz", "Calinski-Harabasz", 1, True),
    ("davies_bouldin", "Davies-Bouldin", 3, False),
)
SUPERVISED, CONTROL, METHOD = "supervised", "self-training", "density contrast"
RANDOM, CONFIDENCE = (
    "anchors random, keys average",
    "anchors low_confidence, keys high_confidence",
)


def stored_rows(path: Path) -> list[dict]:
    """Reads a CSV file as text, by column. A file that does not exist has no rows."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_rows(path: Path) -> list[dict]:
    """Reads the runs of a CSV file."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["labelled"], row["seed"] = int(row["labelled"]), int(row["seed"])
        for name in ("val_miou", *(name for name, *_ in METRICS)):
            row[name] = float(row[name])
    return rows


class Paired(NamedTuple):
    """Differences of the seeds that both variants have.

    Attributes:
        differences: one per seed.
        better: number of seeds that improve.
    """

    differences: list[float]
    better: int

    @property
    def mean(self) -> float:
        """Mean of the differences."""
        return statistics.fmean(self.differences)

    @property
    def half(self) -> float:
        """Half of the 95 % confidence interval of the mean, by Student's t. Infinite for one seed."""
        return half_interval(self.differences)

    def text(self, digits: int) -> str:
        """Formats the mean with its interval."""
        significant = abs(self.mean) > self.half
        verdict = "" if significant else ", null"
        return (
            f"{self.mean:+.{digits}f} ± {self.half:.{digits}f} "
            f"({self.better}/{len(self.differences)}{verdict})"
        )


def paired(
    rows: list[dict], treated: str, control: str, labelled: int, metric: str, upward: bool = True
) -> Paired | None:
    """Compares two variants seed by seed.

    Args:
        rows: all runs.
        treated: name of the variant that is compared.
        control: name of the variant to compare with.
        labelled: number of labelled images.
        metric: column of the rows.
        upward: whether more is better.

    Returns:
        `treated` minus `control`, or None if no seed has both.
    """
    sides = [
        {r["seed"]: r[metric] for r in rows if (r["variant"], r["labelled"]) == (name, labelled)}
        for name in (treated, control)
    ]
    seeds = sorted(sides[0].keys() & sides[1].keys())
    differences = [sides[0][seed] - sides[1][seed] for seed in seeds]
    better = sum(d > 0 if upward else d < 0 for d in differences)
    return Paired(differences, better) if seeds else None


def control_of(variant: str) -> str:
    """Returns the variant with contrast weight 0 that is trained in the same way."""
    return CONTROL + variant.removeprefix(METHOD) if variant.startswith(METHOD) else CONTROL


def attempts(rows: list[dict]) -> list[str]:
    """Returns all variants with the density loss, in the order of the file."""
    plain = {SUPERVISED, RANDOM, CONFIDENCE}
    names = dict.fromkeys(row["variant"] for row in rows)
    return [name for name in names if name not in plain and not name.startswith(CONTROL)]
