"""Hyper-parameters that knn_topk refuses. test_rules.py covers its tensors."""

import pytest
import torch


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
