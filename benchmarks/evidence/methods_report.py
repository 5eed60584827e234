"""Tables and plot of the comparison of the methods."""

import re
import statistics
from pathlib import Path

from semi_supervised.intervals import detectable
from semi_supervised.methods import METHODS, choose
from semi_supervised.settings import Settings

from evidence.compare import Paired, stored_rows
from evidence.report import markdown

BUDGETS = ("steps", "passes")
BASELINE, CONTROL = "supervised", "self_training"
INTEGERS = ("seed", "steps", "passes", "networks")


def read_rows(path: Path) -> list[dict]:
    """Reads the runs of a CSV file. A file that does not exist has none."""
    rows = stored_rows(path)
    for row in rows:
        row |= {name: int(row[name]) for name in INTEGERS}
        row |= {name: float(row[name]) for name in ("miou", "val_miou", "cpu_seconds")}
        row["peak_mb"] = float(row["peak_mb"]) if row["peak_mb"] else None
        pairs = (pair.split(":") for pair in row["curve"].split())
        row["curve"] = [(int(passes), float(miou)) for passes, miou in pairs]
    return rows


def report(rows: list[dict], path: Path) -> str:
    """Writes the plot, and returns the tables in Markdown.

    Args:
        rows: the runs.
        path: the CSV file. The plot gets the same path with the suffix .png.
    """
    if not rows:
        return "No runs have been recorded yet."
    plot(rows, path.with_suffix(".png"))
    return text_of(rows)


def in_page(page: str, text: str) -> str:
    """Replaces the content of a page's section Results.

    Raises:
        ValueError: If the page has no such section.
    """
    new, count = re.subn(
        r"(?ms)^## Results\n.*?(?=^## |\Z)", lambda _: f"## Results\n\n{text.strip()}\n\n", page
    )
    if count != 1:
        raise ValueError(f"the page must have one section Results, got {count}")
    return new.rstrip() + "\n"


# ---- tables -----------------------------------------------------------------------------------------


def text_of(rows: list[dict]) -> str:
    """Returns the section Results."""
    tables = [budget_table(rows, matched) for matched in BUDGETS]
    picture = (
        "![mIoU of each method against the passes](../benchmarks/evidence/results/methods.png)\n\n"
        "*Test mIoU against passes. Line and band: mean and range of the seeds with equal passes. Point and bar: mean "
        "and range of the seeds with equal steps. Grey lines: the means of `supervised` and `self_training`.*"
    )
    return "\n\n".join(
        [
            *(table for table in tables if table),
            power(rows),
            picture,
            methods_table(rows),
            facts(rows),
        ]
    )


def methods_of(rows: list[dict]) -> list[str]:
    present = {row["method"] for row in rows}
    return [name for name in METHODS if name in present]


def differences(rows: list[dict], method: str, control: str) -> Paired | None:
    """Returns a method's mIoU minus the control's, seed by seed, or None if no seed has both."""
    by_seed = [{r["seed"]: r["miou"] for r in rows if r["method"] == n} for n in (method, control)]
    seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
    values = [by_seed[0][seed] - by_seed[1][seed] for seed in seeds]
    return Paired(values, sum(value > 0 for value in values)) if seeds else None


def budget_table(rows: list[dict], matched: str) -> str:
    """Returns the table of one budget, or nothing if it has no runs."""
    rows = [row for row in rows if row["budget"] == matched]
    if not rows:
        return ""
    body = []
    for method in methods_of(rows):
        own = [row for row in rows if row["method"] == method]
        cells = [f"`{method}`", *(str(own[0][name]) for name in ("steps", "passes"))]
        cells.append(spread([row["miou"] for row in own], 2))
        for control in (BASELINE, CONTROL):
            difference = None if method == control else differences(rows, method, control)
            cells.append(difference.text(2) if difference else "-")
        cells.append(f"{statistics.fmean(row['cpu_seconds'] for row in own):.0f}")
        peaks = [row["peak_mb"] for row in own if row["peak_mb"] is not None]
        cells.append(f"{max(peaks):.0f}" if peaks else "-")
        body.append(cells)
    header = ["method", "steps", "passes", "mIoU %", f"minus `{BASELINE}`", f"minus `{CONTROL}`"]
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    return (
        f"### Equal {matched}\n\nSeeds {seeds}.\n\n"
        f"{markdown([*header, 'processor seconds', 'memory, MB'], body)}"
    )


