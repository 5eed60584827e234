"""Reads the runs of the study of CCP, checks the gates, and checks that the runs of a seed are matched."""

from pathlib import Path
from typing import NamedTuple

from evidence.compare import CONTROL, SUPERVISED, paired, stored_rows

FEW, ALL = 44, 704  # labelled images


class Gate(NamedTuple):
    """A condition that the data must meet to show an effect of the method.

    Attributes:
        name: the comparison.
        gain: mean difference in validation mIoU, in points. None: a run is missing.
        least: smallest gain that meets the condition.
    """

    name: str
    gain: float | None
    least: float

    @property
    def holds(self) -> bool:
        """Whether the gain is large enough."""
        return self.gain is not None and self.gain >= self.least


def read_rows(path: Path) -> list[dict]:
    """Reads the runs of a CSV file. A file that does not exist has none."""
    rows = stored_rows(path)
    for row in rows:
        row |= {"labelled": int(row["labelled"]), "seed": int(row["seed"])}
        row |= {name: float(row[name]) for name in ("val_miou", "miou") if name in row}
    return rows


class Matching(NamedTuple):
    """Whether all runs of a seed share a hash.

    Attributes:
        name: what is hashed.
        seeds: number of seeds with at least two runs.
        differing: seeds whose runs differ.
    """

    name: str
    seeds: int
    differing: list[int]

    def text(self) -> str:
        """Formats the result in one line."""
        equal = f"equal in {self.seeds - len(self.differing)} of {self.seeds} seeds"
        return f"{self.name}: {equal}" + (f", NOT in {self.differing}" if self.differing else "")


def matchings(rows: list[dict]) -> list[Matching]:
    """Compares the runs with few labels, seed by seed.

    All arms must share labelled images and initial weights. The arms with unlabelled images must also share all inputs
    of the student.
    """
    few = [row for row in rows if row["labelled"] == FEW]
    unsupervised = [row for row in few if row["variant"] != SUPERVISED]
    return [
        matching("labelled images and initial weights", "start", few),
        matching("inputs of the student, without supervised runs", "inputs", unsupervised),
    ]


def matching(name: str, column: str, rows: list[dict]) -> Matching:
    """Compares a column of hashes, seed by seed."""
    hashes: dict[int, list[str]] = {}
    for row in rows:
        hashes.setdefault(row["seed"], []).append(row[column])
    several = {seed: found for seed, found in hashes.items() if len(found) > 1}
    differing = sorted(seed for seed, found in several.items() if len(set(found)) > 1)
    return Matching(name, len(several), differing)


def gates(rows: list[dict], seeds: tuple[int, ...] = (0, 1)) -> list[Gate]:
    """Returns the two gates, measured on the validation images with the given seeds."""
    chosen = [row for row in rows if row["seed"] in seeds]
    scores = {(r["variant"], r["labelled"], r["seed"]): r["val_miou"] for r in chosen}
    all_labels = [
        scores[SUPERVISED, ALL, seed] - scores[SUPERVISED, FEW, seed]
        for seed in seeds
        if {(SUPERVISED, ALL, seed), (SUPERVISED, FEW, seed)} <= scores.keys()
    ]
    gain = paired(chosen, CONTROL, SUPERVISED, FEW, "val_miou")
    return [
        Gate(f"{ALL} labels over {FEW}", mean_of(all_labels, len(seeds)), 8.0),
        Gate(
            "self-training over supervised",
            mean_of(gain.differences if gain else [], len(seeds)),
            3.0,
        ),
    ]


def mean_of(values: list[float], count: int) -> float | None:
    """Returns the mean, or None unless there are `count` values."""
    return sum(values) / count if len(values) == count else None


def gates_text(rows: list[dict]) -> str:
    """Returns a line for each gate."""
    return "\n".join(
        f"{gate.name}: {'not run' if gate.gain is None else f'{gate.gain:+.2f} points'}, "
        f"at least {gate.least:.0f} needed: {'holds' if gate.holds else 'does not hold'}"
        for gate in gates(rows)
    )
