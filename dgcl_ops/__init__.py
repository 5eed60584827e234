"""Density-guided contrastive learning for semi-supervised segmentation.

A call goes through these layers: a module (`losses`, `memory`) -> an op and its schema (`ops`) -> its checks (csrc/ops)
-> a kernel (csrc/cpu, csrc/cuda) -> a formula (csrc/math). `reference` implements every formula in plain PyTorch, for
devices without a kernel and builds without the extension.
"""

__version__ = "0.1.0"

from dgcl_ops._checkout import submodule_folders

__path__ = submodule_folders(__path__)

from dgcl_ops._ddp import ddp_ignore_bank
from dgcl_ops.backend import backend_info
from dgcl_ops.features import FeatureTap
from dgcl_ops.labels import entropy_filter, resize_labels
from dgcl_ops.losses import DensityContrastLoss
from dgcl_ops.memory import MemoryBank
from dgcl_ops.metrics import (
    calinski_harabasz_score,
    davies_bouldin_score,
    density_statistics,
    silhouette_score,
)
from dgcl_ops.ops import density_contrast, knn_density, knn_topk
from dgcl_ops.projection_head import ProjectionHead
from dgcl_ops.pseudo_label_loss import PseudoLabelLoss

__all__ = [
    "DensityContrastLoss",
    "FeatureTap",
    "MemoryBank",
    "ProjectionHead",
    "PseudoLabelLoss",
    "__version__",
    "backend_info",
    "calinski_harabasz_score",
    "davies_bouldin_score",
    "ddp_ignore_bank",
    "density_contrast",
    "density_statistics",
    "entropy_filter",
    "knn_density",
    "knn_topk",
    "resize_labels",
    "silhouette_score",
]
