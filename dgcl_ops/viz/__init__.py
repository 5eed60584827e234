"""Pictures of a run, by matplotlib: densities over images, features by class, densities over the training.

Matplotlib is optional: `pip install "dgcl-ops[examples]"`. It is imported where it is used, never by `import dgcl_ops`.
Text and lines take matplotlib's own settings (`rcParams`), so a style or a dark theme is set there. What is drawn
is read to the host: these functions are for after a step, not for the step.
"""

import colorsys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dgcl_ops.metrics import density_statistics
from dgcl_ops.viz._data import (
    anchors_and_keys,
    bank_densities,
    check_shape,
    density_map,
    feature_density,
)

__all__ = [
    "add_legend",
    "anchors_and_keys",
    "bank_densities",
    "class_colors",
    "class_image",
    "density_image",
    "density_limits",
    "density_map",
    "feature_density",
    "plot_density_histograms",
    "plot_features",
    "plot_panels",
]

GROUND, IGNORED = "#1c2430", "#c4cad3"
# The first eleven classes: class 0, so often the background, is dark.
COLORS = f"{GROUND} #4e9cf5 #f58f3c #4fbf67 #e5484d #a672e8 #b07d5b #f07fc0 #b9c13d #35c3c9 #f2cf4a".split()
DENSITY_COLORS = "viridis"


def _matplotlib(function: str):
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(
            f'viz.{function} needs matplotlib: pip install "dgcl-ops[examples]"'
        ) from error
    return matplotlib


# ---- images -----------------------------------------------------------------------------------------


def class_colors(num_classes: int):
    """A colour for each class and, last, for what is no class: numpy [C + 1, 3] in [0, 1]."""
    to_rgb = _matplotlib("class_colors").colors.to_rgb
    import numpy as np

    more = num_classes - len(COLORS)
    hues = [colorsys.hls_to_rgb(i / more, 0.6, 0.5) for i in range(more)]
    return np.array([*map(to_rgb, COLORS[:num_classes]), *hues, to_rgb(IGNORED)])


def class_image(labels, num_classes: int):
    """Labels or predictions in colour; what is no class is grey. Shape: [H, W] -> numpy [H, W, 3] in [0, 1]."""
    colors, labels = class_colors(num_classes), _numpy(labels).astype(int)
    labels[(labels < 0) | (labels >= num_classes)] = num_classes
    return colors[labels]


def density_limits(*densities) -> tuple[float, float]:
    """One colour scale for several maps: from the 3rd to the 97th percentile of their densities, 0 left out."""
    import numpy as np

    values = np.concatenate([_numpy(each).ravel() for each in densities])
    values = values[(values != 0) & np.isfinite(values)]
    low, high = np.quantile(values, [0.03, 0.97]) if len(values) else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def density_image(image, density, limits: tuple[float, float] | None = None):
    """The density in colour (yellow: dense) over the image in grey, which shows where the density is 0: none.

    Args:
        image: in [0, 1].
        density: see `density_map`.
        limits: densities of the darkest and the brightest colour, by default `density_limits`.

    Shape: image [3, H, W], density [H, W] -> numpy [H, W, 3] in [0, 1].
    """
    colormap = _matplotlib("density_image").colormaps[DENSITY_COLORS]
    import numpy as np

    image, density = _numpy(image), _numpy(density)
    low, high = density_limits(density) if limits is None else limits
    grey = np.repeat(0.55 * image.mean(0)[:, :, None], 3, axis=2)
    color = colormap(np.clip((density - low) / (high - low), 0, 1))[:, :, :3]
    return np.where(density[:, :, None] == 0, grey, 0.15 * grey + 0.85 * color)


def _numpy(values):
    """A copy on the host."""
    import numpy as np

    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    return np.array(values)


# ---- figures ----------------------------------------------------------------------------------------


