"""Builds the table of causes.py, the experiments on scenes of digits."""

import csv
from pathlib import Path

from evidence.compare import CONTROL, Paired
from evidence.report import markdown


def read_rows(path: Path) -> list[dict]:
    """Reads the runs of a CSV file. A file that does not exist has none."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= {name: int(row[name]) for name in ("seed", "steps", "labelled")}
        row |= {name: float(row[name]) for name in ("miou", "calinski_harabasz", "right")}
    return rows


def compared(rows: list[dict], name: str, metric: str) -> Paired | None:
    """Compares a variant, seed by seed, with self-training with the same steps and labels. None without a pair."""
    controls = {
        (row["seed"], row["steps"], row["labelled"]): row[metric]
        for row in rows
        if row["variant"].startswith(CONTROL)
    }
    pairs = [
        (row[metric], controls[key])
        for row in sorted(rows, key=lambda row: row["seed"])
        if row["variant"] == name
        and (key := (row["seed"], row["steps"], row["labelled"])) in controls
    ]
    differences = [ours - theirs for ours, theirs in pairs]
    return Paired(differences, sum(d > 0 for d in differences)) if differences else None


def table(rows: list[dict]) -> str:
    """Returns the table in Markdown."""
    if not rows:
        return "No runs have been recorded yet."
    names = [n for n in dict.fromkeys(row["variant"] for row in rows) if not n.startswith(CONTROL)]
    lines = []
    for name in names:
        miou, tightness = (compared(rows, name, m) for m in ("miou", "calinski_harabasz"))
        if miou is None:
            continue
        lines.append([name, str(len(miou.differences)), miou.text(2), tightness.text(1)])
    return markdown(["the contrast", "seeds", "mIoU %", "Calinski-Harabasz"], lines)
