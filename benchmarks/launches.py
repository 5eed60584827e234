"""Counts the CUDA launches of one step of the loss, without a GPU.

    python benchmarks/launches.py [--setting default] [--ops] [--json]

A step is a forward, a backward and a push at the VOC size. It runs on tensors without values (FakeTensorMode), and a
dispatch mode sees every operation. The tables below say how many kernels and clears of memory each one launches.

This is a count of what the sources of PyTorch 2.13 and of our bindings launch, not a measurement. The tensors are on
the CPU, since autograd on CUDA needs a GPU. The step dispatches the same operations on every device.
"""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from loss_steps import SIZES
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dgcl_ops import DensityContrastLoss

SETTINGS: dict[str, Callable[..., DensityContrastLoss]] = {
    "paper": lambda size: DensityContrastLoss.paper(
        "voc", size.classes, size.dim, size.dim, seed=0
    ),
    "default": lambda size: DensityContrastLoss(size.classes, size.dim, seed=0),
}

# ---- PyTorch's operations ---------------------------------------------------------------------------
# An operation that is not listed launches one kernel. A view launches none.

NOTHING = {"empty", "new_empty", "empty_like", "empty_strided"}  # memory that nothing is written to
EXPANDED = {
    "constant_pad_nd": (2, "a fill, and a copy into its middle"),
    "cumsum": (2, "cub::DeviceScan: one kernel prepares its state, one scans"),
    "masked_fill": (2, "a clone, and masked_fill_ on it"),
    "scatter": (2, "a clone, and scatter_ on it"),
}
ONE_TILE = (
    4096  # a shorter sort is a fill of indices, their copy, a copy of the keys, and one kernel
)
GLOBAL_REDUCTION = (
    1 << 14
)  # a sum of more elements to one uses several blocks, which count themselves: a clear


def radix_passes(bits: int, key_bytes: int) -> int:
    """Launches and clears of cub's radix sort (dispatch_radix_sort.cuh, sm_80 and later)."""
    if key_bytes < 4:  # upsweep, scan and downsweep for each digit, of 5 or 7 bits
        return 3 * math.ceil(bits / (7 if key_bytes > 1 else 5))
    # Two clears, a histogram, its sum. For each digit of 8 bits a clear and a kernel.
    return 4 + 2 * math.ceil(bits / 8)


def sort_launches(keys: Tensor) -> int:
    """Launches of a sort along the last dimension (aten/src/ATen/native/cuda/SortStable.cu)."""
    length, segments = keys.shape[-1], keys.numel() // keys.shape[-1]
    if length <= ONE_TILE:
        return 4
    size = keys.element_size()
    whole = radix_passes(8 * size, size)
    if segments == 1:
        return 1 + whole  # a fill of indices
    if segments >= 128:
        return 2  # a fill, and cub's segmented sort
    # A fill, a sort of all rows together, a sort by row, a gather.
    return 2 + whole + radix_passes(math.ceil(math.log2(segments)), 8)


def torch_launches(function: torch._ops.OpOverload, args: tuple, result: Any) -> int:
    name = function.overloadpacket.__name__
    if function.namespace == "prim" or name in NOTHING or function.is_view:
        return 0
    if name in ("sort", "argsort"):
        return sort_launches(args[0])
    if name in ("sum", "any", "all") and result.numel() == 1:
        return 1 + (args[0].numel() > GLOBAL_REDUCTION)
    return EXPANDED.get(name, (1, ""))[0]


# ---- our operators, as their bindings launch them ---------------------------------------------------

