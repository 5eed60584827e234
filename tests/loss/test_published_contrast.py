"""The published contrast to the last digits. It adds 1e-6 to the sum of exponentials, shifted by the largest logit.

All expected values come from loops over the formula, never from an op of the library.
"""

import math

import pytest
import torch
from loss_oracle import SMALL, C, D, E, batch_of, draw_of, filled, oracle, run
from oracles import contrast_case, gradients

from dgcl_ops.losses import DensityContrastLoss

# 512 negatives with equal cosine, temperature 0.5, 1e-6 in the sum. Computed from the formula with `math.fsum`.
PUBLISHED_LOSSES = {  # (cosine of the key, of the negatives): loss
    (0.9, 0.0): 4.450071093870321,
    (0.3, 0.2): 6.040707338768817,
    (0.0, 0.0): 6.240275847120087,
    (-0.5, 0.5): 8.238588918789034,
    (-1.0, 1.0): 10.23836039908494,
}


@pytest.mark.parametrize(("cosines", "loss"), PUBLISHED_LOSSES.items())
def test_published_losses(implementation, device, cosines, loss):
    """The published eps raises the loss by at most 1e-6 / (sum of shifted exponentials)."""
    key, negative = ([c, math.sqrt(1 - c * c)] for c in cosines)
    wide = {"dtype": torch.float64, "device": device}
    rows = [
        torch.tensor([[[2.0, 0.0]]], **wide),
        torch.tensor([key], **wide),
        torch.tensor([[negative]], **wide).repeat(1, 512, 1),
    ]
    got = implementation.density_contrast(*rows, eps=1e-6).item()
    assert abs(got - loss) <= 1e-14 * loss  # a few roundings of float64
    plain = implementation.density_contrast(*rows).item()
    assert -1e-14 * loss <= got - plain <= 1e-6 * (1 + 1e-6)


def contrast_in_loops(anchors, keys, negatives, temperature, eps):
    """Computes the published formula logit by logit. The largest logit is a constant in the gradient."""
    losses = []
    for a, k, n in zip(anchors, keys, negatives, strict=True):
        total = 0.0
        for anchor in a:
            logits = [
                (anchor @ other) / (anchor.norm() * other.norm()) / temperature for other in (k, *n)
            ]
            top = max(logits).detach()
            total = total + (sum((z - top).exp() for z in logits) + eps).log() - (logits[0] - top)
        losses.append(total / len(a))
    return torch.stack(losses)


@pytest.mark.parametrize("eps", [1e-6, 0.2])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_contrast_holds_the_largest_logit_constant(implementation, device, temperature, eps):
    rows = contrast_case(device=device)
    got = gradients(lambda *t: implementation.density_contrast(*t, temperature, eps=eps), rows)
    want = gradients(lambda *t: contrast_in_loops(*t, temperature, eps), rows)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12 / temperature)


# ---- the whole loss -------------------------------------------------------------------------------


def paper(**changes):
    """Builds a loss small enough for loops. Its rings fill in a few steps."""
    setting = {**SMALL, "min_rows": 5, "bank_dtype": torch.float64, **changes}
    return DensityContrastLoss.paper("voc", C, D, E, **setting)


@pytest.mark.parametrize(
    "counts",
    [
        (24, 12, 9, 1, 4),
        (0, 20, 20, 20, 0),
        (3, 3, 3, 3, 3),
        (0, 9, 0, 0, 0),  # no negatives
        (1, 1, 0, 0, 0),
        (40, 0, 0, 0, 0),  # only the excluded class
    ],
)
@pytest.mark.parametrize("changes", [{}, {"num_negatives": 512}, {"world_size": 4}], ids=str)
def test_paper_mode(counts, changes):
    module = filled(paper(**changes), dtype=torch.float64)
    batch = batch_of(seed=5, dtype=torch.float64, counts=counts)
    expected, expected_gradient, _ = oracle(module, batch, draw_of(module, batch))
    value, gradient = run(module, batch)
    assert abs(float(value - expected)) <= 1e-9
    assert float((gradient - expected_gradient).abs().max()) <= 1e-9
    takes_part = any(counts[1:])
    assert bool(value > 0) == takes_part
    if counts == (0, 9, 0, 0, 0):
        assert abs(float(value) - math.log1p(1e-6)) <= 1e-15
