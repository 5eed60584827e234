"""Pictures of a run with matplotlib: densities over images, features by class, densities during training.

Matplotlib is optional: `pip install "dgcl-ops[examples]"`. It is imported by the functions that need it, and never by
`import dgcl_ops`. Text and lines use matplotlib's settings (`rcParams`), so set a style or a dark theme there. All
functions copy what they draw to the host. Call them between steps.
"""

from dgcl_ops.viz._data import anchors_and_keys, bank_densities, density_map, feature_density
from dgcl_ops.viz._figures import add_legend, plot_density_histograms, plot_features, plot_panels
from dgcl_ops.viz._images import (
    DENSITY_COLORS,
    class_colors,
    class_image,
    density_image,
    density_limits,
)

__all__ = [
    "DENSITY_COLORS",
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
