"""The rules of the operators' arguments as data.

`_checks` reads them. tests/ops/rules.py derives calls that break each rule, and expects the same error from the
compiled kernels, which check for themselves (csrc/ops/), and from `_checks`.
"""

import torch

# The sizes, as an error quotes them. Equal letters are equal sizes. A bank is one matrix, or one per class.
_SEARCH = {"queries": "[M, D]", "bank": "[N, D] or [C, N, D]", "query_offsets": "[C + 1]"}
_TOPK_GRADIENT = {"values": "[M, k]", "indices": "[M, k]", "dL_dvalues": "[M, k]"}
_CONTRAST = {
    "anchors": "[G, A, E]",
    "keys": "[G, E] with the anchors' G and E",
    "negatives": "[G, N, E] with the anchors' G and E",
    "anchor_counts": "[G]",
    "negative_counts": "[G]",
}
SHAPES: dict[str, dict[str, str]] = {
    "knn_topk": _SEARCH | {"bank_counts": "[C]"},
    "knn_density": _SEARCH | {"bank_counts": "[C]"},
    "knn_topk_backward": _SEARCH | _TOPK_GRADIENT,
    "density_contrast": _CONTRAST,
    "density_contrast_backward": _CONTRAST | {"dL_dloss": "[G]", "lse": "[G, A]"},
    "memory_push": {
        "bank_features": "[C, capacity, D]",
        "bank_projections": "[C, capacity, E]",
        "bank_density": "[C, capacity]",
        "counts": "[C]",
        "heads": "[C]",
        "features": "[C, P, D] with the bank's C and D",
        "projections": "[C, P, E] with the bank's C and E",
        "density": "[C, P]",
        "row_counts": "[C]",
    },
    "gather_rows": {},
    "gather_rows_backward": {},
    "silhouette_sums": {
        "features": "[N, D]",
        "offsets": "[C + 1]",
        "rows": "[M, D] with the features' D",
    },
    "finite_rows": {},
    "leading_rows": {"pixels": "[R]", "pixel_counts": "[C]", "limits": "[C]"},
    "draw_negatives": {"pixels": "[R]", "pixel_counts": "[C]", "bits": "[C, N]"},
    "class_table": {"pixels": "[N]", "offsets": "[C + 1]", "order": "[N]"},
    "sum_rows": {"rows": "[N, E] or [C, N, E]", "indices": "[C, P]", "row_counts": "[C]"},
    "random_bits": {"rng_state": "[2]"},
    "partition_keys": {
        "labels": "[R]",
        "usable": "[R] with the labels' R",
        "bits": "[R] with the labels' R",
    },
}
FLOATS = {
    *("queries", "bank", "anchors", "keys", "negatives", "features", "projections", "maps"),
    *("rows", "bank_features", "bank_projections", "bank_density", "density", "dL_drows"),
    *("other_maps", "confidence"),
}
FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LABEL_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
FLOAT_NAMES = "float64, float32, float16 or bfloat16"
LABEL_NAMES = "int64, int32, int16, int8 or uint8"
# The dtype that the operator computes in.
COMPUTED = {"values", "dL_dvalues", "dL_dloss", "lse"}
# Entries lie in [0, this size]; heads below it. They are int64, and so are indices, pixels, limits and order.
LARGEST = {
    "query_offsets": "M",
    "offsets": "N",
    "bank_counts": "N",
    "anchor_counts": "A",
    "negative_counts": "N",
    "row_counts": "P",
    "pixel_counts": "R",
    "counts": "capacity",
    "heads": "capacity",
}
INT64 = {"indices", "rng_state", "bits", "pixels", "limits", "order", *LARGEST}
BOOLS = {"usable"}
# At least 1 and less than 2^31.
COUNTS = ("k", "num_classes")
WRITTEN = ("bank_features", "bank_projections", "bank_density", "counts", "heads")