def plot_panels(
    images: Tensor,
    classes: Mapping[str, Tensor],
    densities: Mapping[str, Tensor],
    class_names: Sequence[str],
    *,
    limits: tuple[float, float] | None = None,
    figure=None,
):
    """A row of panels for each image: the image, class maps (label, prediction before and after, ...), density maps.

    Args:
        images: in [0, 1].
        classes: title -> class maps. At least one.
        densities: title -> density maps, see `density_map`. May be empty.
        class_names: of all C classes.
        limits: see `density_image`; by default one scale for all maps.
        figure: a figure or subfigure with layout "constrained" to draw into, by default a new one.

    Returns:
        The figure; its `savefig(path)` writes it.

    Shape: images [B, 3, H, W], each map [B, H, W].
    """
    matplotlib = _matplotlib("plot_panels")
    from matplotlib.cm import ScalarMappable
    from matplotlib.patches import Patch

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
    if densities and limits is None:
        limits = density_limits(*densities.values())
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, row in enumerate(grid):
        panels = [("image", _numpy(images[i]).transpose(1, 2, 0))]
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
    # Only the classes to be seen: a legend of 150 would leave no room.
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
    points=None,
    anchors: Tensor | None = None,
    keys: Tensor | None = None,
    axes=None,
):
    """Features by class in two dimensions, with anchors ringed and keys starred. Classes without either are grey
    where there are any: the loss does not train them.

    Args:
        features, labels: the rows; those without a class are left out.
        class_names: of all C classes.
        points: a layout of the rows, such as t-SNE's; by default their first two principal components.
        anchors, keys: which rows to mark, see `anchors_and_keys`.
        axes: to draw into, by default those of a new figure with a legend.

    Returns:
        The axes; `axes.figure.savefig(path)` writes their figure.

    Shape: features [N, D], labels [N], points [N, 2], anchors and keys [N] bool.
    """
    matplotlib = _matplotlib("plot_features")
    import numpy as np

    rows = [len(features)]
    for name, values in (("labels", labels), ("anchors", anchors), ("keys", keys)):
        check_shape("plot_features", name, values, rows)
    check_shape("plot_features", "points", points, [*rows, 2])
    own = axes is None
    if own:
        axes = matplotlib.figure.Figure((6, 5.2), layout="constrained").add_subplot()
    points = _numpy(_principal_components(features) if points is None else points)
    labels = _numpy(labels)
    rings, stars = (
        np.zeros(len(labels), bool) if marks is None else _numpy(marks).astype(bool)
        for marks in (anchors, keys)
    )
    labelled = (labels >= 0) & (labels < len(class_names))
    rings, stars = rings & labelled, stars & labelled
    ink, colors = matplotlib.rcParams["text.color"], class_colors(len(class_names))
    trained = np.unique(labels[rings | stars])
    for c, name in enumerate(class_names):
        members = labels == c
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
        axes.scatter(*points[stars].T, c=colors[labels[stars]], **star)
        axes.scatter([], [], label="keys", color=ink, **star | {"edgecolors": "none"})
    axes.set(xticks=[], yticks=[])
    if own:
        add_legend(axes)
    return axes


def add_legend(axes) -> None:
    """The legend of `plot_features` below the figure: one for several plots of the same classes."""
    handles, _ = axes.get_legend_handles_labels()
    _legend_below(axes.figure, handles, handletextpad=0.1, scatterpoints=1)


def _legend_below(figure, handles: list, **look) -> None:
    """In as few rows as fit, of about equal length."""
    width = figure.bbox.width / figure.dpi  # inches; a letter of this size takes about 0.07
    needed = sum(0.35 + 0.07 * len(handle.get_label()) for handle in handles)
    rows = max(1, -(-needed // width))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=int(-(-len(handles) // rows)), frameon=False,
        fontsize=8.5, columnspacing=1.0, **look,
    )  # fmt: skip


def _principal_components(features: Tensor) -> Tensor:
    """[N, D] -> [N, 2], of rows without an inf or NaN; the others get NaN, which is not drawn.

    The sign of a component is free: its largest weight is made positive.
    """
    features = features.detach().double().cpu()
    finite = features[features.isfinite().all(1)]
    centred, finite = features - finite.mean(0), finite - finite.mean(0)
    axes = torch.linalg.eigh(finite.T @ finite).eigenvectors[:, -2:].flip(1)  # [D, 2]
    return centred @ (axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign())


def plot_density_histograms(
    snapshots: Mapping[str, Tensor], class_names: Sequence[str], *, bins: int = 30
):
    """Densities class by class over the training: one outline for each snapshot, pale to dark, medians as ticks.

    Args:
        snapshots: title (such as "step 200") -> `bank_densities`, in the order of the training.
        class_names: of all C classes. Those without a density in any snapshot are left out.
        bins: of the axis that all share; it begins where 2 % of all densities lie lower.

    Returns:
        The figure; its `savefig(path)` writes it.

    Raises:
        ValueError: no snapshot holds a density.

    Shape: each snapshot [C, capacity], NaN where there is no density.
    """
    matplotlib = _matplotlib("plot_density_histograms")
    import numpy as np

    for title, each in snapshots.items():
        check_shape("plot_density_histograms", title, each, [len(class_names), each.shape[-1]])
    tables = [_numpy(each) for each in snapshots.values()]
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
            held = table[c][np.isfinite(table[c])]
            if not len(held):
                continue
            share = np.histogram(held, edges)[0] / len(held)
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
