"""Tables and plot of the study of CCP."""

import math
import statistics
from pathlib import Path

from semi_supervised.intervals import detectable

from evidence.ccp_report import FEW, gates_text, matchings, read_rows
from evidence.ccp_settings import CLASSES
from evidence.compare import CONTROL, METHOD, METRICS, RANDOM, SUPERVISED, Paired, paired
from evidence.detection import SCORES
from evidence.report import markdown

ARMS = (SUPERVISED, CONTROL, METHOD, RANDOM)
PAIRS = ((METHOD, CONTROL), (RANDOM, CONTROL), (METHOD, RANDOM), (CONTROL, SUPERVISED))
RARE = 0.005  # a class with a smaller share of the labelled test pixels is rare
IOU = (("miou", "mIoU %", 2, True), ("rare", "rare classes", 2, True))
IOU = (*IOU, ("frequent", "other classes", 2, True))
VALIDATION = (("val_miou", "mIoU %", 2, True),)
COLOURS = {SUPERVISED: "#8b95a3", CONTROL: "#3b82f6", METHOD: "#f0722a", RANDOM: "#10a37f"}
TITLES = {
    "density": "density",
    "entropy": "entropy",
    "confidence": "confidence",
    "ranks": "density + entropy, ranks",
    "regression": "density + entropy, regression",
}


def report(folder: Path) -> str:
    """Writes ccp.md and ccp.png next to runs.csv and test.csv.

    Returns:
        The text of ccp.md.
    """
    trained = read_rows(folder / "runs.csv")
    if not trained:
        return "No runs have been recorded yet."
    rows = tested(read_rows(folder / "test.csv"))
    parts = [heading(trained, rows), gates_part(trained)]
    parts.append(
        f"## mIoU on the 100 validation images\n\n{comparison(trained, VALIDATION, False)}"
    )
    if rows:
        parts += [iou_table(rows), cluster_table(rows), error_table(rows), class_table(rows)]
        plot(rows, folder / "ccp.png")
    text = "\n\n".join(part for part in parts if part) + "\n"
    (folder / "ccp.md").write_text(text)
    return text


def tested(rows: list[dict]) -> list[dict]:
    """Converts rows of test.csv to numbers. Adds the mean IoU of the rare classes and of the others."""
    for row in rows:
        row["pixels"] = [int(each) for each in row["class_pixels"].split()]
        iou = [float(each) for each in row["class_iou"].split()]
        rare = rare_classes(row["pixels"])
        for name, chosen in (("rare", rare), ("frequent", set(range(len(iou))) - rare)):
            row[name] = statistics.fmean(iou[number] for number in chosen) if chosen else math.nan
        for name in (*(metric for metric, *_ in METRICS), *banked_columns()):
            row[name] = number(row[name])
        row["by_class"] = {s: [number(each) for each in row[f"class_{s}"].split()] for s in SCORES}
    return rows


def banked_columns() -> list[str]:
    """Returns the columns with AUROCs: over all pixels, and over the pixels whose predicted class has a bank."""
    return ["all_entropy", "all_confidence", *(f"banked_{score}" for score in SCORES)]


def number(text: str | float) -> float | None:
    """Reads a figure. Returns None for "-" and ""."""
    return None if text in ("-", "") else float(text)


def rare_classes(pixels: list[int]) -> set[int]:
    """Returns the classes that have pixels, but a share of less than RARE."""
    return {i for i, count in enumerate(pixels) if 0 < count < RARE * sum(pixels)}


# ---- statistics --------------------------------------------------------------------------------------


def smallest_shown(differences: list[float]) -> float:
    """Returns the smallest true difference that a paired t-test with the observed spread detects with 80 % power."""
    if len(differences) < 2:
        return math.inf
    return detectable(len(differences)) * statistics.stdev(differences)


def of_arm(rows: list[dict], arm: str) -> list[dict]:
    """Returns the rows of an arm with few labels, sorted by seed."""
    chosen = (row for row in rows if (row["variant"], row["labelled"]) == (arm, FEW))
    return sorted(chosen, key=lambda row: row["seed"])


