"""Checks the arguments of an operator on devices without a compiled kernel.

The compiled kernels check for themselves (csrc/ops/), with the same texts: an error does not depend on the build.
Plain PyTorch copies offsets and counts to the host in any case. So it checks their values too, before anything is
written.
"""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dgcl_ops.ops import _pixel_checks, _rules
from dgcl_ops.ops._arguments import METRICS

Arguments = dict[str, Any]  # by name


def alternatives(rule: str) -> dict[int, list[str]]:
    """The letters of each shape that a rule names, by the number of dimensions."""
    shapes = [shape.split(", ") for shape in re.findall(r"\[(.*?)\]", rule)]
    return {len(letters): letters for letters in shapes}


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_basics(op: str, given: Arguments) -> None:
    """Checks that tensors are dense, on one device and of the right dimension, and that counts are in range.

    Runs before the fake kernel too: with mixed devices, PyTorch may dispatch to meta.

    Raises:
        RuntimeError: If an argument breaks a rule.
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
        rule = _rules.SHAPES[op].get(name)
        if rule and tensor.dim() not in alternatives(rule):
            raise RuntimeError(f"{op}: {name} must have shape {rule}, got {list(tensor.shape)}")
    for name in _rules.COUNTS:
        if name in given and given[name] < 1:
            raise RuntimeError(f"{op}: {name} must be at least 1, got {given[name]}")
        if name in given and given[name] >= 2**31:
            raise RuntimeError(f"{op}: {name} must be less than 2^31, got {given[name]}")
    _pixel_checks.check_map_shapes(op, given)
    if op == "sum_rows" and given["rows"].dim() == 2 and given.get("indices") is None:
        shape = list(given["rows"].shape)
        raise RuntimeError(f"{op}: rows must have shape [C, P, E] without indices, got {shape}")
    if "count" in given:
        _check_count(op, given["count"])


def _check_count(op: str, count: int | torch.SymInt) -> None:
    """A symbolic count is checked when it is known: a comparison here would narrow an exported program."""
    if isinstance(count, torch.SymInt):
        return
    if count < 0:
        raise RuntimeError(f"{op}: count must be at least 0, got {count}")
    if count >= 2**32:
        raise RuntimeError(f"{op}: count must be less than 2^32, got {count}")


def check(op: str, given: Arguments) -> None:
    """Checks all rules.

    Raises:
        RuntimeError: If an argument breaks a rule. The text names op, argument, rule and value.
    """
    check_basics(op, given)
    if "queries" in given:
        _check_search(op, given)
    if "anchors" in given:
        _check_contrast_numbers(op, given)
    _check_dtypes(op, given)
    sizes = _check_shapes(op, given)
    if op == "gather_rows":
        pixels = _pixel_checks.count_pixels(op, "maps", given["maps"].shape)
        _check_indices(op, given["indices"], 0, pixels)
    _pixel_checks.check_sizes(op, given)
    if op == "gather_rows_backward":
        _check_gathered(op, **given)
    if op == "knn_topk_backward":
        _check_indices(op, given["indices"], -1, given["bank"].shape[-2])
    if op == "memory_push":
        _check_rings(op, given)
    if op == "finite_rows":
        _check_maps(op, **given)
    if op == "sum_rows":
        sizes.setdefault("P", sizes["N"])  # without indices
    _check_ranges(op, given, sizes)
    if op == "sum_rows" and given.get("indices") is not None:
        used = (
            torch.arange(sizes["P"], device=given["indices"].device) < given["row_counts"][:, None]
        )
        _check_indices(op, given["indices"][used], 0, sizes["N"])
    _pixel_checks.check_values(op, given)


def _check_search(op: str, given: Arguments) -> None:
    queries, bank, offsets = given["queries"], given["bank"], given.get("query_offsets")
    if given["metric"] not in METRICS:
        raise RuntimeError(f"{op}: metric must be cosine, dot or l2, got {given['metric']}")
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


def _check_contrast_numbers(op: str, given: Arguments) -> None:
    temperature, eps = given["temperature"], given.get("eps", 0.0)
    if not 0 < temperature < math.inf:
        raise RuntimeError(f"{op}: temperature must be positive and finite, got {temperature:g}")
    if not 0 <= eps < math.inf:
        raise RuntimeError(f"{op}: eps must be finite and at least 0, got {eps:g}")


def _check_dtypes(op: str, given: Arguments) -> None:
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    double = any(t.dtype == torch.float64 for name, t in tensors.items() if name in _rules.FLOATS)
    computed = "float64" if double else "float32"
    for name, tensor in tensors.items():
        want = "int64" if name in _rules.INT64 else None
        want = "bool" if name in _rules.BOOLS else want
        want = computed if name in _rules.COMPUTED else want
        if name in _rules.FLOATS and tensor.dtype not in _rules.FLOAT_DTYPES:
            want = _rules.FLOAT_NAMES
        if name == "labels" and tensor.dtype not in _rules.LABEL_DTYPES:
            want = _rules.LABEL_NAMES
        if want and _dtype(tensor) != want:
            raise RuntimeError(f"{op}: {name} must be {want}, got {_dtype(tensor)}")


def _check_shapes(op: str, given: Arguments) -> dict[str, int]:
    """The size of each letter."""
    sizes: dict[str, int] = {}
    for name, rule in _rules.SHAPES[op].items():
        tensor = given.get(name)
        if not isinstance(tensor, Tensor):
            continue
        letters = alternatives(rule).get(tensor.dim(), [])
        fits = tensor.dim() == len(letters)
        for letter, size in zip(letters, tensor.shape, strict=False):
            letter, size = ("C", size - 1) if letter == "C + 1" else (letter, size)
            want = int(letter) if letter.isdigit() else sizes.setdefault(letter, size)
            fits = fits and size == want >= 0
        if not fits:
            raise RuntimeError(f"{op}: {name} must have shape {rule}, got {list(tensor.shape)}")
    return sizes


def _check_indices(op: str, indices: Tensor, least: int, end: int) -> None:
    wrong = indices[(indices < least) | (indices >= end)]
    if wrong.numel():
        raise RuntimeError(f"{op}: indices must lie in [{least}, {end}), got {int(wrong[0])}")


def _check_gathered(op: str, dL_drows: Tensor, indices: Tensor, shape: Sequence[int]) -> None:
    if min(shape) < 0:
        raise RuntimeError(f"{op}: shape must not have negative sizes, got {list(shape)}")
    pixels = _pixel_checks.count_pixels(op, "shape", shape)
    if indices.numel() >= 2**31:
        raise RuntimeError(
            f"{op}: indices must have fewer than 2^31 entries, got {list(indices.shape)}"
        )
    rows = [*indices.shape, shape[1]]
    if list(dL_drows.shape) != rows:
        raise RuntimeError(
            f"{op}: dL_drows must have the shape of indices and D columns, {rows}, got {list(dL_drows.shape)}"
        )
    _check_indices(op, indices, 0, pixels)


def _check_maps(
    op: str, maps: Tensor, other_maps: Tensor | None, confidence: Tensor | None
) -> None:
    _pixel_checks.count_pixels(op, "maps", maps.shape)
    shape = list(maps.shape)
    pixels = shape[:1] + shape[2:]
    if other_maps is not None:
        other = list(other_maps.shape)
        if len(other) != len(shape) or other[:1] + other[2:] != pixels:
            raise RuntimeError(
                f"{op}: other_maps must have the shape of maps, {shape}, except for the channels, got {other}"
            )
    if confidence is not None and list(confidence.shape) != pixels:
        raise RuntimeError(
            f"{op}: confidence must have shape {pixels}, a number for each pixel of maps, got "
            f"{list(confidence.shape)}"
        )


def _span(tensor: Tensor) -> tuple[int, int]:
    """First byte and one past the last."""
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    begin = tensor.data_ptr()
    return begin, begin + (last + 1) * tensor.element_size() if tensor.numel() else begin


def _check_rings(op: str, given: Arguments) -> None:
    shape = list(given["bank_features"].shape)
    if shape[1] < 1:
        raise RuntimeError(f"{op}: bank_features must have a capacity of at least 1, got {shape}")
    for name in _rules.WRITTEN:
        if not given[name].is_contiguous():
            raise RuntimeError(
                f"{op}: {name} must be contiguous, because it is written in place, got strides "
                f"{list(given[name].stride())}"
            )
    if given["bank_features"].device.type == "meta":
        return
    spans = {name: _span(value) for name, value in given.items() if isinstance(value, Tensor)}
    names = list(spans)
    for written in _rules.WRITTEN:
        for other in names[names.index(written) + 1 :]:
            (a, a_end), (b, b_end) = spans[written], spans[other]
            if a < b_end and b < a_end:
                raise RuntimeError(
                    f"{op}: {other} must not share memory with {written}, which is written in place"
                )


def _check_ranges(op: str, given: Arguments, sizes: dict[str, int]) -> None:
    for name, size in _rules.LARGEST.items():
        if given.get(name) is None or name not in _rules.SHAPES[op]:
            continue
        values, largest = given[name].tolist(), sizes[size] - (name == "heads")
        for value in values:
            if not 0 <= value <= largest:
                raise RuntimeError(f"{op}: {name} must lie in [0, {largest}], got {value}")
        for before, after in pairwise(values):
            if name.endswith("offsets") and after < before:
                raise RuntimeError(f"{op}: {name} must not decrease, got {before} before {after}")
