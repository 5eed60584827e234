"""Calls that each break one rule for an operator's arguments, with the text of the error.

Each rule is written once. `dgcl_ops.ops._rules` gives the broken shapes, dtypes and ranges; RELATIONS has the rules
between arguments. test_rules.py expects the same error from the compiled kernels and from the checks of plain PyTorch.
"""

import math
from collections.abc import Iterator

import pixel_rules
import torch
from oracles import integers
from test_op_contract import OPERATORS, samples

from dgcl_ops.ops import _checks, _registry, _rules

Change = dict[str, object]


def valid(op: str) -> dict:
    """Arguments by name that break no rule, including every optional tensor."""
    if op == "gather_rows":
        return {"maps": torch.zeros(2, 3, 4, 5), "indices": integers([0, 39, 7])}
    given = dict(zip(_registry.argument_names(op), samples(op)[0], strict=True))
    if op.startswith("density_contrast"):
        given |= {"anchor_counts": integers([4, 0, 2]), "negative_counts": integers([5, 2, 0])}
    if op == "finite_rows":
        given["confidence"] = torch.zeros(2, 4, 5)
    if op == "silhouette_sums":
        given["rows"] = torch.zeros(4, 5)
    return {n: v.detach().clone() if isinstance(v, torch.Tensor) else v for n, v in given.items()}


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def sizes(op: str) -> dict[str, int]:
    """The size of each letter in the rules, for `valid`."""
    letters = {}
    for name, rule in _rules.SHAPES[op].items():
        shape = valid(op)[name].shape
        letters |= dict(zip(_checks.alternatives(rule)[len(shape)], shape, strict=True))
    return letters


def broken_shapes(op: str) -> Iterator[tuple[Change, str]]:
    for name, rule in _rules.SHAPES[op].items():
        value = valid(op)[name]
        flat = value.flatten() if value.dim() > 1 else value[None]
        yield {name: flat}, f"{name} must have shape {rule}, got {list(flat.shape)}"


def broken_dtypes(op: str) -> Iterator[tuple[Change, str]]:
    for name, value in valid(op).items():
        if not isinstance(value, torch.Tensor):
            continue
        wrong, rule = torch.float32, "int64"
        if name in _rules.FLOATS:
            wrong, rule = torch.int64, _rules.FLOAT_NAMES
        elif name in _rules.COMPUTED:
            wrong, rule = torch.float16, "float32"
        elif name == "labels":
            rule = _rules.LABEL_NAMES
        elif name in _rules.BOOLS:
            yield {name: value.to(torch.uint8)}, f"{name} must be bool, got uint8"
            rule = "bool"
        else:
            assert name in _rules.INT64, f"{op}: no rule for the dtype of {name}"
            yield {name: value.int()}, f"{name} must be int64, got int32"
        yield {name: value.to(wrong)}, f"{name} must be {rule}, got {name_of(wrong)}"


def broken_ranges(op: str) -> Iterator[tuple[Change, str]]:
    for name in _rules.SHAPES[op]:
        if name not in _rules.LARGEST:
            continue
        largest = sizes(op)[_rules.LARGEST[name]] - (name == "heads")
        for place, stray in ((-1, largest + 1), (0, -1)):
            values = valid(op)[name]
            values[place] = stray
            yield {name: values}, f"{name} must lie in [0, {largest}], got {stray}"
    for name in _rules.COUNTS:
        if name in valid(op):
            yield {name: 0}, f"{name} must be at least 1, got 0"
            yield {name: 2**31}, f"{name} must be less than 2^31, got {2**31}"


