"""Reads the runs in a folder, checks that they are comparable, and compares them seed by seed."""

import itertools
import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from semi_supervised.intervals import detectable, half_interval
from semi_supervised.methods.dgcl import DGCL

SUPERVISED, CONTROL = "supervised", "self-training"
TRAINED_BY = {SUPERVISED: "method.name=supervised", CONTROL: "method.name=self_training"}
FREE = {"seed", "method", "contrast_weight"}  # settings that may differ between runs
COUNTS = ("pixels", "right", "sparse_pixels", "sparse_right")
# Entries of a run's metrics.json, and their types.
ENTRIES = {
    "seed": int,
    "settings.steps": int,
    "settings.warm_up": int,
    "settings.contrast_weight": int | float,
    "settings.method.name": str,
    "data.labelled": int | list,
    "advice.validation_miou": int | float,
    "advice.validation_images": int,
    "advice.validated_on_test": bool,
    "advice.network": str,
    "advice.labelled": int,
    "advice.labelled_pixels": list,
    "advice.labelled_images": list,
}
BANK_ENTRIES = {f"advice.pseudo_labels.{name}": list for name in COUNTS}
BANK_ENTRIES |= {f"advice.bank.{name}": int for name in ("capacity", "rows_per_push", "pushes")}
BANK_ENTRIES |= {f"advice.bank.{name}": list for name in ("rows", "ready", "included")}
BANK_ENTRIES |= {"advice.bank.all_full": bool}


class Found(NamedTuple):
    """A finished run.

    Attributes:
        path: its metrics.json.
        arm: SUPERVISED, CONTROL, or "density loss, weight W".
        seed: seed of the labelled images, weights and batches.
        metrics: the content of metrics.json.
    """

    path: Path
    arm: str
    seed: int
    metrics: dict

    @property
    def advice(self) -> dict:
        """What `advice.measure` returned."""
        return self.metrics["advice"]


class Paired(NamedTuple):
    """Differences in validation mIoU between two arms, one for each seed that both have."""

    differences: list[float]

    @property
    def mean(self) -> float:
        """Mean of the differences."""
        return statistics.fmean(self.differences)

    @property
    def half(self) -> float:
        """Half the width of the mean's 95 % confidence interval (Student's t). Infinite for one seed."""
        return half_interval(self.differences)

    def detectable(self, seeds: int | None = None) -> float:
        """Returns the smallest effect that a number of seeds can detect with 80 % power.

        It uses the spread of the differences, so it is infinite for one difference.

        Args:
            seeds: the number of seeds. None: as many as there are differences.
        """
        if len(self.differences) < 2:
            return math.inf
        return detectable(seeds or len(self.differences)) * statistics.stdev(self.differences)

    def seeds_for(self, effect: float, most: int = 100) -> int | None:
        """Returns how many seeds detect an effect with 80 % power. None: more than `most`, or there is no spread."""
        return next((n for n in range(2, most + 1) if self.detectable(n) <= effect), None)

    def __str__(self) -> str:
        seeds = len(self.differences)
        if seeds == 1:
            return f"{self.mean:+.2f} (1 seed, no interval)"
        return f"{self.mean:+.2f} ± {self.half:.2f} ({seeds} seeds)"


