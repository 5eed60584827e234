"""The operators as Python functions: one file per operator, with the same stem as in csrc/.

Each file holds the public function, the operator's fake kernel (shapes for torch.compile) and its derivative.
"""

from dgcl_ops.ops.class_table import class_table
from dgcl_ops.ops.density_contrast import density_contrast
from dgcl_ops.ops.draw_negatives import draw_negatives
from dgcl_ops.ops.finite_rows import finite_rows
from dgcl_ops.ops.gather_rows import gather_rows
from dgcl_ops.ops.knn_density import knn_density
from dgcl_ops.ops.knn_topk import knn_topk
from dgcl_ops.ops.leading_rows import leading_rows
from dgcl_ops.ops.memory_push import memory_push
from dgcl_ops.ops.partition_keys import partition_keys
from dgcl_ops.ops.random_bits import random_bits
from dgcl_ops.ops.silhouette_sums import silhouette_sums
from dgcl_ops.ops.sum_rows import sum_rows

__all__ = [
    "class_table",
    "density_contrast",
    "draw_negatives",
    "finite_rows",
    "gather_rows",
    "knn_density",
    "knn_topk",
    "leading_rows",
    "memory_push",
    "partition_keys",
    "random_bits",
    "silhouette_sums",
    "sum_rows",
]
