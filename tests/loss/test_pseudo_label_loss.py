"""Cross-entropy on pseudo labels against a loop over pixels."""

import math

import pytest
import torch
from oracles import random_rows

from dgcl_ops.pseudo_label_loss import PseudoLabelLoss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ignore_index", [255, -1, 0])
@pytest.mark.parametrize("shape", [(2, 3, 4), (7,)])
def test_pseudo_label_loss(dtype, ignore_index, shape):
    logits = random_rows(*shape, 5, seed=1, dtype=dtype).movedim(-1, 1).requires_grad_()
    labels = torch.arange(math.prod(shape)).view(shape) % 5
    labels[labels == 4] = ignore_index
    value = PseudoLabelLoss(ignore_index)(logits, labels.to(torch.int16))
    rows = logits.detach().double().movedim(1, -1).reshape(-1, 5).tolist()
    losses = [
        math.log(sum(math.exp(z) for z in row)) - row[label]
        for row, label in zip(rows, labels.flatten().tolist(), strict=True)
        if label != ignore_index
    ]
    expected = sum(losses) / len(losses) * (labels.numel() / len(losses))
    assert math.isclose(float(value.detach()), expected, rel_tol=1e-5)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    value.backward()
    assert logits.grad.any()
    assert logits.grad.dtype == dtype


def test_pseudo_label_loss_without_pixels():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    value = PseudoLabelLoss()(logits, torch.full((2, 4, 4), 255))
    value.backward()
    assert value == 0
    assert not logits.grad.any()
    assert PseudoLabelLoss()(torch.randn(0, 3), torch.zeros(0, dtype=torch.int64)) == 0


def test_pseudo_label_loss_under_autocast():
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        value = PseudoLabelLoss()(logits, labels)
    assert value == PseudoLabelLoss()(logits, labels)


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        (
            torch.zeros(2, 3, 4, 4),
            torch.zeros(2, 4, 5, dtype=torch.int64),
            ValueError,
            r"labels must have shape \[2, 4, 4\], one for each pixel of the logits, got \[2, 4, 5\]",
        ),
        (
            torch.zeros(3),
            torch.zeros(3, dtype=torch.int64),
            ValueError,
            r"logits must have shape \[B, C, \*S\] or \[M, C\], got \[3\]",
        ),
        (
            torch.zeros(2, 3),
            torch.zeros(2),
            TypeError,
            "labels must be an integer tensor, got torch.float32",
        ),
        (
            torch.zeros(2, 3, dtype=torch.int64),
            torch.zeros(2, dtype=torch.int64),
            TypeError,
            "logits must have a float",
        ),
    ],
)
def test_pseudo_label_loss_of_bad_arguments(logits, labels, error, message):
    with pytest.raises(error, match=f"PseudoLabelLoss: {message}"):
        PseudoLabelLoss()(logits, labels)
    with pytest.raises(TypeError, match="ignore_index must be an integer"):
        PseudoLabelLoss(ignore_index=None)
