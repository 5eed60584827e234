"""Plots a sweep: time, time relative to the matrix product alone, and extra memory."""

from pathlib import Path

import on_cuda
from contenders import FLOOR

AXES = {
    "n": ("bank", "bank rows N"),
    "d": ("dim", "dimensions D"),
    "mn": ("bank", "queries and bank rows, M = N"),
}
# One style per contender in every picture. Ours stand out.
STYLES = {
    "dgcl_ops": ("#c0392b", "o", 2.4),
    "dgcl_ops, unit bank": ("#e59866", "o", 1.4),
    "dgcl_ops, exact search": ("#7b241c", "o", 1.4),
    "authors' way": ("#1f618d", "s", 1.4),
    "matmul + one top-k": ("#2980b9", "^", 1.4),
    "fp32 matmul alone": ("#7f8c8d", "x", 1.2),
    "faiss IndexFlat": ("#1e8449", "D", 1.4),
    "scikit-learn brute": ("#8e44ad", "v", 1.4),
    "pykeops": ("#b7950b", "P", 1.4),
}


def plot_sweep(rows: list[dict], sweep: str, folder: Path, data: str, suffix: str = "") -> Path:
    """Plots rows of knn_bench.py that differ only in N, D, or M = N.

    Args:
        rows: the rows.
        sweep: a key of AXES.
        folder: where to write the picture.
        data: name of the data, for title and file name.
        suffix: end of the file name.

    Returns:
        The picture's path.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    column, label = AXES[sweep]
    measured = [dict(row) for row in rows if row["status"] == "measured"]
    floor = {row[column]: row["median_ms"] for row in measured if row["contender"] == FLOOR}
    for row in measured:
        if row[column] in floor:
            row["over_floor"] = row["median_ms"] / floor[row[column]]
    panels = [("median_ms", "median time, ms"), ("over_floor", f"time / {FLOOR}")]
    if any(row.get("extra_mb") for row in measured):
        panels.append(("extra_mb", "extra memory, MB"))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.5 * len(panels), 4.6), squeeze=False, layout="constrained"
    )
    for name in dict.fromkeys(row["contender"] for row in measured):
        own = [row for row in measured if row["contender"] == name]
        with_tf32 = name.endswith(", TF32")
        color, marker, width = STYLES.get(name.removesuffix(", TF32"), (None, ".", 1.2))
        style = {
            "label": name,
            "linestyle": "--" if with_tf32 else "-",
            "color": color,
            "marker": marker,
            "linewidth": width,
            "markersize": 5,
        }
        for axis, (quantity, _) in zip(axes[0], panels, strict=True):
            known = [row for row in own if row.get(quantity)]
            axis.plot([row[column] for row in known], [row[quantity] for row in known], **style)
    for axis, (_, title) in zip(axes[0], panels, strict=True):
        axis.set(xscale="log", yscale="log", xlabel=label, title=title)
        axis.grid(alpha=0.3, which="both", linewidth=0.4)
        ticks = sorted({row[column] for row in measured})
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:,g}")
    lines, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        lines, names, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False
    )
    first = measured[0]
    others = {"n": f"M = {first['queries']:,}, D = {first['dim']}"}
    others["mn"] = f"D = {first['dim']}"
    others["d"] = f"M = {first['queries']:,}, N = {first['bank']:,}"
    figure.suptitle(
        f"KNN density, {others[sweep]}, {data}, {first['metric']}, {first['dtype']}, scales "
        f"{first['scales']}\n{on_cuda.described(first)}, {first['date'][:10]}",
        fontsize=9,
    )
    path = folder / f"knn_{data}_over_{sweep}{suffix}.png"
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path