def mean_text(values: list[float | None], digits: int) -> str:
    """Formats mean and standard deviation. Returns "-" without values."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{digits}f}{spread}"


# ---- tables ------------------------------------------------------------------------------------------


def heading(trained: list[dict], rows: list[dict]) -> str:
    facts = {n: ", ".join(sorted({row[n] for row in trained})) for n in ("cpu", "torch", "commit")}
    return (
        f"# Photographs with few labels: {len(trained)} runs, {len(rows)} of them tested\n\n"
        "`python benchmarks/evidence/ccp.py --data DIR` trains the runs and adds rows to `runs.csv`. After the last "
        "run, `python benchmarks/evidence/ccp_test.py --data DIR` reads the test images and adds rows to `test.csv`. "
        "`python benchmarks/evidence/ccp.py --report` prints this page.\n\n"
        "The data are Clothing Co-Parsing (CCP) at 168 x 256, with 14 classes. Training uses 44 of 704 labelled images "
        "and 1,754 unlabelled ones. The backbone is EfficientNet-Lite0 with frozen ImageNet weights. ± after a mean is "
        "the standard deviation over the seeds. ± after a paired difference is half of its 95 % confidence interval "
        '(Student\'s t). Brackets give the number of seeds that improve. "null": the interval contains 0.\n\n'
        f"Machine: {facts['cpu']}; torch {facts['torch']}; commits {facts['commit']}; one thread per run."
    )


def gates_part(trained: list[dict]) -> str:
    """Lists the gates, and the check that the runs of a seed are matched."""
    lines = [*gates_text(trained).splitlines(), *(each.text() for each in matchings(trained))]
    return "## Gates on the validation images, and checks that runs are matched\n\n" + "\n".join(
        f"- {line}" for line in lines
    )


def comparison(rows: list[dict], metrics: tuple, power: bool) -> str:
    """Returns a table with the means of the arms, and the paired differences between arms."""
    body = [
        [arm, str(len(found)), *(mean_text([r[m] for r in found], d) for m, _, d, _ in metrics)]
        for arm in ARMS
        if (found := of_arm(rows, arm))
    ]
    for treated, control in PAIRS:
        changes = [paired(rows, treated, control, FEW, m, up) for m, _, _, up in metrics]
        if changes[0] is None:
            continue
        cells = [c.text(d) for c, (_, _, d, _) in zip(changes, metrics, strict=True)]
        seeds = str(len(changes[0].differences))
        body.append([f"*{treated} minus {control}*", seeds, *cells])
        if power:
            body[-1].append(f"{smallest_shown(changes[0].differences):.2f}")
    if power:
        body = [[*line, *[""] * (len(metrics) + 3 - len(line))] for line in body]
    header = ["", "seeds", *(title for _, title, *_ in metrics)]
    return markdown([*header, "mIoU detectable with 80 % power"] if power else header, body)


def iou_table(rows: list[dict]) -> str:
    pixels = rows[0]["pixels"]
    rare = ", ".join(
        f"{CLASSES[i]} ({100 * pixels[i] / sum(pixels):.2f} %)"
        for i in sorted(rare_classes(pixels))
    )
    return (
        "## mIoU of the teacher on the 200 test images\n\n"
        f"{comparison(rows, IOU, True)}\n\n"
        f"Rare classes have less than {100 * RARE} % of the labelled test pixels: {rare}. "
        "The other classes include the background.\n\n"
        "The last column is the smallest true difference in mIoU that 80 % of such studies would detect. It assumes a "
        "paired, two-sided t-test at the 5 % level and the observed spread (noncentral t distribution)."
    )


def cluster_table(rows: list[dict]) -> str:
    return (
        "## Clusters of the teacher's features, 200 test pixels per class\n\n"
        f"{comparison(rows, METRICS[1:], False)}"
    )


def error_table(rows: list[dict]) -> str:
    """Returns the AUROC of each score for wrong pixels, and its difference from that of entropy in the same run."""
    body = []
    for arm in ARMS:
        found = of_arm(rows, arm)
        if not found:
            continue
        body.append([arm, *(mean_text([row[c] for row in found], 3) for c in banked_columns())])
        if found[0]["banked_density"] is None:
            continue
        cells = [less_entropy(found, column) for column in banked_columns()]
        body.append([f"*{arm}: minus entropy*", *cells])
    titles = ["all pixels: entropy", "all pixels: confidence", *TITLES.values()]
    return (
        "## Which score finds the student's wrong pixels? AUROC on the test images\n\n"
        f"{markdown(['', *titles], body)}\n\n"
        "AUROC is the probability that a random wrong pixel scores higher than a random right one; 0.5 is chance. "
        "Density needs a bank, and the background has none. So all columns but the first two leave out pixels that the "
        "student labels as background. The regression is fitted to the validation images. Supervised runs have no bank."
    )


def less_entropy(rows: list[dict], column: str) -> str:
    """Formats the difference between a score's AUROC and that of entropy, for the same pixels."""
    return less(rows, column, "all_entropy" if column.startswith("all") else "banked_entropy")


