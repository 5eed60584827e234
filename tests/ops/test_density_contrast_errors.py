"""What density_contrast refuses, and the text of each error."""

import math

import pytest
import torch
from oracles import integers
from test_density_contrast import case

from dgcl_ops import ops

NAN = math.nan


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"temperature": 0}, ValueError, "temperature must be positive and finite, got 0"),
        ({"temperature": -0.5}, ValueError, "temperature must be positive and finite, got -0.5"),
        ({"temperature": NAN}, ValueError, "temperature must be positive and finite, got nan"),
        ({"temperature": math.inf}, ValueError, "temperature must be positive and finite, got inf"),
        ({"temperature": "1"}, TypeError, "temperature must be a number, got '1'"),
        ({"temperature": None}, TypeError, "temperature must be a number, got None"),
        ({"eps": -1e-6}, ValueError, "eps must be at least 0 and finite, got -1e-06"),
        ({"eps": True}, TypeError, "eps must be a number, got True"),
        ({"anchors": 1}, TypeError, "anchors must be a torch.Tensor, got int"),
        ({"negatives": None}, TypeError, "negatives must be a torch.Tensor, got NoneType"),
        (
            {"anchors": torch.ones(5, 6)},
            RuntimeError,
            "anchors must have shape [G, A, E], got [5, 6]",
        ),
        (
            {"keys": torch.ones(2, 6)},
            RuntimeError,
            "keys must have shape [G, E] with the anchors' G and E, got [2, 6]",
        ),
        (
            {"negatives": torch.ones(3, 7, 5)},
            RuntimeError,
            "negatives must have shape [G, N, E] with the anchors' G and E, got [3, 7, 5]",
        ),
        (
            {"keys": torch.ones(3, 6, dtype=torch.int64)},
            RuntimeError,
            "keys must be float64, float32, float16 or bfloat16, got int64",
        ),
        (
            {"anchor_counts": integers([1, 2])},
            RuntimeError,
            "anchor_counts must have shape [G], got [2]",
        ),
        (
            {"negative_counts": torch.ones(3)},
            RuntimeError,
            "negative_counts must be int64, got float32",
        ),
        (
            {"anchor_counts": integers([1, 6, 2])},
            RuntimeError,
            "anchor_counts must lie in [0, 5], got 6",
        ),
        (
            {"anchor_counts": integers([1, -1, 2])},
            RuntimeError,
            "anchor_counts must lie in [0, 5], got -1",
        ),
        (
            {"negative_counts": integers([8, 0, 2])},
            RuntimeError,
            "negative_counts must lie in [0, 7], got 8",
        ),
        (
            {"negative_counts": integers([0, 0, -2])},
            RuntimeError,
            "negative_counts must lie in [0, 7], got -2",
        ),
    ],
)
def test_errors(change, error, text):
    anchors, keys, negatives = case()
    arguments = {"anchors": anchors, "keys": keys, "negatives": negatives} | change
    with pytest.raises(error) as caught:
        ops.density_contrast(**arguments)
    assert str(caught.value).startswith(f"density_contrast: {text}"), str(caught.value)