def read_runs(root: Path) -> tuple[list[Found], list[str]]:
    """Reads the finished runs of a folder.

    Args:
        root: --out of train_segmentation.py.

    Returns:
        The runs of the arms that advise.py compares, and the names of the other subfolders. Those hold other methods
        or unfinished runs.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder has no runs of the arms, or a metrics.json lacks what a run writes.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"advise: RUNS must be a folder, got {root}")
    runs, others = [], []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        path = folder / "metrics.json"
        run = read_run(path) if path.is_file() else None
        runs += [run] if run else []
        others += [] if run else [folder.name]
    if not runs:
        named = ", ".join(others) or "no subfolders"
        raise ValueError(
            f"advise: RUNS must hold finished runs of supervised, self_training or dgcl, got {named} in {root}"
        )
    return runs, others


def read_run(path: Path) -> Found | None:
    """Reads a run. Returns None for other methods."""
    try:
        metrics = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ValueError(f"advise: {path} must be a metrics.json of a run, got {error}") from None
    name = entry(metrics, "settings.method.name", str, path)
    if name not in ("supervised", "self_training", "dgcl"):
        return None
    if "advice" not in metrics:
        raise ValueError(
            f"advise: {path} must hold 'advice', got a file of an earlier version; "
            "run the same command with --resume auto to evaluate the run again"
        )
    entries = ENTRIES if name == "supervised" else ENTRIES | BANK_ENTRIES
    for key, kind in entries.items():
        entry(metrics, key, kind, path)
    if not math.isfinite(metrics["advice"]["validation_miou"]):
        raise ValueError(f"advise: advice.validation_miou of {path} must be finite, got NaN or inf")
    classes = len(metrics["advice"]["labelled_pixels"])
    for key in (key for key, kind in entries.items() if kind is list):
        values = entry(metrics, key, list, path)
        if (
            len(values) != classes
            or not all(isinstance(value, int) for value in values)
            or not classes
        ):
            raise ValueError(
                f"advise: {key} of {path} must hold a whole number for each of {classes} classes, got {values!r:.60}"
            )
    weight = metrics["settings"]["contrast_weight"] if name == "dgcl" else 0
    arm = f"density loss, weight {weight:g}" if weight else CONTROL
    return Found(path, SUPERVISED if name == "supervised" else arm, metrics["seed"], metrics)


def entry(metrics: Any, key: str, kind: Any, path: Path) -> Any:
    """Returns the entry "a.b" of a file. Raises ValueError unless it has the type."""
    value = metrics
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kind = getattr(kind, "__name__", str(kind).replace(" | ", " or "))
        raise ValueError(f"advise: {key} of {path} must be of type {kind}, got {value!r:.60}")
    return value


def check(runs: list[Found]) -> None:
    """Checks that the runs differ only in arm and seed.

    Raises:
        ValueError: If they differ in more, or if there is no supervised or no self-training run.
    """
    for arm, trained_by in TRAINED_BY.items():
        if not any(run.arm == arm for run in runs):
            there = ", ".join(dict.fromkeys(run.arm for run in runs))
            raise ValueError(f"advise: RUNS must hold runs with {trained_by}, got only {there}")
    seen: dict[tuple[str, int], Found] = {}
    for run in runs:
        twin = seen.setdefault((run.arm, run.seed), run)
        if twin is not run:
            raise ValueError(
                f"advise: RUNS must hold one run of {run.arm} with seed {run.seed}, "
                f"got {twin.path.parent.name} and {run.path.parent.name}"
            )
    for first, run in itertools.pairwise(runs):
        must_match(first, run, comparable)
    by_seed: dict[int, Found] = {}
    for run in runs:
        must_match(by_seed.setdefault(run.seed, run), run, of_seed)
    by_method = [run for run in runs if run.arm != SUPERVISED]
    for run in by_method:
        must_match(by_method[0], run, of_method)


def must_match(one: Found, other: Found, facts: Any) -> None:
    """Raises ValueError if a fact differs between two runs, and names the first one."""
    ours, theirs = facts(one), facts(other)
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"advise: the runs must have the same {name}, got {ours.get(name)!r:.80} in {one.path.parent} and "
                f"{theirs.get(name)!r:.80} in {other.path.parent}"
            )


def comparable(run: Found) -> dict:
    """Returns what all runs must share."""
    names = "validation_images", "validated_on_test", "network", "labelled"
    facts = {name: run.advice[name] for name in names}
    facts["classes"] = len(run.advice["labelled_pixels"])
    facts |= {f"data.{name}": value for name, value in run.metrics["data"].items()}
    del facts["data.labelled"]
    settings = run.metrics["settings"].items()
    return facts | {name: value for name, value in settings if name not in FREE | DGCL.keys}


def of_seed(run: Found) -> dict:
    """Returns what runs with the same seed must share."""
    return {
        f"labelled images with seed {run.seed}": run.metrics["data"]["labelled"],
        f"labelled pixels with seed {run.seed}": run.advice["labelled_pixels"],
    }


def of_method(run: Found) -> dict:
    """Returns what all runs with a bank must also share."""
    return {name: run.metrics["settings"].get(name) for name in DGCL.keys - FREE}


def compare(runs: Iterable[Found], treated: str, control: str) -> Paired:
    """Returns the differences in validation mIoU, seed by seed.

    Raises:
        ValueError: If no seed has both arms.
    """
    scores = {(run.arm, run.seed): run.advice["validation_miou"] for run in runs}
    seeds = {
        arm: sorted(seed for name, seed in scores if name == arm) for arm in (treated, control)
    }
    shared = [seed for seed in seeds[treated] if seed in seeds[control]]
    if not shared:
        raise ValueError(
            f"advise: {treated} and {control} must share a seed, got seeds {seeds[treated]} and {seeds[control]}"
        )
    return Paired([scores[treated, seed] - scores[control, seed] for seed in shared])


def precision(counts: dict[str, list[int]]) -> tuple[float | None, float | None, float | None]:
    """Returns how many pseudo labels are right, in percent.

    Args:
        counts: see `advice.pseudo_labels`.

    Returns:
        The share over all kept pixels; the mean over the classes that have a density; the same for the sparsest fifth
        of each class. None if there are none.
    """
    rows = list(zip(*(counts[name] for name in COUNTS), strict=True))
    pixels, right = sum(row[0] for row in rows), sum(row[1] for row in rows)
    of_classes = mean([100 * row[1] / row[0] for row in rows if row[2]])
    sparse = mean([100 * row[3] / row[2] for row in rows if row[2]])
    return (100 * right / pixels if pixels else None), of_classes, sparse


def mean(values: list | tuple) -> float | None:
    """Returns the mean of the values that are not None, or None if there are none."""
    values = [value for value in values if value is not None]
    return statistics.fmean(values) if values else None