def spread(values: list[float], digits: int) -> str:
    """Formats the mean with the standard deviation."""
    text = f"{statistics.fmean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def methods_table(rows: list[dict]) -> str:
    """Returns the table of the methods. The first line of the class's docstring describes each."""
    body = []
    for name in methods_of(rows):
        kind, options = choose({"name": name})
        networks = {row["networks"] for row in rows if row["method"] == name}
        first = (kind.__doc__ or "").partition("\n")[0]
        units = kind.passes(Settings(), options).units
        body.append([f"`{name}`", first, str(units), ", ".join(map(str, sorted(networks)))])
    header = ["method", "what it is", "passes per step", "networks at inference"]
    return f"### The methods\n\n{markdown(header, body)}"


def power(rows: list[dict]) -> str:
    """Returns a paragraph about the differences that so few seeds can show."""
    compared = [
        difference
        for matched in BUDGETS
        for method in methods_of(rows)
        for control in (BASELINE, CONTROL)
        if method not in (BASELINE, CONTROL)
        and (difference := differences(of_budget(rows, matched), method, control))
        and len(difference.differences) > 1
    ]
    if not compared:
        return "No method has two seeds in common with a control, so there are no intervals."
    seeds = min(len(each.differences) for each in compared)
    deviation = statistics.median(statistics.stdev(each.differences) for each in compared)
    effect = detectable(seeds)
    return (
        f"**What {seeds} seeds can show.** A t test finds a true difference with a chance of 80 % if it is "
        f"{effect:.1f} times the standard deviation of the seeds' differences. For half of the comparisons, that is "
        f"more than {effect * deviation:.1f} points of mIoU. The tables have {len(compared)} such intervals. By chance "
        "alone, about one in twenty of them excludes 0."
    )


def of_budget(rows: list[dict], matched: str) -> list[dict]:
    return [row for row in rows if row["budget"] == matched]


def facts(rows: list[dict]) -> str:
    names = ("cpu", "torch", "versions", "commit")
    values = ["; ".join(sorted({row[name] for row in rows})) for name in names]
    return "Runs: {}. Processor: {}. torch {}, {}. Commits: {}.".format(len(rows), *values)


# ---- plot -------------------------------------------------------------------------------------------


def plot(rows: list[dict], path: Path, columns: int = 5) -> None:
    """Plots mIoU against passes, one panel per method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = methods_of(rows)
    height = -(-len(names) // columns)
    figure, all_axes = plt.subplots(
        height,
        columns,
        figsize=(13, 0.6 + 2.4 * height),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    curves = {name: curve_of(of_budget(rows, "passes"), name) for name in names}
    for axes, name in zip(all_axes.flat, names, strict=False):
        for other, colour in ((BASELINE, "#b4bcc8"), (CONTROL, "#7c8796")):
            if name != other and curves.get(other):
                passes, means, *_ = curves[other]
                axes.plot(passes, means, color=colour, lw=1)
        if curves[name]:
            passes, means, low, high = curves[name]
            axes.fill_between(passes, low, high, color="#f0722a", alpha=0.25, lw=0)
            axes.plot(passes, means, color="#f0722a", lw=2)
        ends = [row for row in of_budget(rows, "steps") if row["method"] == name]
        if ends:
            values = [row["miou"] for row in ends]
            mean = statistics.fmean(values)
            reach = [[mean - min(values)], [max(values) - mean]]
            point = {"fmt": "o", "ms": 4, "color": "#1f2733", "capsize": 2, "lw": 1}
            axes.errorbar(ends[0]["passes"], mean, yerr=reach, **point)
        axes.set_title(name, fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e9ee", lw=0.7)
    for axes in all_axes.flat[len(names) :]:
        axes.set_visible(False)
    for axes in all_axes.flat[max(0, len(names) - columns) : len(names)]:
        axes.tick_params(labelbottom=True)  # the lowest of each column
    late = [low for curve in curves.values() if curve for low in curve[2][len(curve[2]) // 2 :]]
    ends = [row["miou"] for row in of_budget(rows, "steps")]
    all_axes[0, 0].set_ylim(bottom=min(late + ends) - 2)  # the first half would hide differences
    figure.supxlabel("passes: forward passes of a labelled batch", fontsize=9)
    figure.supylabel("mIoU on the test scenes, %", fontsize=9)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def curve_of(rows: list[dict], method: str) -> tuple[list, ...] | None:
    """Returns passes, and the mean, least and greatest mIoU of the seeds."""
    curves = [row["curve"] for row in rows if row["method"] == method]
    if not curves:
        return None
    passes = [at for at, _ in curves[0]]
    values = [[miou for _, miou in points] for points in zip(*curves, strict=True)]
    return passes, [*map(statistics.fmean, values)], [*map(min, values)], [*map(max, values)]
