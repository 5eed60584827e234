"""The rules of each operator's arguments, for devices without a compiled kernel.

The compiled kernels check for themselves (csrc/ops/), with the same words: an error does not depend on the build.
Plain PyTorch copies offsets and counts to the host anyway, so it refuses the same values, before anything is written.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

# The text of an error, and the sizes: equal letters are equal sizes. A bank is one matrix, or one per class.
_KNN = {
    "queries": "[M, D]",
    "bank": "[N, D] or [C, N, D]",
    "query_offsets": "[C + 1]",
    "bank_counts": "[C]",
}
_TOPK_GRADIENT = {"values": "[M, k]", "indices": "[M, k]", "dL_dvalues": "[M, k]"}
_CONTRAST = {
    "anchors": "[G, A, E]",
    "keys": "[G, E] with the anchors' G and E",
    "negatives": "[G, N, E] with the anchors' G and E",
    "anchor_counts": "[G]",
    "negative_counts": "[G]",
}
SHAPES = {
    "knn_topk": _KNN,
    "knn_density": _KNN,
    "knn_topk_backward": _KNN | _TOPK_GRADIENT,
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
    "gather_rows": {"maps": "[B, D, H, W]"},
    "silhouette_sums": {
        "features": "[N, D]",
        "offsets": "[C + 1]",
        "rows": "[M, D] with the features' D",
    },
}
FLOATS = {
    *("queries", "bank", "anchors", "keys", "negatives", "features", "projections", "maps"),
    *("rows", "bank_features", "bank_projections", "bank_density", "density"),
}
FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LABEL_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
INT64 = {"indices"}
# Of the dtype in which the operator computes.
COMPUTED = {"values", "dL_dvalues", "dL_dloss", "lse"}
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
WRITTEN = ("bank_features", "bank_projections", "bank_density", "counts", "heads")


def _letters(rule: str) -> list[str]:
    return rule[1 : rule.index("]")].split(", ")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


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
        rule = SHAPES.get(op, {}).get(name)
        if rule and tensor.dim() not in {len(_letters(rule)), 3 if name == "bank" else None}:
            raise RuntimeError(f"{op}: {name} must have shape {rule}, got {list(tensor.shape)}")
    for name in COUNTS:
        if name in given and given[name] < 1:
            raise RuntimeError(f"{op}: {name} must be at least 1, got {given[name]}")
        if name in given and given[name] >= 2**31:
            raise RuntimeError(f"{op}: {name} must be less than 2^31, got {given[name]}")


def check(op: str, given: dict) -> None:
    """Raises RuntimeError naming op, argument, rule and value. `given`: the arguments by name."""
    check_basics(op, given)
    if "queries" in given:
        _check_search(op, given)
    if "anchors" in given:
        _check_contrast_numbers(op, given)
    _check_dtypes(op, given)
    sizes = _check_shapes(op, given)
    if op == "gather_rows":
        _check_map_indices(op, given["maps"], given["indices"])
    if op == "knn_topk_backward":
        indices, bank_rows = given["indices"], given["bank"].shape[-2]
        wrong = indices[(indices < -1) | (indices >= bank_rows)]
        if wrong.numel():
            raise RuntimeError(f"{op}: indices must lie in [-1, {bank_rows}), got {int(wrong[0])}")
    if op == "memory_push":
        _check_rings(op, given)
    _check_ranges(op, given, sizes)


def _check_search(op: str, given: dict) -> None:
    queries, bank, offsets = given["queries"], given["bank"], given.get("query_offsets")
    if given["metric"] not in ("cosine", "dot", "l2"):
        raise RuntimeError(f"{op}: metric must be cosine, dot or l2, got {given['metric']}")
    _check_floats(op, {"queries": queries, "bank": bank})
    columns, shape = queries.shape[1], list(bank.shape)
    if columns < 1:
        raise RuntimeError(
            f"{op}: queries must have at least one column, got {list(queries.shape)}"
        )
    if shape[-1] != columns:
        raise RuntimeError(f"{op}: bank must have {columns} columns like queries, got {shape}")
    if shape[-2] >= 2**31:
        raise RuntimeError(f"{op}: bank must have fewer than 2^31 rows per class, got {shape}")
    if bank.dim() == 3 and offsets is None:
        raise RuntimeError(
            f"{op}: query_offsets is required with a bank of shape [C, N, D], got None"
        )
    for name in ("query_offsets", "bank_counts"):
        if bank.dim() == 2 and given.get(name) is not None:
            raise RuntimeError(f"{op}: {name} needs a bank of shape [C, N, D], got {shape}")
    if "scales" in given and not given["scales"]:
        raise RuntimeError(f"{op}: scales must contain at least one k, got []")
    for k in given.get("scales", ()):
        if k < 1:
            raise RuntimeError(f"{op}: scales must be positive, got {k}")


def _check_contrast_numbers(op: str, given: dict) -> None:
    temperature, eps = given["temperature"], given.get("eps", 0.0)
    if not 0 < temperature < math.inf:
        raise RuntimeError(f"{op}: temperature must be positive and finite, got {temperature:g}")
    if not 0 <= eps < math.inf:
        raise RuntimeError(f"{op}: eps must be finite and at least 0, got {eps:g}")


def _check_floats(op: str, tensors: dict) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOAT_DTYPES:
            rule = "float64, float32, float16 or bfloat16"
            raise RuntimeError(f"{op}: {name} must be {rule}, got {_dtype(tensor)}")


def _check_dtypes(op: str, given: dict) -> None:
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    floats = {name: tensor for name, tensor in tensors.items() if name in FLOATS}
    _check_floats(op, floats)
    double = any(tensor.dtype == torch.float64 for tensor in floats.values())
    computed = "float64" if double else "float32"
    for name, tensor in tensors.items():
        want = "int64" if name in INT64 or name in LARGEST else None
        want = computed if name in COMPUTED else want
        if name == "labels" and tensor.dtype not in LABEL_DTYPES:
            want = "int64, int32, int16, int8 or uint8"
        if want and _dtype(tensor) != want:
            raise RuntimeError(f"{op}: {name} must be {want}, got {_dtype(tensor)}")


def _check_shapes(op: str, given: dict) -> dict:
    """The size of each letter."""
    sizes: dict = {}
    for name, rule in SHAPES.get(op, {}).items():
        tensor = given.get(name)
        if not isinstance(tensor, Tensor):
            continue
        letters = ["C", "N", "D"] if name == "bank" and tensor.dim() == 3 else _letters(rule)
        fits = tensor.dim() == len(letters)
        for letter, size in zip(letters, tensor.shape, strict=False):
            letter, size = ("C", size - 1) if letter == "C + 1" else (letter, size)
            fits = fits and size >= 0 and sizes.setdefault(letter, size) == size
        if not fits:
            raise RuntimeError(f"{op}: {name} must have shape {rule}, got {list(tensor.shape)}")
    return sizes


def _check_map_indices(op: str, maps: Tensor, indices: Tensor) -> None:
    total = maps.shape[0] * maps.shape[2] * maps.shape[3]
    if total >= 2**63:
        raise RuntimeError(f"{op}: maps must have fewer than 2^63 pixels, got {list(maps.shape)}")
    wrong = indices[(indices < 0) | (indices >= total)]
    if wrong.numel():
        raise RuntimeError(f"{op}: indices must lie in [0, {total}), got {int(wrong[0])}")


def _span(tensor: Tensor) -> tuple[int, int]:
    """First byte and one past the last."""
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    begin = tensor.data_ptr()
    return begin, begin + (last + 1) * tensor.element_size() if tensor.numel() else begin


def _check_rings(op: str, given: dict) -> None:
    shape = list(given["bank_features"].shape)
    if shape[1] < 1:
        raise RuntimeError(f"{op}: bank_features must have a capacity of at least 1, got {shape}")
    for name in WRITTEN:
        if not given[name].is_contiguous():
            raise RuntimeError(
                f"{op}: {name} must be contiguous, because it is written in place, got strides "
                f"{list(given[name].stride())}"
            )
    if given["bank_features"].device.type == "meta":
        return
    spans = {name: _span(value) for name, value in given.items() if isinstance(value, Tensor)}
    names = list(spans)
    for written in WRITTEN:
        for other in names[names.index(written) + 1 :]:
            (a, a_end), (b, b_end) = spans[written], spans[other]
            if a < b_end and b < a_end:
                raise RuntimeError(
                    f"{op}: {other} must not share memory with {written}, which is written in place"
                )


def _check_ranges(op: str, given: dict, sizes: dict) -> None:
    for name, size in LARGEST.items():
        if given.get(name) is None or name not in SHAPES.get(op, ()):
            continue
        values, largest = given[name].tolist(), sizes[size] - (name == "heads")
        for value in values:
            if not 0 <= value <= largest:
                raise RuntimeError(f"{op}: {name} must lie in [0, {largest}], got {value}")
        for before, after in pairwise(values):
            if name.endswith("offsets") and after < before:
                raise RuntimeError(f"{op}: {name} must not decrease, got {before} before {after}")