_PLAIN = torch.zeros(11, 5)
_SEARCH = [
    ({"metric": "l1"}, "metric must be cosine, dot or l2, got l1"),
    ({"bank": torch.zeros(3, 11, 4)}, "bank must have 5 columns like queries, got [3, 11, 4]"),
    (
        {"queries": torch.zeros(9, 0), "bank": torch.zeros(3, 11, 0)},
        "queries must have at least one column, got [9, 0]",
    ),
    (
        {"bank": torch.zeros(1).expand(3, 2**31, 5)},
        f"bank must have fewer than 2^31 rows per class, got [3, {2**31}, 5]",
    ),
    (
        {"query_offsets": None},
        "query_offsets is required with a bank of shape [C, N, D], got None",
    ),
    (
        {"bank": _PLAIN},
        "query_offsets needs a bank of shape [C, N, D], got [11, 5]",
    ),
    ({"query_offsets": integers([0, 9])}, "query_offsets must have shape [C + 1], got [2]"),
    ({"query_offsets": integers([0, 5, 3, 9])}, "query_offsets must not decrease, got 5 before 3"),
]
_COUNTED = [
    ({"bank_counts": integers([4])}, "bank_counts must have shape [C], got [1]"),
    (
        {"bank": _PLAIN, "query_offsets": None},
        "bank_counts needs a bank of shape [C, N, D], got [11, 5]",
    ),
]
_CONTRAST = [
    ({"temperature": 0.0}, "temperature must be positive and finite, got 0"),
    ({"temperature": math.inf}, "temperature must be positive and finite, got inf"),
    ({"temperature": math.nan}, "temperature must be positive and finite, got nan"),
    (
        {"keys": torch.zeros(2, 6)},
        "keys must have shape [G, E] with the anchors' G and E, got [2, 6]",
    ),
    (
        {"negatives": torch.zeros(3, 7, 5)},
        "negatives must have shape [G, N, E] with the anchors' G and E, got [3, 7, 5]",
    ),
    ({"anchor_counts": integers([1, 2])}, "anchor_counts must have shape [G], got [2]"),
    ({"negative_counts": integers([1, 2])}, "negative_counts must have shape [G], got [2]"),
]
RELATIONS: dict[str, list[tuple[Change, str]]] = {
    "knn_topk": _SEARCH + _COUNTED,
    "knn_density": [
        *_SEARCH,
        *_COUNTED,
        ({"scales": []}, "scales must contain at least one k, got []"),
        ({"scales": [2, -1]}, "scales must be positive, got -1"),
    ],
    "knn_topk_backward": [
        *_SEARCH,
        ({"indices": torch.full((9, 3), 11)}, "indices must lie in [-1, 11), got 11"),
        ({"indices": torch.full((9, 3), -2)}, "indices must lie in [-1, 11), got -2"),
        ({"indices": integers([[0, 0]])}, "indices must have shape [M, k], got [1, 2]"),
        ({"values": torch.zeros(8, 3)}, "values must have shape [M, k], got [8, 3]"),
        ({"dL_dvalues": torch.zeros(9, 2)}, "dL_dvalues must have shape [M, k], got [9, 2]"),
    ],
    "density_contrast": [
        *_CONTRAST,
        ({"eps": -1e-6}, "eps must be finite and at least 0, got -1e-06"),
        ({"eps": math.inf}, "eps must be finite and at least 0, got inf"),
    ],
    "density_contrast_backward": [
        *_CONTRAST,
        ({"dL_dloss": torch.zeros(2)}, "dL_dloss must have shape [G], got [2]"),
        ({"lse": torch.zeros(3, 5)}, "lse must have shape [G, A], got [3, 5]"),
    ],
    "memory_push": [
        (
            {
                "bank_features": torch.zeros(2, 0, 5),
                "bank_projections": torch.zeros(2, 0, 3),
                "bank_density": torch.zeros(2, 0),
            },
            "bank_features must have a capacity of at least 1, got [2, 0, 5]",
        ),
        (
            {"bank_density": torch.zeros(2, 5)},
            "bank_density must have shape [C, capacity], got [2, 5]",
        ),
        (
            {"bank_projections": torch.zeros(2, 7, 3)},
            "bank_projections must have shape [C, capacity, E], got [2, 7, 3]",
        ),
        ({"counts": integers([0, 0, 0])}, "counts must have shape [C], got [3]"),
        ({"heads": integers([0])}, "heads must have shape [C], got [1]"),
        (
            {"features": torch.zeros(2, 4, 6)},
            "features must have shape [C, P, D] with the bank's C and D, got [2, 4, 6]",
        ),
        (
            {"projections": torch.zeros(2, 3, 3)},
            "projections must have shape [C, P, E] with the bank's C and E, got [2, 3, 3]",
        ),
        ({"density": torch.zeros(2, 5)}, "density must have shape [C, P], got [2, 5]"),
        ({"row_counts": integers([1])}, "row_counts must have shape [C], got [1]"),
    ],
    "gather_rows": [
        (
            {"maps": torch.zeros(2, 3)},
            "maps must have shape [B, D, *S] with 1 to 6 spatial dimensions, got [2, 3]",
        ),
        (
            {"maps": torch.zeros(2, 3, 4, 5, 1, 1, 1, 1, 1)},
            "maps must have shape [B, D, *S] with 1 to 6 spatial dimensions, got [2, 3, 4, 5, 1, 1, 1, 1, 1]",
        ),
        ({"indices": integers([40])}, "indices must lie in [0, 40), got 40"),
        ({"indices": integers([3, -1])}, "indices must lie in [0, 40), got -1"),
    ],
    "gather_rows_backward": [
        (
            {"shape": [40, 3]},
            "shape must be [B, D, *S] with 1 to 6 spatial dimensions, got [40, 3]",
        ),
        (
            {"shape": [2, 3, 20, 1, 1, 1, 1, 1, 1]},
            "shape must be [B, D, *S] with 1 to 6 spatial dimensions, got [2, 3, 20, 1, 1, 1, 1, 1, 1]",
        ),
        ({"shape": [-2, 3, -4, 5]}, "shape must not have negative sizes, got [-2, 3, -4, 5]"),
        (
            {"shape": [2**40, 3, 2**20, 2**20]},
            f"shape must have fewer than 2^63 pixels, got [{2**40}, 3, {2**20}, {2**20}]",
        ),
        (
            {"indices": integers([0]).expand(2**31)},
            f"indices must have fewer than 2^31 entries, got [{2**31}]",
        ),
        (
            {"dL_drows": torch.zeros(3, 4)},
            "dL_drows must have the shape of indices and D columns, [3, 3], got [3, 4]",
        ),
        (
            {"indices": integers([[0, 1, 2]])},
            "dL_drows must have the shape of indices and D columns, [1, 3, 3], got [3, 3]",
        ),
        ({"indices": integers([0, 40, 1])}, "indices must lie in [0, 40), got 40"),
        ({"indices": integers([0, 1, -1])}, "indices must lie in [0, 40), got -1"),
    ],
    "silhouette_sums": [
        ({"offsets": integers([])}, "offsets must have shape [C + 1], got [0]"),
        ({"offsets": integers([0, 4, 3, 9])}, "offsets must not decrease, got 4 before 3"),
        (
            {"rows": torch.zeros(2, 4)},
            "rows must have shape [M, D] with the features' D, got [2, 4]",
        ),
    ],
    **pixel_rules.RELATIONS,
}


def broken_strides(op: str) -> list[tuple[Change, str]]:
    """A gap between the elements of each argument that is written in place according to the schema."""
    schema = getattr(torch.ops.dgcl_ops, op).default._schema
    found = []
    for argument in schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            tensor = valid(op)[argument.name]
            gaps = tensor.new_zeros(*tensor.shape, 2)[..., 0]
            text = f"must be contiguous, because it is written in place, got strides {list(gaps.stride())}"
            found.append(({argument.name: gaps}, f"{argument.name} {text}"))
    return found


def broken(op: str) -> list[tuple[Change, str]]:
    """What to change in `valid`, and the text of the error after the operator's name."""
    return [
        *broken_shapes(op),
        *broken_dtypes(op),
        *broken_ranges(op),
        *broken_strides(op),
        *RELATIONS[op],
    ]


ALL = [(op, change, text) for op in (*OPERATORS, "gather_rows") for change, text in broken(op)]
