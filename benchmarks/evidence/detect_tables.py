"""Tables of `detect.py`."""

import statistics
from pathlib import Path

from evidence.ccp_settings import CLASSES
from evidence.ccp_tables import TITLES, less, mean_text, number
from evidence.compare import CONTROL, METHOD, stored_rows
from evidence.detection import SCORES, SINGLE
from evidence.report import markdown

ARMS = (CONTROL, METHOD)
FIGURES = {
    "errors": tuple(f"banked_{name}" for name in SCORES),
    "unknown": tuple(f"{where}_{name}" for where in ("hidden", "hidden_banked") for name in SINGLE),
}


def read_rows(path: Path) -> list[dict]:
    """Reads the runs of a CSV file. A file that does not exist has none."""
    rows = stored_rows(path)
    for row in rows:
        row |= {"seed": int(row["seed"]), "miou": float(row["miou"])}
        row |= {name: number(row[name]) for name in FIGURES[path.stem]}
    return rows


def report(folder: Path) -> str:
    """Writes detect.md next to unknown.csv and errors.csv, and returns its text."""
    errors, unknown = (read_rows(folder / f"{study}.csv") for study in ("errors", "unknown"))
    parts = ["# What does density find?"]
    parts += [errors_part(errors)] if errors else []
    parts += [unknown_part(unknown)] if unknown else []
    if len(parts) == 1:
        return "No runs have been recorded yet."
    text = "\n\n".join(parts) + "\n"
    (folder / "detect.md").write_text(text)
    return text


def machine_text(rows: list[dict]) -> str:
    facts = {
        n: ", ".join(sorted({r[n] for r in rows})) for n in ("cpu", "torch", "commit", "steps")
    }
    return (
        f"{len(rows)} runs of {facts['steps']} steps. Machine: {facts['cpu']}; torch {facts['torch']}; commits "
        f"{facts['commit']}; one thread per run. ± after a mean is the standard deviation over the seeds. ± after a "
        "paired difference is half of its 95 % confidence interval."
    )


def errors_part(rows: list[dict]) -> str:
    """Returns the table of wrong pixels on CamVid."""
    body = []
    for arm in ARMS:
        if found := [row for row in rows if row["variant"] == arm]:
            cells = (mean_text([row[column] for row in found], 3) for column in FIGURES["errors"])
            miou = mean_text([row["miou"] for row in found], 2)
            body.append([arm, str(len(found)), miou, *cells])
            cells = (less(found, column, "banked_entropy") for column in FIGURES["errors"])
            body.append([f"*{arm}: minus entropy*", "", "", *cells])
    return (
        "## Wrong pixels in road scenes: AUROC on the test images of CamVid\n\n"
        f"{markdown(['', 'seeds', 'mIoU %', *TITLES.values()], body)}\n\n{machine_text(rows)}"
    )


def unknown_part(rows: list[dict]) -> str:
    """Returns the table of pixels of an unknown class on CCP."""
    body = []
    for hidden in sorted({int(row["hidden"]) for row in rows}):
        for arm in ARMS:
            found = [r for r in rows if (r["variant"], int(r["hidden"])) == (arm, hidden)]
            if not found:
                continue
            cells = (mean_text([row[column] for row in found], 3) for column in FIGURES["unknown"])
            banked = [number(row["hidden_share_banked"]) for row in found]
            share = f"{100 * statistics.fmean(value or 0 for value in banked):.0f} %"
            body.append([CLASSES[hidden], arm, str(len(found)), *cells, share])
    titles = [TITLES[name] for name in SINGLE]
    header = ["unknown class", "", "seeds", *titles, *(f"{title}, on persons" for title in titles)]
    return (
        "## Pixels of an unknown class in photographs: AUROC on the test images of CCP\n\n"
        f"{markdown([*header, 'predicted as not background'], body)}\n\n"
        "The training labels omit the class. The AUROC compares its pixels with all other labelled pixels except the "
        'background. Density is that of the likeliest class with a bank. "On persons": only pixels that the student '
        f"does not label as background. {machine_text(rows)}"
    )