OWN = {  # kernels, clears of memory
    "random_bits": (1, 0),
    "partition_keys": (1, 1),  # the counts
    "finite_rows": (1, 0),
    "gather_rows": (1, 0),
    "gather_rows_backward": (2, 2),  # mark, scatter; the gradient, the owners
    "knn_topk": (5, 1),  # means, lengths, filter, exact, and the sorted result
    "knn_density": (5, 1),  # means, lengths, filter, exact, density
    "density_contrast": (3, 0),  # unit rows, logits, mean
    "density_contrast_backward": (4, 0),  # unit rows, anchors, gradient, finish
    "leading_rows": (1, 0),  # up to 1,024 classes
    "class_table": (1, 0),
    "draw_negatives": (1, 0),
    "sum_rows": (1, 0),
    "memory_push": (4, 0),  # three rings; counts and heads
}
# A binding copies other arguments that are not contiguous.
READ_STRIDED = {
    "maps",
    "other_maps",
    "confidence",
    "features",
    "projections",
    "density",
    "rows",
    "queries",
    "bank",
}


def own_launches(op: str, names: list[str], args: tuple) -> int:
    launches = sum(OWN[op])
    for name, value in zip(names, args, strict=False):
        copied = isinstance(value, Tensor) and name not in READ_STRIDED
        launches += copied and not value.is_contiguous()
    given = dict(zip(names, args, strict=False))
    if given.get("metric") == "cosine" and not given.get("unit_bank"):
        launches += 1  # norms of the bank's rows
    return launches


# ---- the count --------------------------------------------------------------------------------------

# The part of an operation is that of the innermost of these functions or files on the stack.
PARTS = {
    "report.py": "record",
    "push_rows": "push",
    "_append": "push",
    "_push": "push",
    "order_by": "sort",
    "_used_sum": "record",
}


@dataclass(frozen=True)
class Launch:
    """One operation of the step."""

    part: str
    op: str
    launches: int
    where: str  # file, line and function


class Launches(TorchDispatchMode):
    """Records the launches of each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Launch] = []
        self.backward = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        own = function.namespace == "dgcl_ops"
        name = function.overloadpacket.__name__
        if own:
            names = [argument.name for argument in function._schema.arguments]
            launches = own_launches(name, names, args)
        else:
            launches = torch_launches(function, args, result)
        part, where = place()
        if self.backward:
            part = "backward"
        elif own:
            part = "own operators"
        elif name == "sort":
            part = "sort"
        if launches:
            self.seen.append(Launch(part, name, launches, where))
        return result


def place() -> tuple[str, str]:
    """The part of the step that called, and its line."""
    where, frame = "", sys._getframe(2)
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        if "dgcl_ops" in Path(file).parts:
            where = where or f"{Path(file).name}:{frame.f_lineno} {function}"
            for name in (Path(file).name, function):
                if name in PARTS:
                    return PARTS[name], where
        frame = frame.f_back
    return "selection and means", where


def count(setting: str) -> list[Launch]:
    """The launches of one step at the VOC size."""
    size = SIZES["voc"]
    with FakeTensorMode():
        loss = SETTINGS[setting](size)
        shape = (size.batch, size.dim, size.side, size.side)
        projections, features = torch.zeros(shape, requires_grad=True), torch.zeros(shape)
        labels = torch.zeros(size.batch, size.side, size.side, dtype=torch.int64)
        with Launches() as mode:
            value = loss(projections, labels, features)
            mode.backward = True
            value.backward()
    return mode.seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=list(SETTINGS), default="paper")
    parser.add_argument("--ops", action="store_true", help="list every operation")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seen = count(options.setting)
    parts, operations = Counter(), Counter()
    for launch in seen:
        parts[launch.part] += launch.launches
        operations[launch.part] += 1
    total = sum(parts.values())
    if options.json:
        print(json.dumps({"setting": options.setting, "launches": total, "parts": dict(parts)}))
        return
    if options.ops:
        for launch in seen:
            print(f"{launch.launches:>3}  {launch.part:<20} {launch.op:<26} {launch.where}")
    print(f"Launches of one step, setting {options.setting}: counted from sources, not measured")
    for part, launches in parts.most_common():
        print(f"{part:<22}{operations[part]:>5} operations {launches:>5} launches")
    print(f"{'sum':<22}{len(seen):>5} operations {total:>5} launches")


if __name__ == "__main__":
    main()
