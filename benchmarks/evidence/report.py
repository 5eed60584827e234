"""Tables and plots of the study: means over seeds, and differences seed by seed with confidence intervals."""

import statistics
from pathlib import Path

from evidence.compare import (
    CONFIDENCE,
    CONTROL,
    METHOD,
    METRICS,
    RANDOM,
    SUPERVISED,
    attempts,
    control_of,
    paired,
)

# Wang et al., CVPR 2023: PASCAL VOC 2012 val, ResNet-101. Our task is a different one.
PUBLISHED_SHARES = ("1/16", "1/8", "1/4", "1/2")
PUBLISHED = {SUPERVISED: (67.87, 71.55, 75.80, 77.13), METHOD: (76.61, 78.37, 79.31, 80.96)}
PUBLISHED_CLUSTERS = {CONTROL: (0.46, 3421.94, 1.53), METHOD: (0.70, 7937.87, 1.13)}
PUBLISHED_ABLATION = {RANDOM: (71.82, 76.73), CONFIDENCE: (71.42, 77.11), METHOD: (77.14, 78.37)}


# ---- tables -----------------------------------------------------------------------------------------


def report(rows: list[dict], path: Path) -> str:
    """Writes the report and the plots.

    Args:
        rows: the runs.
        path: the CSV file. The report and the plots go to the same folder, under its name.

    Returns:
        The report in Markdown.
    """
    counts = sorted({row["labelled"] for row in rows})
    parts = [
        heading(rows, path),
        "\n\n".join(labels_table(rows, count) for count in counts),
        published_table(),
        ablation_table(rows, counts[0]),
        attempts_table(rows, counts[0]),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    path.with_suffix(".md").write_text(text)
    plot(rows, counts, path.with_suffix(".png"))
    return text


def heading(rows: list[dict], path: Path) -> str:
    facts = {
        name: ", ".join(sorted({row[name] for row in rows})) for name in ("cpu", "torch", "commit")
    }
    return (
        f"# Evidence: {len(rows)} runs\n\n"
        "`python benchmarks/evidence/run.py --data DIR --out FILE` trains the runs missing from the CSV file and "
        "prints this page. `--report` prints it without training. "
        f"Source: `{path.name}`, with the settings, seed and commit of every run.\n\n"
        "CamVid at 240 x 180, 11 classes. EfficientNet-Lite0 from ImageNet, frozen unless a row says otherwise. "
        "mIoU and feature scores are measured with the EMA teacher on the 233 test images. "
        "For means, ± is the standard deviation over the seeds. For differences, which are paired, ± is half of the "
        "95 % confidence interval (Student's t). "
        "The brackets give the number of seeds that improve. "
        '"null" means that the interval contains 0, so the runs show no difference.\n\n'
        f"Machine: {facts['cpu']}; torch {facts['torch']}; commits {facts['commit']}; one thread per run."
    )


def markdown(header: list[str], body: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mean_text(rows: list[dict], variant: str, labelled: int, metric: str, digits: int) -> str:
    values = [r[metric] for r in rows if (r["variant"], r["labelled"]) == (variant, labelled)]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def difference_text(
    rows: list[dict],
    treated: str,
    control: str,
    labelled: int,
    metric: str,
    digits: int,
    upward: bool = True,
) -> str:
    difference = paired(rows, treated, control, labelled, metric, upward)
    return difference.text(digits) if difference else "-"


def labels_table(rows: list[dict], labelled: int) -> str:
    body = [
        [name, *(mean_text(rows, name, labelled, metric, d) for metric, _, d, _ in METRICS)]
        for name in (SUPERVISED, CONTROL, METHOD)
    ]
    for treated, control in ((CONTROL, SUPERVISED), (METHOD, CONTROL)):
        cells = (
            difference_text(rows, treated, control, labelled, metric, digits, upward)
            for metric, _, digits, upward in METRICS
        )
        body.append([f"*{treated} minus {control}*", *cells])
    seeds = {r["seed"] for r in rows if r["labelled"] == labelled and r["variant"] == METHOD}
    title = f"## {labelled} labelled images of 367, {len(seeds)} seeds"
    return f"{title}\n\n{markdown(['', *(title for _, title, *_ in METRICS)], body)}"


def published_table() -> str:
    """Shows the authors' figures. Their data set, network and length of training differ."""
    body = [[name, *(f"{v:.2f}" for v in values)] for name, values in PUBLISHED.items()]
    clusters = [[name, *map(str, values)] for name, values in PUBLISHED_CLUSTERS.items()]
    return (
        "## The paper's figures, for comparison (PASCAL VOC 2012, ResNet-101, not reproduced here)\n\n"
        f"{markdown(['mIoU %', *PUBLISHED_SHARES], body)}\n\n"
        f"{markdown(['features', *(title for _, title, *_ in METRICS[1:])], clusters)}"
    )


def ablation_table(rows: list[dict], labelled: int) -> str:
    names = {
        RANDOM: "random anchors, average keys",
        CONFIDENCE: "low-confidence anchors, high-confidence keys",
        METHOD: "low-density anchors, high-density keys",
    }
    if not any(row["variant"] == RANDOM for row in rows):
        return ""
    body = []
    for variant, title in names.items():
        cells = (
            difference_text(rows, variant, CONTROL, labelled, metric, digits, upward)
            for metric, _, digits, upward in METRICS
        )
        published = " / ".join(f"{value:.2f}" for value in PUBLISHED_ABLATION[variant])
        against = difference_text(rows, METHOD, variant, labelled, "miou", 2)
        body.append([title, *cells, "" if variant == METHOD else against, published])
    header = [
        "",
        *(title for _, title, *_ in METRICS),
        "low density minus this, mIoU",
        "paper, VOC mIoU at 183 / 1323 labels",
    ]
    return (
        f"## Which anchors and keys? {labelled} labelled images, differences from self-training\n\n"
        f"{markdown(header, body)}"
    )


def attempts_table(rows: list[dict], labelled: int) -> str:
    body = []
    for variant in attempts(rows):
        control = control_of(variant)
        cells = (
            difference_text(rows, variant, control, labelled, metric, digits, upward)
            for metric, digits, upward in (
                ("val_miou", 2, True),
                *((metric, digits, upward) for metric, _, digits, upward in METRICS),
            )
        )
        body.append([variant, mean_text(rows, variant, labelled, "miou", 2), *cells])
    if len(body) < 2:
        return ""
    header = ["", "mIoU %", "difference: validation mIoU"]
    header += [f"test {METRICS[0][1]}", *(title for _, title, *_ in METRICS[1:])]
    return (
        f"## What we tried: {labelled} labelled images, differences from self-training trained in the same way\n\n"
        "The brackets give each row's number of seeds. Seeds differ between rows: compare the differences, not the "
        "means. With so many intervals, some exclude 0 by chance.\n\n"
        f"{markdown(header, body)}"
    )


# ---- plots ------------------------------------------------------------------------------------------


def plot(rows: list[dict], counts: list[int], path: Path) -> None:
    """Plots mIoU by number of labels, and the change by each variant: mean, 95 % interval and seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, *right) = plt.subplots(
        1, 3, figsize=(13, 4.8), layout="constrained", width_ratios=(1.1, 1, 1)
    )
    colours = {SUPERVISED: "#8b95a3", CONTROL: "#3b82f6", METHOD: "#f0722a"}
    for shift, (name, colour) in enumerate(colours.items()):
        for i, count in enumerate(counts):
            values = [r["miou"] for r in rows if (r["variant"], r["labelled"]) == (name, count)]
            if not values:
                continue
            x = i + (shift - 1) * 0.18
            left.scatter([x] * len(values), values, s=14, color=colour, alpha=0.5, lw=0)
            mean = statistics.fmean(values)
            left.plot(
                [x - 0.07, x + 0.07],
                [mean, mean],
                color=colour,
                lw=3,
                label=name if i == 0 else None,
            )
    left.set_xticks(range(len(counts)), [f"{count} labels" for count in counts])
    left.set_title("mIoU on the test images, %", fontsize=10, loc="left")
    left.legend(frameon=False, fontsize=9)

    names = [
        (f"{name}, {count} labels", name, count)
        for count in counts
        for name in (*attempts(rows), RANDOM, CONFIDENCE)
        if paired(rows, name, control_of(name), count, "miou")
    ]
    for axes, metric, title in zip(
        right, ("miou", METRICS[2][0]), ("mIoU", METRICS[2][1]), strict=True
    ):
        for y, (_, name, count) in enumerate(names):
            change = paired(rows, name, control_of(name), count, metric)
            if len(change.differences) > 1:
                interval = {"xerr": change.half, "capsize": 2, "lw": 1}
                axes.errorbar(change.mean, -y, fmt="o", ms=4, color="#1f2733", **interval)
            heights = [-y] * len(change.differences)
            axes.scatter(change.differences, heights, s=9, color="#f0722a", alpha=0.7, zorder=3)
        axes.axvline(0, color="#8b95a3", lw=1)
        axes.set_yticks([-y for y in range(len(names))], [])
        axes.set_title(f"{title} minus self-training's", fontsize=10, loc="left")
    right[0].set_yticklabels([label for label, *_ in names], fontsize=7.5)
    for axes in (left, *right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
