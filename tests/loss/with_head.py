"""A head, batches without projections, and one step with them."""

import torch
from loss_oracle import STRATEGIES, D, E, batch_of

from dgcl_ops import ProjectionHead

FULL = (14, 14, 14, 14, 14)
SETTINGS = [
    {"anchors": anchors, "keys": keys} for anchors, keys in STRATEGIES if keys != "average"
] + [
    {"disjoint": True, "normalize_keys": True},
    {"keys": "high_confidence", "disjoint": True},
    {"exclude_classes": (0,), "grad_scale": 0.5, "bank_dtype": torch.bfloat16},
    {"start": "all_full", "backfill": False, "eps": 1e-6},
]


def head_of(dtype=torch.float64) -> ProjectionHead:
    torch.manual_seed(0)
    return ProjectionHead(D, 8, E).to(dtype)


def without_projections(seed=0, dtype=torch.float64, **changes) -> dict:
    batch = batch_of(seed=seed, dtype=dtype, **changes)
    del batch["projections"]
    return batch


def run(module, head, batch):
    """Value of one step, and the gradients of features and parameters."""
    features = batch["features"].detach().clone().requires_grad_()
    value = module(head, **{**batch, "features": features})
    return value.detach(), *torch.autograd.grad(value, [features, *head.parameters()])
