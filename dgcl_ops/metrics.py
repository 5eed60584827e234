"""How well features cluster by class: scores and density statistics, without an N x N matrix.

The three scores equal scikit-learn's of the same name. They take features on any device, gather
them a block of rows at a time, and compute and accumulate in float64. A block is sized so that the
working memory stays below 64 MB beside a few vectors of length N and the class means [C, D].
Features on a device without float64 (MPS) are scored on the CPU.

References:
    - P. Rousseeuw, "Silhouettes: a graphical aid ...", J. Comput. Appl. Math. 20, 1987.
    - T. Calinski, J. Harabasz, "A dendrite method for cluster analysis", Comm. Stat. 3, 1974.
    - D. Davies, D. Bouldin, "A cluster separation measure", IEEE TPAMI 1(2), 1979.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgcl_ops.ops import silhouette_sums

_BUDGET_DOUBLES = 64 * 2**20 // 8
_LARGEST_BLOCK = 1024


@dataclass(frozen=True)
class _Clusters:
    """The rows that count, sorted by class."""

    name: str  # the score they are for
    features: Tensor  # [N, D], as given
    order: Tensor  # [n] rows of features that count, sorted by class
    ids: Tensor  # [n] class of each sorted row, numbered 0 .. C-1
    counts: Tensor  # [C] rows of each class

    @property
    def block(self) -> int:
        """Rows a block may hold: a float64 block [b, D] with its copies and a few tables [b, C],
        all within the budget."""
        row = 6 * self.features.shape[1] + 4 * self.counts.numel()
        return max(1, min(_LARGEST_BLOCK, _BUDGET_DOUBLES // row))

    def sum_block(self, copies: int) -> int:
        """Rows whose sums of distances may be taken at once: their features as given, `copies`
        times, and a few tables [b, C], in three quarters of the budget; the operator has the rest."""
        row_bytes = copies * self.features.shape[1] * self.features.element_size()
        return max(1, 6 * _BUDGET_DOUBLES // (row_bytes + 32 * self.counts.numel()))

    def blocks(self, size: int | None = None) -> Iterator[slice]:
        rows, size = self.order.numel(), size or self.block
        for start in range(0, rows, size):
            yield slice(start, min(start + size, rows))

    def as_given(self, block: slice) -> Tensor:
        """The sorted rows of a block: [b, D]."""
        return self.features.index_select(0, self.order[block])

    def rows(self, block: slice) -> Tensor:
        """The same, widened, a copy in any case: [b, D] float64."""
        return self.as_given(block).double()

    def distances_to(self, means: Tensor, block: slice) -> Tensor:
        """The Euclidean distances of a block's rows to their class means: [b] float64."""
        differences = self.rows(block).sub_(means.index_select(0, self.ids[block]))
        return torch.linalg.vector_norm(differences, dim=1)

    def class_means(self) -> Tensor:
        """[C, D] float64. ValueError where a feature is not finite: NaN and infinity stay in a sum, so
        that rows are looked at one by one only where a sum is not finite."""
        sums = self.features.new_zeros(
            self.counts.numel(), self.features.shape[1], dtype=torch.float64
        )
        for block in self.blocks():
            sums.index_add_(0, self.ids[block], self.rows(block))
        if not sums.isfinite().all():
            self.check_finite()
        return sums / self.counts[:, None]

    def check_finite(self) -> None:
        for block in self.blocks():
            if not self.as_given(block).isfinite().all():
                raise ValueError(f"{self.name}: features must be finite, got NaN or infinity")


