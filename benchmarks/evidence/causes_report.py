"""Builds the table of causes.py, the experiments on scenes of digits."""

import json
from pathlib import Path

from evidence.compare import CONTROL, Paired, stored_rows
from evidence.report import markdown


def read_rows(path: Path) -> list[dict]:
    """Reads the runs of a CSV file. A file that does not exist has none."""
    rows = stored_rows(path)
    for row in rows:
        row |= {name: int(row[name]) for name in ("seed", "steps", "labelled")}
        row |= {name: float(row[name]) for name in ("miou", "calinski_harabasz", "right")}
    return rows


def compared(rows: list[dict], name: str, metric: str) -> Paired | None:
    """Compares a variant, seed by seed, with self-training. None without a pair.

    Both have the same steps, labels and view of the contrast.
    """
    controls = {key_of(row): row[metric] for row in rows if row["variant"].startswith(CONTROL)}
    pairs = [
        (row[metric], controls[key_of(row)])
        for row in sorted(rows, key=lambda row: row["seed"])
        if row["variant"] == name and key_of(row) in controls
    ]
    differences = [ours - theirs for ours, theirs in pairs]
    return Paired(differences, sum(d > 0 for d in differences)) if differences else None


def key_of(row: dict) -> tuple:
    """Returns what a run shares with its control."""
    view = json.loads(row["settings"]).get("contrast_view")
    return row["seed"], row["steps"], row["labelled"], view


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
