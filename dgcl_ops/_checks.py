"""The rules of each operator's tensors, for devices without a compiled kernel.

Compiled kernels check for themselves, next to their schemas in csrc/ops/. The plain PyTorch path copies
offsets and counts to the host anyway, so it refuses the same input, before anything is written.
"""

import torch
from torch import Tensor

# Equal letters are equal sizes. A bank is one matrix, or one per class.
_KNN = {"queries": "M D", "bank": "N D", "query_offsets": "C+1", "bank_counts": "C"}
_TOPK_GRADIENT = {"grad_values": "M k", "values": "M k", "indices": "M k"}
_CONTRAST = {
    "anchors": "G A E",
    "keys": "G E",
    "negatives": "G N E",
    "anchor_counts": "G",
    "negative_counts": "G",
}
SHAPES = {
    "knn_topk": _KNN,
    "knn_density": _KNN,
    "knn_topk_backward": _KNN | _TOPK_GRADIENT,
    "density_contrast": _CONTRAST,
    "density_contrast_backward": _CONTRAST | {"dL_dloss": "G", "lse": "G A"},
    "memory_push": {
        "bank_features": "C capacity D",
        "bank_projections": "C capacity E",
        "bank_density": "C capacity",
        "counts": "C",
        "heads": "C",
        "features": "C P D",
        "projections": "C P E",
        "density": "C P",
        "row_counts": "C",
    },
    "gather_rows": {"maps": "B D H W"},
    "silhouette_sums": {"features": "N D", "offsets": "C+1", "rows": "M D"},
}
FLOATS = {
    *("queries", "bank", "anchors", "keys", "negatives"),
    *("features", "projections", "maps", "rows"),
}
# Entries lie in [0, this size]; heads below it.
LARGEST = {
    "query_offsets": "M",
    "offsets": "N",
    "bank_counts": "N",
    "anchor_counts": "A",
    "negative_counts": "N",
    "row_counts": "P",
    "counts": "capacity",
    "heads": "capacity",
}


# At least 1 and less than 2^31.
COUNTS = ("k", "num_classes")


def check_basics(op: str, given: dict) -> None:
    """Raises RuntimeError unless all tensors are dense, on one device and have their dimensions, and counts are in
    range.

    PyTorch asks the device that comes first in an order of its own, be it meta, or the one of sparse tensors.
    """
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    first = next(iter(tensors))
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided:
            raise RuntimeError(f"{op}: {name} must be a dense tensor, got layout {tensor.layout}")
        if tensor.device != tensors[first].device:
            raise RuntimeError(
                f"{op}: {name} must be on the same device as {first}, {tensors[first].device}, got "
                f"{tensor.device}"
            )
        letters = SHAPES.get(op, {}).get(name)
        if letters and tensor.dim() not in {len(letters.split()), 3 if name == "bank" else None}:
            rule = f"[{', '.join(letters.split())}]"
            raise RuntimeError(f"{op}: {name} must have shape {rule}, got {list(tensor.shape)}")
    for name in COUNTS:
        if name in given and not 1 <= given[name] < 2**31:
            raise RuntimeError(f"{op}: {name} must lie in [1, 2^31), got {given[name]}")


def check(op: str, given: dict) -> None:
    """Raises RuntimeError naming op, argument, rule and value. `given`: the arguments by name."""
    check_basics(op, given)
    sizes = _check_shapes(op, given)
    if given.get("bank_counts") is not None and given.get("query_offsets") is None:
        raise RuntimeError(
            f"{op}: bank_counts needs a bank of shape [C, N, D], got {list(given['bank'].shape)}"
        )
    for name in FLOATS & given.keys():
        if given[name] is not None and not given[name].is_floating_point():
            raise RuntimeError(f"{op}: {name} must have a float dtype, got {given[name].dtype}")
    if op == "gather_rows":
        maps, pixels = given["maps"], given["pixels"]
        area = maps.shape[0] * maps.shape[2] * maps.shape[3]
        wrong = pixels[(pixels < 0) | (pixels >= area)]
        if wrong.numel():
            raise RuntimeError(f"{op}: pixels must lie in [0, {area}), got {int(wrong[0])}")
    if op == "knn_topk_backward":
        indices, bank_rows = given["indices"], given["bank"].shape[-2]
        wrong = indices[(indices < -1) | (indices >= bank_rows)]
        if wrong.numel():
            raise RuntimeError(f"{op}: indices must lie in [-1, {bank_rows}), got {int(wrong[0])}")
    for name, size in LARGEST.items():
        values = given.get(name)
        if values is None or name not in SHAPES.get(op, ()):
            continue
        if values.dtype != torch.int64:
            raise RuntimeError(f"{op}: {name} must be int64, got {str(values.dtype)[6:]}")
        largest = sizes[size] - (name == "heads")
        wrong = values[(values < 0) | (values > largest)]
        if wrong.numel():
            raise RuntimeError(f"{op}: {name} must lie in [0, {largest}], got {int(wrong[0])}")
        if name.endswith("offsets") and bool((values.diff() < 0).any()):
            raise RuntimeError(f"{op}: {name} must not decrease, got {values.tolist()}")


def _check_shapes(op: str, given: dict) -> dict:
    sizes: dict = {}
    for name, letters in SHAPES.get(op, {}).items():
        tensor = given.get(name)
        if not isinstance(tensor, Tensor):
            continue
        if name == "bank" and (given.get("query_offsets") is not None or tensor.dim() == 3):
            letters = "C N D"
            if given.get("query_offsets") is None:
                raise RuntimeError(f"{op}: query_offsets is needed with a bank of shape [C, N, D]")
        expected = letters.split()
        shape = list(tensor.shape)
        known = {letter: sizes[letter] for letter in expected if letter in sizes}
        fits = len(shape) == len(expected)
        for letter, size in zip(expected, shape, strict=False):
            letter, size = ("C", size - 1) if letter == "C+1" else (letter, size)
            fits = fits and size >= 0 and sizes.setdefault(letter, size) == size
        if not fits:
            rule = f"[{', '.join(expected)}]" + (f" with {known}" if known else "")
            raise RuntimeError(f"{op}: {name} must have shape {rule}, got {shape}")
    return sizes
