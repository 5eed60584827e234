"""Detects what trainers do to a bank's buffers: leave them on the meta device, cast them, or average them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgcl_ops._precision import compute_dtype
from dgcl_ops.ops import _arguments, memory_push

if TYPE_CHECKING:
    from dgcl_ops.memory import MemoryBank

ROWS = ("features", "projections", "density")  # a sharded bank holds a shard of these
# A unit row rounded to bfloat16 has a norm within 2^-8 of 1. Averages of rows are shorter.
ROUNDED = 2**-7


def check(bank: MemoryBank, used_with: object) -> None:
    """Finds buffers that are still on the meta device, or that were cast without `_apply`.

    A bank whose rows were cast gets its dtypes back, with a warning. The rows stay rounded, but are unit rows again.

    A copy whose rows were written from outside may be an average. It is checked once after each such write.

    Raises:
        RuntimeError: If the bank is on the meta device but `used_with` is not, if it is an average, or if it was cast
            before a compiled step.
    """
    if bank.counts.is_meta:
        if getattr(used_with, "is_meta", False):
            return
        raise RuntimeError(
            "MemoryBank: the bank has no memory yet (meta device); call .to_empty(device=...) on the module, or load a "
            "checkpoint with load_state_dict(..., assign=True)"
        )
    if bank._copied_at is not None and not torch.compiler.is_compiling():
        version = version_of(bank.features)
        if version != bank._copied_at and averaged(
            bank.features, _arguments.METRICS.index(bank.metric)
        ):
            raise RuntimeError(
                "MemoryBank: the rows of this copy are averages over steps, not unit rows, so its loss is meaningless; "
                "use the student's loss, or keep the loss outside the averaged model"
            )
        bank._copied_at = version
    cast = {name: getattr(bank, name).dtype for name in ROWS}
    if all(dtype == bank._row_dtype(name) for name, dtype in cast.items()):
        return
    found = ", ".join(f"{name} in {dtype}" for name, dtype in cast.items())
    text = (
        f"MemoryBank: the bank's buffers were cast from outside, got {found} for a bank of {bank.dtype}. FSDP's "
        "MixedPrecision(buffer_dtype=...) does this: pass buffer_dtype=None, or the loss in ignored_modules"
    )
    if torch.compiler.is_compiling():
        raise RuntimeError(text)
    warnings.warn(
        f"{text}. The dtypes are restored, but rows that were already in the bank stay rounded",
        stacklevel=5,
    )
    stored = {name: getattr(bank, name) for name in (*ROWS, "counts")}
    for name, rows in converted(bank, stored).items():
        setattr(bank, name, rows)


def version_of(tensor: Tensor) -> tuple[int, int]:
    """Changes if a tensor is written or replaced. Writes to `.data` in place do not show, nor to inference tensors."""
    return -1 if tensor.is_inference() else tensor._version, tensor.untyped_storage()._cdata


def averaged(features: Tensor, metric: int) -> bool:
    """Whether rows [C, slots, D] are averages of unit rows. Always False unless the metric is "cosine". It syncs.

    Rows of norm 0 are valid. Rows with inf or NaN are ignored.
    """
    if metric != _arguments.METRICS.index("cosine"):
        return False
    for of_class in getattr(features, "to_local", lambda: features)():
        norm = of_class.norm(dim=1, dtype=compute_dtype(of_class))
        wrong = (norm - 1).abs() > ROUNDED
        if (wrong & (norm != 0) & norm.isfinite()).any():
            return True
    return False


def is_shard(tensor: Any) -> bool:
    """Whether it is a DTensor: a sharded bank stores and loads its shard as one."""
    return hasattr(tensor, "to_local")


def converted(bank: MemoryBank, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows in the bank's dtype. With metric "cosine" the features are normalised again."""
    counts = stored["counts"]
    rings = {
        name: torch.zeros(stored[name].shape, dtype=bank._row_dtype(name), device=counts.device)
        for name in ROWS
    }
    memory_push(
        rings["features"],
        rings["projections"],
        rings["density"],
        torch.zeros_like(counts),
        torch.zeros_like(counts),
        stored["features"],
        stored["projections"],
        stored["density"],
        bank.rings.counts(counts),
        bank.metric == "cosine",
    )
    return rings
