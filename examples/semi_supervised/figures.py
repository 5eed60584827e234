"""The demo's pictures: curves, scatter plots and an overview, drawn with matplotlib."""

import io
import statistics
from collections.abc import Iterable

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # must follow the choice of the backend

from dgcl_ops import viz
from semi_supervised.scenes import CLASS_NAMES

METHOD_COLOURS = {
    "supervised": "#8b95a3",
    "self-training": "#3b82f6",
    "density contrast": "#f0722a",
}
LIGHT, DARK = {"ink": "#1f2733", "faint": "#d8dde4"}, {"ink": "#e4e9f0", "faint": "#39424f"}


def embed(shown: dict) -> np.ndarray:
    """Computes the t-SNE of a run's features, [N, 2]."""
    features = shown["features"]
    perplexity = min(30, (len(features) - 1) / 3)
    with threadpool_limits(1):  # threads slow down so few points
        return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)


def scatter(all_axes: Iterable[Axes], panels: list[tuple[str, dict, np.ndarray]]) -> None:
    """Plots features by class. Each panel is a title, a run's arrays and the positions of its features."""
    for axes, (title, shown, points) in zip(all_axes, panels, strict=True):
        features, *rest = (
            torch.from_numpy(shown[name]) for name in ("features", "classes", "anchors", "keys")
        )
        labels, anchors, keys = rest
        viz.plot_features(
            features, labels, CLASS_NAMES, points=points, anchors=anchors, keys=keys, axes=axes
        )
        axes.set_title(title, fontsize=10)


def scatter_figure(panels: list, theme: dict) -> bytes:
    with plt.rc_context(_themed(theme)):
        figure, all_axes = plt.subplots(1, len(panels), figsize=(10, 4.8), layout="constrained")
        scatter(all_axes, panels)
        viz.add_legend(all_axes[0])
        return png(figure)


def _themed(theme: dict) -> dict:
    return {
        **dict.fromkeys(
            ("text.color", "xtick.color", "ytick.color", "axes.labelcolor"), theme["ink"]
        ),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), theme["faint"]),
    }


def curve_figure(runs: list, theme: dict) -> bytes:
    """Plots mIoU, losses and mean density against the step. Thin lines: seeds. Thick lines: their mean."""
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
    return png(figure)


def _smooth(history: list[dict], name: str, window: int = 20) -> list[tuple[int, float]]:
    """Returns (step, mean over a window of records) of the semi-supervised steps."""
    records = [record for record in history if "contrast" in record]
    groups = [records[i : i + window] for i in range(0, len(records), window)]
    return [(g[-1]["step"], statistics.fmean(record[name] for record in g)) for g in groups]


def overview(images: torch.Tensor, classes: dict, densities: dict, panels: list) -> bytes:
    """Draws one row of panels per scene, with the scatter plots on the right."""
    with plt.rc_context(_themed(LIGHT)):
        size = (13.4, 1.7 * len(images) + 0.6)
        figure = plt.figure(figsize=size, facecolor="white", layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(2.1, 1))
        viz.plot_panels(images, classes, densities, CLASS_NAMES, figure=left)
        scatter(right.subplots(len(panels), 1, squeeze=False).flat, panels)
        return png(figure, opaque=True)


def before_after(images: torch.Tensor, classes: dict, densities: dict) -> bytes:
    """Draws larger panels, with the densities of both runs on one scale."""
    with plt.rc_context(_themed(LIGHT)):
        return png(viz.plot_panels(images, classes, densities, CLASS_NAMES), opaque=True)


def density_histograms(snapshots: dict[str, np.ndarray]) -> bytes | None:
    """Plots the bank's densities at up to four moments of the training. None if no class became ready."""
    tensors = {name: torch.from_numpy(each) for name, each in snapshots.items()}
    tensors = {name: each for name, each in tensors.items() if not each.isnan().all()}
    if not tensors:
        return None
    names = list(tensors)
    chosen = [names[i] for i in sorted({*np.linspace(0, len(names) - 1, 4).round().astype(int)})]
    with plt.rc_context(_themed(LIGHT)):
        figure = viz.plot_density_histograms({name: tensors[name] for name in chosen}, CLASS_NAMES)
        return png(figure, opaque=True)


def tile_png(tile: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    plt.imsave(buffer, np.clip(tile, 0, 1), format="png")
    return buffer.getvalue()


def colour_bar() -> bytes:
    return tile_png(matplotlib.colormaps[viz.DENSITY_COLORS](np.linspace(0, 1, 64))[None, :, :3])


def png(figure: Figure, *, opaque: bool = False) -> bytes:
    """Renders a figure and closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90 if opaque else 150, transparent=not opaque)
    plt.close(figure)
    return buffer.getvalue()
