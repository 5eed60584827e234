"""The demo's pictures: curves, scatter plots and an overview, by matplotlib."""

import io
import statistics

import matplotlib
import numpy as np
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # after the choice of the backend

from semi_supervised import tiles
from semi_supervised.scenes import CLASS_NAMES
from semi_supervised.tiles import COLOURS, IGNORED

METHOD_COLOURS = {
    "supervised": "#8b95a3",
    "self-training": "#3b82f6",
    "density contrast": "#f0722a",
}
LIGHT, DARK = {"ink": "#1f2733", "faint": "#d8dde4"}, {"ink": "#e4e9f0", "faint": "#39424f"}


def embed(shown: dict) -> np.ndarray:
    """t-SNE of a run's features: [N, 2]."""
    features = shown["features"]
    perplexity = min(30, (len(features) - 1) / 3)
    with threadpool_limits(1):  # so few points gain nothing from threads
        return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)


def scatter(axes, shown: dict, points: np.ndarray, title: str, theme: dict) -> None:
    """Features by class. Of each digit the tenth of lowest density is ringed (where the loss takes its anchors), the
    tenth of highest density is starred (where it takes its keys)."""
    classes, density = shown["classes"], shown["feature density"]
    for c, colour in enumerate(COLOURS):
        x, y = points[classes == c].T
        faint = c == 0
        axes.scatter(
            x,
            y,
            s=4 if faint else 9,
            color=IGNORED if faint else colour,
            alpha=0.6 if faint else 0.85,
            lw=0,
        )
    for c in range(1, len(COLOURS)):
        members = np.flatnonzero(classes == c)
        order = members[np.argsort(density[members])]
        tenth = -(-len(order) // 10)
        rings, stars = points[order[:tenth]], points[order[len(order) - tenth :]]
        axes.scatter(*rings.T, s=34, facecolors="none", edgecolors=theme["ink"], lw=0.9)
        axes.scatter(*stars.T, s=60, marker="*", color=COLOURS[c], edgecolors=theme["ink"], lw=0.6)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=10, color=theme["ink"])
    for side in axes.spines.values():
        side.set_color(theme["faint"])


def scatter_figure(panels: list[tuple[str, dict, np.ndarray]], theme: dict) -> bytes:
    figure, all_axes = plt.subplots(1, len(panels), figsize=(10, 4.8), layout="constrained")
    for axes, (title, shown, points) in zip(all_axes, panels, strict=True):
        scatter(axes, shown, points, title, theme)
    handles = [plt.Line2D([], [], ls="", marker="o", color=colour, ms=5) for colour in COLOURS[1:]]
    ring = plt.Line2D([], [], ls="", marker="o", mfc="none", mec=theme["ink"], ms=6)
    star = plt.Line2D([], [], ls="", marker="*", color=theme["ink"], ms=8)
    ground = plt.Line2D([], [], ls="", marker="o", color=IGNORED, ms=4)
    figure.legend(
        [*handles, ground, ring, star],
        [*CLASS_NAMES[1:], "background", "lowest density (anchors)", "highest density (keys)"],
        loc="outside lower center", ncols=13, frameon=False, fontsize=8.5, labelcolor=theme["ink"],
        handletextpad=0.1, columnspacing=1.0,
    )  # fmt: skip
    return _png(figure)


def curve_figure(runs: list, theme: dict) -> bytes:
    """mIoU, both losses and the mean density against the step: each seed thin, the mean of the seeds thick."""
    panels = (
        ("mIoU on held-out scenes, %", lambda run: run.curve, True),
        ("density loss", lambda run: _smooth(run.history, "contrast"), False),
        ("mean density in the bank", lambda run: _smooth(run.history, "density"), False),
        ("loss on pseudo labels", lambda run: _smooth(run.history, "unlabelled"), False),
    )
    figure, grid = plt.subplots(2, 2, figsize=(10, 6), layout="constrained")
    for axes, (title, curve_of, with_supervised) in zip(grid.flat, panels, strict=True):
        for method, colour in METHOD_COLOURS.items():
            if method == "supervised" and not with_supervised:
                continue
            curves = [curve_of(run) for run in runs if run.method == method]
            for curve in filter(None, curves):
                axes.plot(*zip(*curve, strict=True), color=colour, lw=0.8, alpha=0.45)
            mean = [
                (points[0][0], statistics.fmean(value for _, value in points))
                for points in zip(*curves, strict=True)
            ]
            if mean:
                axes.plot(*zip(*mean, strict=True), color=colour, lw=2.2, label=method)
        axes.set_title(title, fontsize=10, color=theme["ink"], loc="left")
        axes.tick_params(colors=theme["ink"], labelsize=8, length=0)
        axes.grid(color=theme["faint"], lw=0.6)
        axes.spines[:].set_visible(False)
    grid[1, 0].set_xlabel("step", fontsize=9, color=theme["ink"])
    grid[1, 1].set_xlabel("step", fontsize=9, color=theme["ink"])
    grid[0, 0].legend(frameon=False, fontsize=9, labelcolor=theme["ink"], loc="lower right")
    return _png(figure)


def _smooth(history, name, window=20):
    """(step, mean over a window of records) where the run was semi-supervised."""
    records = [record for record in history if "contrast" in record]
    groups = [records[i : i + window] for i in range(0, len(records), window)]
    return [(g[-1]["step"], statistics.fmean(record[name] for record in g)) for g in groups]


def overview(scenes: list[list[tuple[str, np.ndarray]]], panels: list) -> bytes:
    """One picture of all: a row of tiles per scene, and the scatter plots beside them."""
    rows, columns = len(scenes), len(scenes[0])
    figure = plt.figure(
        figsize=(13, 2.05 * rows * 0.82 + 0.3), facecolor="white", layout="constrained"
    )
    left, right = figure.subfigures(1, 2, width_ratios=(2.05, 1))
    grid = left.subplots(rows, columns, squeeze=False)
    for row, row_axes in zip(scenes, grid, strict=True):
        for (title, tile), axes in zip(row, row_axes, strict=True):
            axes.imshow(tile, interpolation="nearest")
            axes.axis("off")
            if row is scenes[0]:
                axes.set_title(title, fontsize=9.5, color=LIGHT["ink"])
    all_axes = right.subplots(len(panels), 1, squeeze=False).flat
    for axes, (title, shown, points) in zip(all_axes, panels, strict=True):
        scatter(axes, shown, points, title, LIGHT)
    return _png(figure, dpi=90)


def tile_png(tile: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    plt.imsave(buffer, np.clip(tile, 0, 1), format="png")
    return buffer.getvalue()


def colour_bar() -> bytes:
    return tile_png(tiles.DENSITY_MAP(np.linspace(0, 1, 64))[None, :, :3])


def _png(figure, dpi=150):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, transparent=dpi != 90)
    plt.close(figure)
    return buffer.getvalue()