def less(rows: list[dict], column: str, base: str) -> str:
    """Formats the paired difference of two columns. Returns "" for the same column, "-" without values."""
    if column == base:
        return ""
    pairs = [(row[column], row[base]) for row in rows if None not in (row[column], row[base])]
    differences = [mine - other for mine, other in pairs]
    return Paired(differences, sum(d > 0 for d in differences)).text(3) if pairs else "-"


def class_table(rows: list[dict]) -> str:
    """Returns the AUROCs by predicted class, for the runs with the density contrast."""
    found = of_arm(rows, METHOD)
    if not found:
        return ""
    body = []
    for i in range(len(found[0]["pixels"])):
        by_score = {s: [row["by_class"][s][i] for row in found] for s in SCORES}
        if any(value is not None for value in by_score["entropy"]):
            body.append([CLASSES[i], *(mean_text(values, 3) for values in by_score.values())])
    return (
        f"## AUROC of wrong pixels by predicted class, {METHOD}\n\n"
        f"{markdown(['class', *TITLES.values()], body)}\n\n"
        "A run counts for a class only if at least 100 right and 100 wrong pixels were sampled."
    )


# ---- plot --------------------------------------------------------------------------------------------


def plot(rows: list[dict], path: Path) -> None:
    """Plots test mIoU by arm, differences with intervals, and AUROCs of errors."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    widths = {"layout": "constrained", "width_ratios": (1, 1, 1)}
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), **widths)
    for seed in sorted({row["seed"] for row in rows}):
        points = [
            (x, row["miou"])
            for x, arm in enumerate(ARMS)
            for row in of_arm(rows, arm)
            if row["seed"] == seed
        ]
        left.plot(*zip(*points, strict=True), color="#c5ccd6", lw=1, zorder=1)
    for x, arm in enumerate(ARMS):
        values = [row["miou"] for row in of_arm(rows, arm)]
        left.scatter([x] * len(values), values, s=22, color=COLOURS[arm], zorder=2)
    short = ("supervised", "self-training", "density\ncontrast", "random\ncontrast")
    left.set_xticks(range(len(ARMS)), short)
    left.set_title("test mIoU, %; one line per seed", fontsize=10, loc="left")
    for y, (treated, control) in enumerate(PAIRS):
        change = paired(rows, treated, control, FEW, "miou")
        if change is None:
            continue
        if len(change.differences) > 1:
            interval = {"xerr": change.half, "capsize": 3, "lw": 1.2}
            middle.errorbar(change.mean, -y, fmt="o", ms=5, color="#1f2733", **interval)
        heights = [-y - 0.15] * len(change.differences)
        middle.scatter(change.differences, heights, s=12, color=COLOURS[treated], zorder=3)
    middle.axvline(0, color="#8b95a3", lw=1)
    names = dict(zip(ARMS, (name.replace("\n", " ") for name in short), strict=True))
    labels = [f"{names[treated]}\nminus {names[control]}" for treated, control in PAIRS]
    middle.set_yticks([-y for y in range(len(PAIRS))], labels, fontsize=8)
    middle.set_title("difference in test mIoU, 95 % interval", fontsize=10, loc="left")
    for shift, arm in enumerate((CONTROL, METHOD)):
        for x, score in enumerate(SCORES):
            values = [row[f"banked_{score}"] for row in of_arm(rows, arm)]
            values = [value for value in values if value is not None]
            where = [x + 0.24 * shift - 0.12] * len(values)
            label = names[arm] if x == 0 else None
            right.scatter(where, values, s=18, color=COLOURS[arm], alpha=0.7, lw=0, label=label)
    right.set_xticks(
        range(len(SCORES)), ["density", "entropy", "confidence", "ranks", "regression"]
    )
    right.tick_params(axis="x", labelsize=8)
    right.set_title("AUROC of wrong pixels", fontsize=10, loc="left")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
