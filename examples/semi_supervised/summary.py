"""Summarises runs: means and spreads over the seeds, and differences seed by seed."""

import csv
import importlib.metadata
import json
import math
import platform
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dgcl_ops import backend_info

# name, title, digits, and whether more is better
METRICS = (
    ("miou", "mIoU %", 2, True),
    ("silhouette", "silhouette", 3, True),
    ("calinski_harabasz", "Calinski-Harabasz", 1, True),
    ("davies_bouldin", "Davies-Bouldin", 2, False),
)


@dataclass
class Run:
    """Results of one run, as plain numbers and arrays."""

    method: str
    seed: int
    seconds: float
    miou: float  # the teacher's, in percent
    curve: list[tuple[int, float]]  # (step, mIoU)
    class_iou: list[float]
    scores: dict[
        str, float | None
    ]  # cluster scores of the teacher's features, None if there are none
    errors: list[float]  # percent of wrong pixels, in fifths from the sparsest to the densest
    history: list[dict[str, float]]
    shown: dict[str, np.ndarray] = field(default_factory=dict, repr=False)  # for pictures


def summarise(runs: list[Run], control: str, treated: str) -> dict:
    """Summarises runs as plain numbers, and compares two methods if both ran.

    Args:
        runs: the runs.
        control: the method to compare with.
        treated: the method to assess.

    Returns:
        A dict with
            methods: {method: {metric: {mean, spread}}}. The spread is the standard deviation over the seeds.
            paired: {metric: {differences, mean, spread, better}}, for `treated` minus `control`, seed by seed. "better"
                is the number of seeds that improve.
            matched: for each seed, how long the two runs were identical, see `matched_steps`.
            runs: the results of each run.
    """
    rows = [row_of(run) for run in runs]
    by_method = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    methods = {
        method: {metric: spread([row[metric] for row in members]) for metric, *_ in METRICS}
        for method, members in by_method.items()
    }
    result = {"methods": methods, "paired": {}, "matched": {}, "runs": rows}
    if control != treated and control in by_method and treated in by_method:
        result["pair"] = [treated, control]
        for metric, _, _, upward in METRICS:
            pairs = zip(by_method[treated], by_method[control], strict=True)
            both = ((new[metric], old[metric]) for new, old in pairs)
            differences = [None if None in pair else pair[0] - pair[1] for pair in both]
            better = sum((d > 0 if upward else d < 0) for d in differences if d is not None)
            paired = {"differences": differences, "better": better, **spread(differences)}
            result["paired"][metric] = paired
        histories = {(run.method, run.seed): run.history for run in runs}
        for row in by_method[treated]:
            pair = histories[control, row["seed"]], histories[treated, row["seed"]]
            result["matched"][row["seed"]] = matched_steps(*pair)
    return result


def row_of(run: Run) -> dict:
    """Returns the results of a run without history and pictures."""
    return {
        "method": run.method,
        "seed": run.seed,
        "miou": finite(run.miou),
        **finite(run.scores),
        "class_iou": finite(run.class_iou),
        "error_by_density": run.errors,
        "curve": run.curve,
        "seconds": round(run.seconds, 1),
    }


def finite(value: Any) -> Any:
    """Returns a value with None for each NaN and inf, since JSON has neither."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: dict) -> None:
    """Writes figures as JSON, with null for those that are not finite."""
    path.write_text(json.dumps(finite(value), indent=1, allow_nan=False))


def write_classes(
    path: Path, class_iou: list[float], trained: list[int], tested: list[int]
) -> None:
    """Writes a CSV file with the IoU and the number of labelled pixels of each class."""
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["class", "IoU %", "labelled training pixels", "test pixels"])
        for c, (iou, *pixels) in enumerate(zip(class_iou, trained, tested, strict=True)):
            table.writerow([c, f"{iou:.2f}", *pixels])


def spread(values: list[float | None]) -> dict:
    """Returns mean and standard deviation of the values that are not None. Each is None for too few values."""
    values = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(values) if values else None,
        "spread": statistics.stdev(values) if len(values) > 1 else None,
    }


def matched_steps(control: list[dict], treated: list[dict]) -> dict:
    """Counts the recorded steps with bitwise equal supervised losses.

    They must be equal up to and including the first step with a contrast, since only the update after it differs.
    """
    same = [a["supervised"] == b["supervised"] for a, b in zip(control, treated, strict=True)]
    contrast = [record.get("contrast", 0.0) != 0 for record in treated]
    return {
        "identical": same.index(False) if False in same else len(same),
        "before the first contrast": contrast.index(True) if True in contrast else len(contrast),
    }


def number(metric: str, value: dict, sign: str = "") -> str:
    """Formats a figure as "53.10 ± 0.42", without the spread if there is one seed, or as "none"."""
    if value["mean"] is None:
        return "none"
    digits = next(digits for name, _, digits, _ in METRICS if name == metric)
    text = f"{value['mean']:{sign}.{digits}f}"
    return text if value["spread"] is None else f"{text} ± {value['spread']:.{digits}f}"


def as_text(result: dict) -> str:
    """Formats the table and the paired differences for the terminal."""
    rows = [["", *(title + (" ↑" if upward else " ↓") for _, title, _, upward in METRICS)]]
    for method, values in result["methods"].items():
        rows.append([method, *(number(metric, values[metric]) for metric, *_ in METRICS)])
    paired = result["paired"]
    if paired:
        seeds = len(paired["miou"]["differences"])
        rows.append(["difference", *(number(m, paired[m], "+") for m, *_ in METRICS)])
        rows.append(
            ["better in", *(f"{paired[m]['better']} of {seeds} seeds" for m, *_ in METRICS)]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    lines.append("Mean ± standard deviation over the seeds.")
    if paired:
        treated, control = result["pair"]
        lines.append(f"The difference is {treated} minus {control}, seed by seed.")
    return "\n".join(lines)


def environment() -> dict:
    """Returns what the figures depend on, apart from the program."""
    versions = {
        name: importlib.metadata.version(name) for name in ("numpy", "scikit-learn", "matplotlib")
    }
    backend = backend_info()
    return {
        "machine": f"{platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "torch": backend["torch"],
        **versions,
        "dgcl_ops": backend["version"],
        "kernels": f"{backend['devices']['cpu']['implementation']}, {backend['cpu_capability']}",
    }
