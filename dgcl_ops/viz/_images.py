"""Colours, and pictures of one map: classes, densities over an image."""

import colorsys
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

GROUND, IGNORED = "#1c2430", "#c4cad3"
# The first eleven classes. Class 0 is often the background, so it is dark.
COLORS = f"{GROUND} #4e9cf5 #f58f3c #4fbf67 #e5484d #a672e8 #b07d5b #f07fc0 #b9c13d #35c3c9 #f2cf4a".split()
DENSITY_COLORS = "viridis"


def load_matplotlib(function: str) -> Any:
    """The package matplotlib, or an error that names the function and says what to install."""
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(
            f'viz.{function} needs matplotlib: pip install "dgcl-ops[examples]"'
        ) from error
    return matplotlib


def class_colors(num_classes: int) -> "np.ndarray":
    """A colour for each class, and a last one for pixels without a class.

    Args:
        num_classes: C, the number of classes.

    Returns:
        The colours, [C + 1, 3] in [0, 1].
    """
    to_rgb = load_matplotlib("class_colors").colors.to_rgb
    import numpy as np

    more = num_classes - len(COLORS)
    hues = [colorsys.hls_to_rgb(i / more, 0.6, 0.5) for i in range(more)]
    return np.array([*map(to_rgb, COLORS[:num_classes]), *hues, to_rgb(IGNORED)])


def class_image(labels: "Tensor | np.ndarray", num_classes: int) -> "np.ndarray":
    """Draws labels or predictions in colour. Pixels without a class are grey.

    Args:
        labels: [H, W], labels or predictions; of a volume, one slice.
        num_classes: number of classes.

    Returns:
        The picture, [H, W, 3] in [0, 1].

    Raises:
        ValueError: If `labels` do not have two dimensions.
    """
    _check_2d("class_image", "labels", labels, "[H, W]", 2)
    colors, labels = class_colors(num_classes), to_numpy(labels).astype(int)
    labels[(labels < 0) | (labels >= num_classes)] = num_classes
    return colors[labels]


def density_limits(*densities: "Tensor | np.ndarray") -> tuple[float, float]:
    """Chooses one colour scale for several maps.

    Args:
        densities: density maps of any shape, see `density_map`.

    Returns:
        The 3rd and the 97th percentile of their finite densities, without 0.
    """
    import numpy as np

    values = np.concatenate([to_numpy(each).ravel() for each in densities])
    values = values[(values != 0) & np.isfinite(values)]
    low, high = np.quantile(values, [0.03, 0.97]) if len(values) else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def density_image(
    image: "Tensor | np.ndarray",
    density: "Tensor | np.ndarray",
    limits: tuple[float, float] | None = None,
) -> "np.ndarray":
    """Draws the density in colour (yellow is dense) over the image in grey. Density 0 shows the image alone.

    Args:
        image: [3, H, W] or [1, H, W] in [0, 1]; of a volume, one slice.
        density: [H, W], see `density_map`.
        limits: densities of the darkest and the brightest colour. By default `density_limits`.

    Returns:
        The picture, [H, W, 3] in [0, 1].

    Raises:
        ValueError: If a shape does not fit.
    """
    _check_2d("density_image", "image", image, "[3, H, W] or [1, H, W]", 3)
    _check_2d("density_image", "density", density, "[H, W]", 2)
    colormap = load_matplotlib("density_image").colormaps[DENSITY_COLORS]
    import numpy as np

    image, density = to_numpy(image), to_numpy(density)
    low, high = density_limits(density) if limits is None else limits
    grey = np.repeat(0.55 * image.mean(0)[:, :, None], 3, axis=2)
    color = colormap(np.clip((density - low) / (high - low), 0, 1))[:, :, :3]
    return np.where(density[:, :, None] == 0, grey, 0.15 * grey + 0.85 * color)


def _check_2d(
    function: str, name: str, values: "Tensor | np.ndarray", rule: str, dims: int
) -> None:
    if len(values.shape) != dims:
        raise ValueError(
            f"viz.{function}: {name} must have shape {rule}, got {list(values.shape)}; pass one slice of a volume, "
            f"such as {name}{'[:, z]' if dims == 3 else '[z]'}"
        )


def to_numpy(values: Any) -> "np.ndarray":
    """A copy on the host."""
    import numpy as np

    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    return np.array(values)
