"""The baselines: the published training step, and densities in plain PyTorch.

The published step loops over the classes in Python. For each class it builds masks that sync with the device,
normalises both sides again, and computes the whole query-by-bank matrix with one top-k per scale. Each push copies the
bank. This version keeps every rule that affects the published numbers: no loss before every class is full, density 0
for the first rows of a class, and 1e-6 in the sum of exponentials.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dgcl_ops._scales import scale_weights

SCALES = (8, 16, 32)


def published_density(queries: Tensor, bank: Tensor, scales: tuple[int, ...] = SCALES) -> Tensor:
    """Computes densities as published: normalise both sides, one full matrix, one top-k per scale.

    Args:
        queries: [M, D].
        bank: [N, D].
        scales: numbers of neighbours.

    Returns:
        [M].
    """
    similarity = normalize(queries, dim=1) @ normalize(bank, dim=1).T
    return torch.stack([similarity.topk(k, dim=1).values.mean(1) for k in scales]).mean(0)


def matmul_topk_density(queries: Tensor, bank: Tensor, scales: tuple[int, ...] = SCALES) -> Tensor:
    """Computes densities as fast as plain PyTorch can: one full matrix, one top-k, a weighted sum.

    Args:
        queries: [M, D].
        bank: [N, D].
        scales: numbers of neighbours.

    Returns:
        [M].
    """
    k_max = max(scales)
    best = (normalize(queries, dim=1) @ normalize(bank, dim=1).T).topk(k_max, dim=1).values
    available = torch.full((1,), k_max, device=queries.device)
    return best @ scale_weights(scales, available, k_max)[0].to(best.dtype)


class PublishedStep:
    """Loss and memory bank of the published step, with the defaults of its PASCAL VOC setting.

    Other arguments: as in `DensityContrastLoss`.

    Args:
        num_classes: C.
        feature_dim: D.
        projection_dim: E.
        capacity: rows of each class.
        excluded: classes without loss and bank rows.
        density_rows: a class pushes rows with density 0 until it holds more rows than this.
        dtype: data type of the bank.
        device: device of the bank.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        projection_dim: int,
        *,
        scales: tuple[int, ...] = (8, 16, 32),
        temperature: float = 0.5,
        num_anchors: int = 200,
        num_keys: int = 50,
        num_negatives: int = 512,
        max_candidates: int = 10_000,
        capacity: int = 10_000,
        rows_per_push: int = 1_000,
        excluded: tuple[int, ...] = (0,),
        density_rows: int = 1_000,
        ignore_index: int = 255,
        eps: float = 1e-6,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        self.scales = scales
        self.temperature = temperature
        self.num_anchors = num_anchors
        self.num_keys = num_keys
        self.num_negatives = num_negatives
        self.max_candidates = max_candidates
        self.capacity = capacity
        self.rows_per_push = rows_per_push
        self.density_rows = density_rows
        self.ignore_index = ignore_index
        self.eps = eps
        self.classes = [c for c in range(num_classes) if c not in excluded]

        def empty(*shape: int) -> Tensor:
            return torch.zeros((0, *shape), dtype=dtype, device=device)

        self.features = {c: empty(feature_dim) for c in self.classes}  # [N_c, D]
        self.projections = {c: empty(projection_dim) for c in self.classes}  # [N_c, E]
        self.density = {c: empty() for c in self.classes}  # [N_c]

    def started(self) -> bool:
        """Returns whether every class is full."""
        return all(len(rows) >= self.capacity for rows in self.density.values())

    def forward(self, projections: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        """Returns the mean loss of the classes present, or 0 until the bank is full.

        Args:
            projections: [B, E, H, W].
            labels: [B, H, W].
            features: [B, D, H, W].
        """
        losses = self.class_losses(projections, labels, features)
        if not losses:
            return projections.sum() * 0.0
        return torch.stack(list(losses.values())).mean()

    __call__ = forward

    def class_losses(
        self, projections: Tensor, labels: Tensor, features: Tensor
    ) -> dict[int, Tensor]:
        """Returns the loss of each class present. Empty until the bank is full."""
        if not self.started():
            return {}
        rows, queries, flat = _as_rows(projections), _as_rows(features.detach()), labels.flatten()
        used = flat != self.ignore_index
        losses = {}
        for c in self.classes:
            own = (flat == c).nonzero().squeeze(1)
            if len(own) == 0:
                continue
            own = own[torch.randperm(len(own), device=own.device)[: self.max_candidates]]
            density = published_density(queries[own], self.features[c], self.scales)
            by_density = density.argsort()
            anchors = rows[own[by_density[: self.num_anchors]]]
            dense = rows[own[by_density[-self.num_keys :]]].detach()
            stored = self.density[c].argsort()[-self.num_keys :]
            key = torch.cat([dense, self.projections[c][stored]]).mean(0)
            others = (used & (flat != c)).nonzero().squeeze(1)
            if len(others) > self.num_negatives:
                drawn = torch.randint(len(others), (self.num_negatives,), device=others.device)
                others = others[drawn]
            negatives = rows[others].detach()
            contrast = torch.cat([key[None], negatives])
            logits = normalize(anchors, dim=1) @ normalize(contrast, dim=1).T / self.temperature
            logits = logits - logits.amax(1, keepdim=True).detach()
            losses[c] = ((logits.exp().sum(1) + self.eps).log() - logits[:, 0]).mean()
        return losses

    @torch.no_grad()
    def update(self, projections: Tensor, labels: Tensor, features: Tensor) -> None:
        """Appends random rows of each class to a copy of its bank and drops the oldest."""
        rows, queries, flat = _as_rows(projections), _as_rows(features), labels.flatten()
        for c in self.classes:
            own = (flat == c).nonzero().squeeze(1)
            own = own[torch.randperm(len(own), device=own.device)[: self.rows_per_push]]
            density = self.density[c].new_zeros(len(own))
            if len(self.density[c]) > self.density_rows:
                density = published_density(queries[own], self.features[c], self.scales)
            for store, new in (
                (self.features, queries[own]),
                (self.projections, rows[own]),
                (self.density, density),
            ):
                store[c] = torch.cat([store[c], new.to(store[c].dtype)])[-self.capacity :]


def _as_rows(maps: Tensor) -> Tensor:
    """Copies a map [B, D, H, W] into rows [B * H * W, D]."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
