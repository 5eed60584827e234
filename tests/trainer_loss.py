"""A small loss, its training, and its state through a file."""

import io

import torch
from torch import nn

from dgcl_ops import DensityContrastLoss

SETTING = {"exclude_classes": (0,), "bank_capacity": 64, "rows_per_push": 32, "scales": (2, 4)}
STEPS = 3


def build(**changes) -> DensityContrastLoss:
    return DensityContrastLoss(4, 8, **{**SETTING, "seed": 0, **changes})


def batch(seed: int):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (2, 16, 16), generator=generator)
    noise = torch.randn(2, 8, 16, 16, generator=generator)
    return noise + 3 * torch.eye(8)[labels].permute(0, 3, 1, 2), labels


def train(loss, first=0, steps=STEPS) -> list[float]:
    return [float(loss(*batch(first + step))) for step in range(steps)]


def trained(**changes) -> DensityContrastLoss:
    loss = build(**changes)
    train(loss)
    return loss


def file_of(module: nn.Module) -> dict:
    """The state through a file: it shares no memory with the module."""
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)
