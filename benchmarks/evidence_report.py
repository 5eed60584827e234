"""Tables and plots of evidence.py's runs: means over seeds, and differences seed by seed with confidence intervals."""

import csv
from pathlib import Path


def read_rows(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["labelled"], row["seed"] = int(row["labelled"]), int(row["seed"])
    return rows


def report(rows, path):
    return f"{len(rows)} runs"