def _clusters(name: str, features: Tensor, labels: Tensor, ignore_index: int | None) -> _Clusters:
    """Checks the arguments of a score, but for finite features, and sorts the rows that count by class."""
    if not isinstance(features, Tensor) or not features.is_floating_point():
        kind = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"{name}: features must be a floating point tensor, got {kind}")
    _check_integers(name, labels)
    if features.dim() != 2:
        raise ValueError(f"{name}: features must have shape [N, D], got {list(features.shape)}")
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"{name}: labels must have shape [{features.shape[0]}], one per row of features, "
            f"got {list(labels.shape)}"
        )
    if labels.device != features.device:
        raise ValueError(
            f"{name}: labels must be on the device of features, {features.device}, "
            f"got {labels.device}"
        )
    if features.device.type == "mps":
        features, labels = features.cpu(), labels.cpu()
    labels, order = labels.long().sort(stable=True)
    if ignore_index is not None:
        kept = labels != ignore_index
        labels, order = labels[kept], order[kept]
    _, ids, counts = labels.unique_consecutive(return_inverse=True, return_counts=True)
    if not 2 <= counts.numel() < order.numel():
        raise ValueError(
            f"{name}: labels must hold at least 2 classes and fewer classes than rows, "
            f"got {counts.numel()} classes in {order.numel()} rows"
        )
    return _Clusters(name, features, order, ids, counts)


