"""Figures of several panels: images with their maps, features by class, densities during training."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dgcl_ops.metrics import density_statistics
from dgcl_ops.viz._data import check_shape
from dgcl_ops.viz._images import (
    DENSITY_COLORS,
    IGNORED,
    class_colors,
    class_image,
    density_image,
    density_limits,
    load_matplotlib,
    to_numpy,
)


def plot_panels(
    images: Tensor,
    classes: Mapping[str, Tensor],
    densities: Mapping[str, Tensor],
    class_names: Sequence[str],
    *,
    limits: tuple[float, float] | None = None,
    figure: Any = None,
) -> Any:
    """Draws a row of panels for each image: the image, its class maps, its density maps.

    Args:
        images: [B, 3, H, W] or [B, 1, H, W] in [0, 1]; of volumes, one slice each.
        classes: class maps [B, H, W] by title, such as labels and predictions. At least one.
        densities: density maps [B, H, W] by title, see `density_map`. May be empty.
        class_names: the names of all C classes.
        limits: see `density_image`. By default one scale for all maps.
        figure: a matplotlib figure or subfigure with layout "constrained" to draw into. By default a new one.

    Returns:
        The figure. Its `savefig(path)` writes it.

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: If a shape does not fit, or `images` do not lie in [0, 1].
    """
    matplotlib = load_matplotlib("plot_panels")
    from matplotlib.cm import ScalarMappable
    from matplotlib.patches import Patch

    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"viz.plot_panels: images must have shape [B, 3, H, W] or [B, 1, H, W], got {list(images.shape)}; pass one "
            "slice of each volume, such as images[:, :, z] and labels[:, z]"
        )
    for title, maps in (*classes.items(), *densities.items()):
        check_shape("plot_panels", title, maps, [len(images), *images.shape[2:]])
    low, high = float(images.min()), float(images.max())
    if low < -0.01 or high > 1.01:
        raise ValueError(
            f"viz.plot_panels: images must lie in [0, 1] (undo a normalisation), got {low:.2f} to {high:.2f}"
        )
    rows, columns = len(images), 1 + len(classes) + len(densities)
    if figure is None:
        height = 1.6 * images.shape[-2] / images.shape[-1]
        size = (1.6 * columns + 0.7 * bool(densities), height * rows + 0.6)
        figure = matplotlib.figure.Figure(size, layout="constrained")
    if limits is None:
        limits = density_limits(*densities.values()) if densities else (0.0, 1.0)
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, row in enumerate(grid):
        panels = [("image", to_numpy(images[i].expand(3, -1, -1)).transpose(1, 2, 0))]
        panels += [(name, class_image(maps[i], len(class_names))) for name, maps in classes.items()]
        panels += [
            (name, density_image(images[i], maps[i], limits)) for name, maps in densities.items()
        ]
        for axes, (title, panel) in zip(row, panels, strict=True):
            axes.imshow(panel.clip(0, 1), interpolation="nearest")
            axes.axis("off")
            if i == 0:
                axes.set_title(title, fontsize=9.5)
    if densities:
        scale = ScalarMappable(matplotlib.colors.Normalize(*limits), DENSITY_COLORS)
        bar = figure.colorbar(scale, ax=grid, location="right", aspect=18 * rows, pad=0.01)
        bar.ax.tick_params(labelsize=7.5, length=2)
        bar.set_label("density", fontsize=8.5)
        bar.outline.set_visible(False)
    colors = class_colors(len(class_names))
    # Only visible classes: a legend of 150 names would leave no room.
    seen = {int(c) for maps in classes.values() for c in maps[:rows].unique()}
    patches = [
        Patch(color=colors[c], label=name) for c, name in enumerate(class_names) if c in seen
    ]
    if seen - set(range(len(class_names))):
        patches.append(Patch(color=colors[-1], label="no label"))
    _legend_below(figure, patches, handlelength=1, handleheight=1, handletextpad=0.4)
    return figure


def plot_features(
    features: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    *,
    points: Any = None,
    anchors: Tensor | None = None,
    keys: Tensor | None = None,
    axes: Any = None,
) -> Any:
    """Draws features by class in two dimensions, with rings around anchors and stars on keys.

    With anchors or keys given, classes without any are grey: the loss does not train them.

    Args:
        features: [N, D], the rows.
        labels: [N]. Rows without a class are not drawn.
        class_names: the names of all C classes.
        points: [N, 2], a layout of the rows, such as t-SNE. By default their first two principal components.
        anchors: [N] bool, the rows to ring, see `anchors_and_keys`.
        keys: [N] bool, the rows to star.
        axes: matplotlib axes to draw into. By default those of a new figure with a legend.

    Returns:
        The axes. `axes.figure.savefig(path)` writes their figure.

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: If a shape does not fit.
    """
    matplotlib = load_matplotlib("plot_features")
    import numpy as np

    rows = [len(features)]
    for name, values in (("labels", labels), ("anchors", anchors), ("keys", keys)):
        check_shape("plot_features", name, values, rows)
    check_shape("plot_features", "points", points, [*rows, 2])
    own = axes is None
    if own:
        axes = matplotlib.figure.Figure((6, 5.2), layout="constrained").add_subplot()
    points = to_numpy(_principal_components(features) if points is None else points)
    classes = to_numpy(labels)
    rings, stars = (
        np.zeros(len(classes), bool) if marks is None else to_numpy(marks).astype(bool)
        for marks in (anchors, keys)
    )
    labelled = (classes >= 0) & (classes < len(class_names))
    rings, stars = rings & labelled, stars & labelled
    ink, colors = matplotlib.rcParams["text.color"], class_colors(len(class_names))
    trained = np.unique(classes[rings | stars])
    for c, name in enumerate(class_names):
        members = classes == c
        faint = len(trained) > 0 and c not in trained
        if members.any():
            color, alpha = (IGNORED, 0.6) if faint else (colors[c], 0.85)
            axes.scatter(*points[members].T, s=4 if faint else 9, color=color, alpha=alpha, lw=0)
            axes.scatter([], [], s=26, color=color, lw=0, label=name)  # for the legend
    if rings.any():
        ring = {"facecolors": "none", "edgecolors": ink, "s": 34, "lw": 0.9}
        axes.scatter(*points[rings].T, label="anchors", **ring)
    if stars.any():
        star = {"marker": "*", "edgecolors": ink, "s": 60, "lw": 0.6}
        axes.scatter(*points[stars].T, c=colors[classes[stars]], **star)
        axes.scatter([], [], label="keys", color=ink, **star | {"edgecolors": "none"})
    axes.set(xticks=[], yticks=[])
    if own:
        add_legend(axes)
    return axes


def add_legend(axes: Any) -> None:
    """Adds the legend of `plot_features` below the figure. Several plots of the same classes need only one.

    Args:
        axes: the axes that `plot_features` returned.
    """
    handles, _ = axes.get_legend_handles_labels()
    _legend_below(axes.figure, handles, handletextpad=0.1, scatterpoints=1)


def _legend_below(figure: Any, handles: list[Any], **look: Any) -> None:
    """A legend in as few rows as fit, of about equal length."""
    width = figure.bbox.width / figure.dpi  # inches; a letter of this size takes about 0.07
    needed = sum(0.35 + 0.07 * len(handle.get_label()) for handle in handles)
    rows = max(1, -(-needed // width))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=int(-(-len(handles) // rows)), frameon=False,
        fontsize=8.5, columnspacing=1.0, **look,
    )  # fmt: skip


def _principal_components(features: Tensor) -> Tensor:
    """[N, D] -> [N, 2]. Rows with an inf or NaN get NaN, which is not drawn.

    The sign of a component is arbitrary, so its largest weight is made positive.
    """
    features = features.detach().double().cpu()
    finite = features[features.isfinite().all(1)]
    centred, finite = features - finite.mean(0), finite - finite.mean(0)
    axes = torch.linalg.eigh(finite.T @ finite).eigenvectors[:, -2:].flip(1)  # [D, 2]
    return centred @ (axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign())


def plot_density_histograms(
    snapshots: Mapping[str, Tensor], class_names: Sequence[str], *, bins: int = 30
) -> Any:
    """Draws a histogram of each class's densities during training, with one outline per snapshot.

    Outlines go from pale to dark. Triangles mark medians.

    Args:
        snapshots: `bank_densities` [C, capacity] by title (such as "step 200"), in the order of training. NaN marks a
            slot without a density.
        class_names: the names of all C classes. Classes without a density in any snapshot are not drawn.
        bins: number of bins of the shared axis. The axis begins at the 2nd percentile of all densities.

    Returns:
        The figure. Its `savefig(path)` writes it.

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: If a shape does not fit, or none of `snapshots` holds a density.
    """
    matplotlib = load_matplotlib("plot_density_histograms")
    import numpy as np

    for title, each in snapshots.items():
        check_shape("plot_density_histograms", title, each, [len(class_names), each.shape[-1]])
    tables = [to_numpy(each) for each in snapshots.values()]
    shown = [
        c for c in range(len(class_names)) if any(np.isfinite(table[c]).any() for table in tables)
    ]
    if not shown:
        raise ValueError(
            f"viz.plot_density_histograms: snapshots must hold a density, got {len(tables)} without any"
        )
    values = np.concatenate([table[np.isfinite(table)] for table in tables])
    low, high = np.quantile(values, 0.02), values.max()
    edges = np.linspace(low, max(high, low + 1e-6), bins + 1)
    ramp = matplotlib.colormaps["viridis_r"](np.linspace(0.12, 0.95, len(tables)))

    columns = min(5, len(shown))
    rows = -(-len(shown) // columns)
    figure = matplotlib.figure.Figure((1 + 1.9 * columns, 0.9 + 1.35 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    classes = torch.arange(len(class_names))[:, None]
    for table, color, title in zip(tables, ramp, snapshots, strict=True):
        density = torch.from_numpy(table)
        medians = density_statistics(
            density, classes.expand_as(density), len(class_names), quantiles=(0.5,)
        )["quantiles"][0]
        for axes, c in zip(grid.flat, shown, strict=False):
            densities = table[c][np.isfinite(table[c])]
            if not len(densities):
                continue
            share = np.histogram(densities, edges)[0] / len(densities)
            axes.stairs(share, edges, color=color, lw=1.6, label=title)
            axes.plot(
                medians[c].clip(*edges[[0, -1]]), 0, "^", color=color, ms=6, clip_on=False, zorder=3
            )
    for axes, c in zip(grid.flat, shown, strict=False):
        axes.set_title(class_names[c], fontsize=9.5)
        axes.set_ylim(bottom=0)
        axes.set_yticks([])
        axes.tick_params(labelsize=8, length=2)
        axes.spines[["left", "right", "top"]].set_visible(False)
    for axes in grid.flat[len(shown) :]:
        axes.remove()
    handles = {
        name: handle
        for axes in grid.flat[: len(shown)]
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.supxlabel("density of the bank's rows (triangles: medians)", fontsize=9)
    figure.supylabel("share of the rows", fontsize=9)
    names = [name for name in snapshots if name in handles]
    figure.legend(
        [handles[name] for name in names], names, loc="outside upper center", ncols=len(names),
        frameon=False, fontsize=8.5,
    )  # fmt: skip
    return figure
