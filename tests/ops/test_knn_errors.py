"""What knn_topk and knn_density refuse, and in which words."""

import pytest
import torch
from oracles import integers


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"k": 0}, ValueError, "knn_topk: k must be a positive integer, got 0"),
        ({"k": -3}, ValueError, "knn_topk: k must be a positive integer, got -3"),
        ({"k": 2.0}, TypeError, "knn_topk: k must be an integer, got 2.0"),
        ({"k": True}, TypeError, "knn_topk: k must be an integer, got True"),
        ({"metric": "l1"}, ValueError, "knn_topk: metric must be one of cosine, dot, l2, got 'l1'"),
        ({"metric": 2}, TypeError, "knn_topk: metric must be a string, got 2"),
        ({"queries": [[1.0]]}, TypeError, "knn_topk: queries must be a torch.Tensor, got list"),
        ({"bank": None}, TypeError, "knn_topk: bank must be a torch.Tensor, got NoneType"),
    ],
)
def test_bad_hyper_parameters(change, error, text):
    from dgcl_ops import ops

    arguments = {"queries": torch.ones(2, 3), "bank": torch.ones(4, 3), "k": 1} | change
    with pytest.raises(error) as caught:
        ops.knn_topk(**arguments)
    assert str(caught.value) == text


BAD_TENSORS = [
    ({"queries": torch.ones(3)}, "queries must have shape [M, D], got [3]"),
    ({"bank": torch.ones(3)}, "bank must have shape [N, D] or [C, N, D], got [3]"),
    ({"bank": torch.ones(4, 5)}, "bank must have 3 columns like queries, got [4, 5]"),
    (
        {"queries": torch.ones(2, 0), "bank": torch.ones(4, 0)},
        "queries must have at least one column, got [2, 0]",
    ),
    (
        {"queries": torch.ones(2, 3, dtype=torch.int64)},
        "queries must be float64, float32, float16 or bfloat16, got int64",
    ),
    (
        {"bank": torch.ones(4, 3, dtype=torch.int32)},
        "bank must be float64, float32, float16 or bfloat16, got int32",
    ),
    (
        {"query_offsets": integers([0, 2])},
        "query_offsets needs a bank of shape [C, N, D], got [4, 3]",
    ),
    ({"bank_counts": integers([4])}, "bank_counts needs a bank of shape [C, N, D], got [4, 3]"),
    (
        {"bank": torch.ones(2, 4, 3)},
        "query_offsets is required with a bank of shape [C, N, D], got None",
    ),
]
BAD_GROUPS = [
    ({"query_offsets": integers([0, 2])}, "query_offsets must have shape [C + 1], got [2]"),
    ({"query_offsets": torch.tensor([0, 1, 2.0])}, "query_offsets must be int64, got float32"),
    ({"query_offsets": integers([0, 2, 1])}, "query_offsets must not decrease, got 2 before 1"),
    ({"query_offsets": integers([-1, 1, 2])}, "query_offsets must lie in [0, 2], got -1"),
    ({"query_offsets": integers([0, 1, 3])}, "query_offsets must lie in [0, 2], got 3"),
    ({"bank_counts": integers([4])}, "bank_counts must have shape [C], got [1]"),
    ({"bank_counts": torch.ones(2)}, "bank_counts must be int64, got float32"),
    ({"bank_counts": integers([4, 5])}, "bank_counts must lie in [0, 4], got 5"),
    ({"bank_counts": integers([-1, 4])}, "bank_counts must lie in [0, 4], got -1"),
]


def bad_case(change, is_group):
    grouped_case = {"bank": torch.ones(2, 4, 3), "query_offsets": integers([0, 1, 2])}
    return {"queries": torch.ones(2, 3), "bank": torch.ones(4, 3)} | (
        grouped_case | change if is_group else change
    )


@pytest.mark.parametrize(
    ("change", "text", "is_group"),
    [(*case, False) for case in BAD_TENSORS] + [(*case, True) for case in BAD_GROUPS],
)
def test_bad_tensors_are_refused_by_both_knn_operators(change, text, is_group):
    from dgcl_ops import ops

    arguments = bad_case(change, is_group)
    for op, call in (
        ("knn_topk", lambda: ops.knn_topk(**arguments, k=2)),
        ("knn_density", lambda: ops.knn_density(**arguments, scales=(2,))),
    ):
        with pytest.raises(RuntimeError) as caught:
            call()
        message = str(caught.value)
        assert message.splitlines()[0].startswith(f"{op}: {text}"), message


def topk_gradient_arguments():
    """dL_dvalues, queries, bank, values, indices, metric, query_offsets, unit_bank."""
    scores, indices, offsets = torch.ones(2, 1), integers([[0], [3]]), integers([0, 1, 2])
    queries, bank = torch.ones(2, 3), torch.ones(2, 4, 3)
    return [scores.clone(), queries, bank, scores, indices, "dot", offsets, False]


@pytest.mark.parametrize(
    ("position", "value", "text"),
    [
        (4, integers([[0], [4]]), "indices must lie in [-1, 4), got 4"),
        (4, integers([[-2], [0]]), "indices must lie in [-1, 4), got -2"),
        (4, torch.zeros(2, 1), "indices must be int64, got float32"),
        (4, integers([[0, 0], [0, 0]]), "indices must have shape [M, k], got [2, 2]"),
        (3, torch.ones(3, 1), "values must have shape [M, k], got [3, 1]"),
        (3, torch.ones(2, 1).double(), "values must be float32, got float64"),
        (0, torch.ones(2, 2), "dL_dvalues must have shape [M, k], got [2, 2]"),
        (0, torch.ones(2, 1).half(), "dL_dvalues must be float32, got float16"),
        (5, "l1", "metric must be"),
        (6, integers([0, 1, 3]), "query_offsets must lie in [0, 2], got 3"),
    ],
)
def test_the_raw_gradient_operator_protects_memory(position, value, text):
    """It can be called by itself, so it trusts no earlier check."""
    import dgcl_ops.ops  # noqa: F401

    arguments = topk_gradient_arguments()
    torch.ops.dgcl_ops.knn_topk_backward(*arguments)
    arguments[position] = value
    with pytest.raises(RuntimeError) as caught:
        torch.ops.dgcl_ops.knn_topk_backward(*arguments)
    assert str(caught.value).startswith(f"knn_topk_backward: {text}"), str(caught.value)


def test_raw_operators_check_their_hyper_parameters():
    import dgcl_ops.ops  # noqa: F401

    rows = torch.ones(2, 3)
    options = (None, None, False, False)
    with pytest.raises(RuntimeError, match=r"knn_topk: k must be at least 1, got 0"):
        torch.ops.dgcl_ops.knn_topk(rows, rows, 0, "dot", *options)
    with pytest.raises(RuntimeError, match=r"knn_density: scales must be positive, got -1"):
        torch.ops.dgcl_ops.knn_density(rows, rows, [2, -1], "dot", *options, False)
    with pytest.raises(
        RuntimeError, match=r"knn_density: scales must contain at least one k, got \[\]"
    ):
        torch.ops.dgcl_ops.knn_density(rows, rows, [], "dot", *options, False)
    with pytest.raises(RuntimeError, match=r"knn_topk: metric must be"):
        torch.ops.dgcl_ops.knn_topk(rows, rows, 1, "l1", *options)
