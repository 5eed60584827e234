"""Every rule of rules.py: compiled kernels, fallback and plain PyTorch's checks raise the same error."""

import os
import warnings
from unittest import mock

import pytest
import rules
import torch
from builds import needs_extension

from dgcl_ops._extension import REQUIRE_COMPILED
from dgcl_ops.ops import _checks, _registry, _rules

XPU = torch._C.DispatchKeySet(torch._C.DispatchKey.XPU)  # a device without a compiled kernel


def operator(op: str, given: dict) -> None:
    getattr(torch.ops.dgcl_ops, op)(*given.values())


def fallback(op: str, given: dict) -> None:
    with mock.patch.dict(os.environ, {REQUIRE_COMPILED: "0"}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        getattr(torch.ops.dgcl_ops, op).default.redispatch(XPU, *given.values())


each_side = pytest.mark.parametrize(
    "side",
    [
        pytest.param(operator, id="operator"),
        # Without the extension, this is the operator.
        pytest.param(fallback, id="fallback", marks=needs_extension),
        pytest.param(_checks.check, id="checks"),
    ],
)


def error_of(side, op: str, given: dict) -> str | None:
    try:
        side(op, given)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


@each_side
@pytest.mark.parametrize(
    ("op", "change", "text"),
    rules.ALL,
    ids=[f"{op}-{'-'.join(change)}-{n}" for n, (op, change, _) in enumerate(rules.ALL)],
)
def test_a_broken_rule_is_an_error_and_changes_nothing(side, op, change, text):
    given = rules.valid(op) | change
    before = {
        n: v.clone()
        for n, v in given.items()
        if isinstance(v, torch.Tensor) and n in _rules.WRITTEN
    }
    assert error_of(side, op, given) == f"{op}: {text}"
    assert all(torch.equal(given[name], old) for name, old in before.items())


@each_side
@pytest.mark.parametrize("op", rules.RELATIONS)
def test_valid_arguments_are_accepted(side, op):
    assert error_of(side, op, rules.valid(op)) is None


def test_every_tensor_has_a_rule_for_its_shape_or_any_shape():
    """A tensor that is added to a schema needs a rule."""
    any_shape = {
        # RELATIONS has the rules
        ("finite_rows", "maps"),
        ("finite_rows", "other_maps"),
        ("finite_rows", "confidence"),
        ("gather_rows", "maps"),
        ("gather_rows", "indices"),
        ("gather_rows_backward", "indices"),
        ("gather_rows_backward", "dL_drows"),  # RELATIONS has the rule
    }
    for op in _registry.SCHEMAS:
        for argument in getattr(torch.ops.dgcl_ops, op).default._schema.arguments:
            if "Tensor" in str(argument.type) and (op, argument.name) not in any_shape:
                assert argument.name in _rules.SHAPES[op], f"{op}: {argument.name}"


def test_no_rule_was_lost():
    assert len(rules.ALL) == 298


@pytest.mark.parametrize(
    ("table", "kept", "op", "argument"),
    [
        ("LARGEST", {"counts": "capacity"}, "memory_push", "heads"),
        ("LARGEST", {}, "density_contrast", "anchor_counts"),
        ("INT64", set(), "gather_rows", "indices"),
        ("FLOATS", set(), "gather_rows_backward", "dL_drows"),
        ("FLOATS", set(), "silhouette_sums", "features"),
        ("FLOATS", set(), "finite_rows", "confidence"),
        ("INT64", set(), "leading_rows", "limits"),
        ("LARGEST", {}, "leading_rows", "pixel_counts"),
        ("COUNTS", (), "partition_keys", "num_classes"),
        ("BOOLS", set(), "partition_keys", "usable"),
        ("LARGEST", {}, "draw_negatives", "pixel_counts"),
        ("INT64", set(), "class_table", "order"),
        ("INT64", set(), "random_bits", "rng_state"),
        ("LARGEST", {}, "sum_rows", "row_counts"),
        ("WRITTEN", ("bank_features",), "memory_push", "heads"),
    ],
)
def test_a_rule_dropped_from_the_checks_is_noticed(monkeypatch, table, kept, op, argument):
    monkeypatch.setattr(_rules, table, kept)
    mine = [(change, text) for o, change, text in rules.ALL if o == op and argument in change]
    unlike = [
        text
        for change, text in mine
        if error_of(_checks.check, op, rules.valid(op) | change) != f"{op}: {text}"
    ]
    assert unlike
