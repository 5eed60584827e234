"""What the library is measured against: the published step, and densities in plain PyTorch.

The published step takes one class after the other in Python. For each class it builds masks that the host waits for,
normalises both sides anew, and computes the whole query-by-bank matrix with one top-k a scale. Each push copies the
bank. It keeps what changes the published numbers: no loss before every class is full, density 0 for the rows a class
starts with, and 1e-6 in the sum of exponentials.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dgcl_ops._scales import scale_weights


def published_density(queries: Tensor, bank: Tensor, scales=(8, 16, 32)) -> Tensor:
    """Density as usually programmed: both sides normalised anew, one full matrix, one top-k per scale."""
    similarity = normalize(queries, dim=1) @ normalize(bank, dim=1).T
    return torch.stack([similarity.topk(k, dim=1).values.mean(1) for k in scales]).mean(0)


def matmul_topk_density(queries: Tensor, bank: Tensor, scales=(8, 16, 32)) -> Tensor:
    """The best of plain PyTorch: one full matrix, one top-k, every scale from it by its weights."""
    k_max = max(scales)
    best = (normalize(queries, dim=1) @ normalize(bank, dim=1).T).topk(k_max, dim=1).values
    found = torch.full((1,), k_max, device=queries.device)
    return best @ scale_weights(scales, found, k_max)[0].to(best.dtype)


class PublishedStep:
    """Loss and memory bank of the published step, with the defaults of its PASCAL VOC setting.

    Args:
        num_classes: C.
        feature_dim: D.
        projection_dim: E.
        scales, temperature, num_anchors, num_keys, num_negatives, max_candidates, capacity, rows_per_push,
            ignore_index, eps: as in `DensityContrastLoss`.
        excluded: classes without loss and bank rows.
        density_rows: rows are pushed with density 0 while their class holds no more than this many.
        dtype, device: of the bank.
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
        device=None,
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

        def empty(*shape):
            return torch.zeros((0, *shape), dtype=dtype, device=device)

        self.features = {c: empty(feature_dim) for c in self.classes}  # [N_c, D]
        self.projections = {c: empty(projection_dim) for c in self.classes}  # [N_c, E]
        self.density = {c: empty() for c in self.classes}  # [N_c]

    def started(self) -> bool:
        """Whether every class is full."""
        return all(len(rows) >= self.capacity for rows in self.density.values())

    def forward(self, projections: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        """Mean over the classes present; 0 while the bank is not full.

        Shape: projections [B, E, H, W], labels [B, H, W], features [B, D, H, W].
        """
        losses = self.class_losses(projections, labels, features)
        if not losses:
            return projections.sum() * 0.0
        return torch.stack(list(losses.values())).mean()

    __call__ = forward

    def class_losses(
        self, projections: Tensor, labels: Tensor, features: Tensor
    ) -> dict[int, Tensor]:
        """The loss of each class present; none while the bank is not full."""
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
        """Appends random rows of each class to a copy of its bank and cuts the oldest off."""
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
    """[B, D, H, W] -> [B * H * W, D]: a permuted copy of the whole map."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