def _distance_sums(clusters: _Clusters) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of sorted rows with their sums of distances by class, [b, C]: all rows at once, where
    the sorted copy fits into the budget, which also halves the work."""
    ends = clusters.counts.cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends])  # [C + 1]
    rows = clusters.order.numel()
    if rows <= clusters.sum_block(copies=1):
        everything = slice(0, rows)
        yield everything, silhouette_sums(clusters.as_given(everything), offsets)
        return
    blocks = list(clusters.blocks(clusters.sum_block(copies=2)))
    for block in blocks:
        asking = clusters.as_given(block)
        sums = offsets.new_zeros(asking.shape[0], clusters.counts.numel(), dtype=torch.float64)
        for other in blocks:
            inside = (offsets - other.start).clamp(0, other.stop - other.start)
            sums += silhouette_sums(clusters.as_given(other), inside, asking)
        yield block, sums


@torch.no_grad()
def silhouette_score(
    features: Tensor, labels: Tensor, *, ignore_index: int | None = None
) -> Tensor:
    """Mean silhouette of all rows, in [-1, 1]; higher is better.

    A row's silhouette is (b - a) / max(a, b) with a its mean Euclidean distance to the other rows
    of its class and b its smallest mean distance to the rows of another class. A row that is alone
    in its class, or whose a and b are both 0, has silhouette 0.

    Time grows with N^2 D; memory does not grow with N^2: distances are added up by class as they
    are computed (:func:`dgcl_ops.ops.silhouette_sums`), from differences, so that neither close
    pairs nor a far origin cost digits.

    Args:
        features: one row per sample, any float dtype, finite.
        labels: the class of each row, any integers.
        ignore_index: rows of this label are left out. None: no row is.

    Returns:
        A 0-dim float64 tensor.

    Raises:
        TypeError: features are not floating point or labels are not integers.
        ValueError: a shape does not fit, features are not finite, or there are fewer than 2
            classes or as many classes as rows.

    Shape:
        - features: [N, D]
        - labels: [N]
        - output: []

    Reference: Rousseeuw 1987; ``sklearn.metrics.silhouette_score``.
    """
    clusters = _clusters("silhouette_score", features, labels, ignore_index)
    clusters.check_finite()
    counts = clusters.counts
    total = torch.zeros((), dtype=torch.float64, device=counts.device)
    for block, sums in _distance_sums(clusters):
        own = clusters.ids[block, None]  # [b, 1]
        intra = sums.gather(1, own) / (counts[own] - 1)  # 0 / 0 = NaN where the row is alone
        sums /= counts
        inter = sums.scatter_(1, own, torch.inf).amin(dim=1, keepdim=True)
        silhouettes = (inter - intra) / torch.maximum(intra, inter)  # NaN: alone, or all 0
        total += silhouettes.nan_to_num(0.0).sum()
    return total / clusters.ids.numel()


@torch.no_grad()
def calinski_harabasz_score(
    features: Tensor, labels: Tensor, *, ignore_index: int | None = None
) -> Tensor:
    """Ratio of between-class to within-class dispersion; higher is better.

    With n rows, C classes, class sizes n_c, class means m_c and the mean m of all rows:
    (sum_c n_c |m_c - m|^2 / (C - 1)) / (sum_i |x_i - m_c(i)|^2 / (n - C)), and 1 if the
    within-class dispersion is 0.

    Args:
        features: one row per sample, any float dtype, finite.
        labels: the class of each row, any integers.
        ignore_index: rows of this label are left out. None: no row is.

    Returns:
        A 0-dim float64 tensor.

    Raises:
        TypeError, ValueError: as :func:`silhouette_score`.

    Shape:
        - features: [N, D]
        - labels: [N]
        - output: []

    Reference: Calinski and Harabasz 1974; ``sklearn.metrics.calinski_harabasz_score``.
    """
    clusters = _clusters("calinski_harabasz_score", features, labels, ignore_index)
    counts, rows = clusters.counts, clusters.order.numel()
    classes = counts.numel()
    means = clusters.class_means()  # [C, D]
    mean = (means * counts[:, None]).sum(dim=0) / rows
    between = (counts * (means - mean).square().sum(dim=1)).sum()
    within = torch.zeros_like(between)
    for block in clusters.blocks():
        within += clusters.distances_to(means, block).square().sum()
    score = between * (rows - classes) / (within * (classes - 1))
    return torch.where(within == 0, torch.ones_like(score), score)


@torch.no_grad()
def davies_bouldin_score(
    features: Tensor, labels: Tensor, *, ignore_index: int | None = None
) -> Tensor:
    """Mean over classes of the similarity to the most similar other class; lower is better.

    With s_c the mean distance of class c's rows to their mean m_c, the similarity of two classes is
    (s_c + s_d) / |m_c - m_d|. Classes whose means coincide are not compared, and the score is 0 if
    all s_c or all distances of means are 0 (within 1e-8), as in scikit-learn.

    Args:
        features: one row per sample, any float dtype, finite.
        labels: the class of each row, any integers.
        ignore_index: rows of this label are left out. None: no row is.

    Returns:
        A 0-dim float64 tensor, not negative.

    Raises:
        TypeError, ValueError: as :func:`silhouette_score`.

    Shape:
        - features: [N, D]
        - labels: [N]
        - output: []

    Reference: Davies and Bouldin 1979; ``sklearn.metrics.davies_bouldin_score``.
    """
    clusters = _clusters("davies_bouldin_score", features, labels, ignore_index)
    means = clusters.class_means()  # [C, D]
    spread = means.new_zeros(means.shape[0])  # [C]
    for block in clusters.blocks():
        spread.index_add_(0, clusters.ids[block], clusters.distances_to(means, block))
    spread /= clusters.counts
    total, widest = means.new_zeros(()), means.new_zeros(())
    for start in range(0, means.shape[0], clusters.block):
        block = slice(start, start + clusters.block)
        # From differences: coinciding means have distance 0, not the root of a rounding error.
        distances = torch.cdist(
            means[block], means, compute_mode="donot_use_mm_for_euclid_dist"
        )  # [b, C]
        widest = torch.maximum(widest, distances.amax())
        distances.masked_fill_(distances == 0, torch.inf)
        total += ((spread[block, None] + spread) / distances).amax(dim=1).sum()
    degenerate = (spread.amax() <= 1e-8) | (widest <= 1e-8)
    return torch.where(degenerate, torch.zeros_like(total), total / means.shape[0])


@torch.no_grad()
def density_statistics(
    density: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    quantiles: Sequence[float] = (0.25, 0.5, 0.75),
    ignore_index: int | None = 255,
) -> dict[str, Tensor]:
    """Summarises local densities class by class, without a loop over classes.

    NaN densities (of NaN features) are left out, as are ignored labels. Labels outside
    [0, num_classes) raise on the CPU and are left out on other devices, where looking at them would
    stop the stream; nothing is read on the host there.

    Args:
        density: local density of each row or pixel, as :func:`dgcl_ops.knn_density` gives it.
        labels: the class of each.
        num_classes: C.
        quantiles: the quantiles to report, in [0, 1], linearly interpolated.
        ignore_index: label to leave out. None: none is.

    Returns:
        "count" int64; "mean", "min", "max" and "quantiles", float64 (float32 on MPS), NaN for a
        class without rows.

    Raises:
        TypeError: density is not floating point or labels are not integers.
        ValueError: shapes differ, num_classes is not positive, a quantile is outside [0, 1], or (on
            the CPU) a label is out of range.

    Shape:
        - density, labels: the same, any
        - "count", "mean", "min", "max": [C]
        - "quantiles": [Q, C]
    """
    name = "density_statistics"
    if not isinstance(density, Tensor) or not density.is_floating_point():
        kind = density.dtype if isinstance(density, Tensor) else type(density).__name__
        raise TypeError(f"{name}: density must be a floating point tensor, got {kind}")
    _check_integers(name, labels)
    if labels.shape != density.shape:
        raise ValueError(
            f"{name}: labels must have the shape of density, {list(density.shape)}, "
            f"got {list(labels.shape)}"
        )
    if num_classes < 1:
        raise ValueError(f"{name}: num_classes must be positive, got {num_classes}")
    if not all(0 <= quantile <= 1 for quantile in quantiles):
        raise ValueError(f"{name}: quantiles must lie in [0, 1], got {tuple(quantiles)}")
    wide = torch.float32 if density.device.type == "mps" else torch.float64
    values, classes = density.flatten().to(wide), labels.flatten().long()
    used = (classes >= 0) & (classes < num_classes)
    if ignore_index is not None:
        if labels.device.type == "cpu" and not (used | (classes == ignore_index)).all():
            wrong = classes[~used & (classes != ignore_index)][0].item()
            raise ValueError(
                f"{name}: labels must lie in [0, {num_classes}) or equal ignore_index "
                f"{ignore_index}, got {wrong}"
            )
        used &= classes != ignore_index
    elif labels.device.type == "cpu" and not used.all():
        raise ValueError(
            f"{name}: labels must lie in [0, {num_classes}), got {classes[~used][0].item()}"
        )
    used &= ~values.isnan()
    # Unused rows form class C, behind the others; two stable sorts order by (class, density).
    classes = torch.where(used, classes, num_classes)
    values, order = values.sort()
    classes, order = classes[order].sort(stable=True)
    values = values[order]
    counts = torch.zeros(num_classes + 1, dtype=torch.int64, device=values.device)
    counts.index_add_(0, classes, torch.ones_like(classes))
    sums = values.new_zeros(num_classes + 1).index_add_(0, classes, values)[:-1]
    counts = counts[:-1]
    first = counts.cumsum(0) - counts  # [C]
    values = torch.cat([values, values.new_full((1,), torch.nan)])  # where an empty class looks
    last = (first + counts - 1).clamp_min(0)
    empty, nowhere = counts == 0, values.numel() - 1
    positions = values.new_tensor([0.0, 1.0, *quantiles])[:, None] * (last - first)  # [2 + Q, C]
    below = positions.floor()
    low = values[torch.where(empty, nowhere, first + below.long())]
    high = values[torch.where(empty, nowhere, first + positions.ceil().long())]
    table = torch.lerp(low, high, positions - below)
    return {
        "count": counts,
        "mean": sums / counts,
        "min": table[0],
        "max": table[1],
        "quantiles": table[2:],
    }


def _check_integers(name: str, labels: Tensor) -> None:
    if (
        not isinstance(labels, Tensor)
        or labels.is_floating_point()
        or labels.is_complex()
        or labels.dtype == torch.bool
    ):
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name}: labels must be an integer tensor, got {kind}")
