"""How well features cluster by class: scores and density statistics, without an N x N matrix.

The three scores equal scikit-learn's scores of the same name. They take features on any device, gather them a block
of rows at a time, and compute and accumulate in float64. The working memory stays below 64 MB, plus a few vectors of
length N and the class means [C, D]. Features on a device without float64 (MPS) are scored on the CPU.

References:
    - P. Rousseeuw, "Silhouettes: a graphical aid ...", J. Comput. Appl. Math. 20, 1987.
    - T. Calinski, J. Harabasz, "A dendrite method for cluster analysis", Comm. Stat. 3, 1974.
    - D. Davies, D. Bouldin, "A cluster separation measure", IEEE TPAMI 1(2), 1979.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dgcl_ops._clusters import sort_by_class
from dgcl_ops._inputs import checked_floats, checked_labels, per_pixel


@torch.no_grad()
def silhouette_score(
    features: Tensor, labels: Tensor, *, ignore_index: int | None = None
) -> Tensor:
    """Mean silhouette of all rows, in [-1, 1]; higher is better.

    A row's silhouette is (b - a) / max(a, b). a is its mean Euclidean distance to the other rows of its class. b is
    its smallest mean distance to the rows of another class. A row has silhouette 0 if it is alone in its class, or
    if a and b are both 0.

    Time grows with N^2 D. Memory does not grow with N^2: `ops.silhouette_sums` adds up distances by class as it
    computes them. They are computed from differences, so close pairs far from the origin lose no precision.

    Args:
        features: [N, D], any float dtype, finite. One row per sample.
        labels: [N], any integers. The class of each row.
        ignore_index: rows with this label are ignored. None ignores no rows.

    Returns:
        A 0-dim float64 tensor.

    Raises:
        TypeError: If `features` are not floating point, or `labels` are not integers.
        ValueError: If a shape does not match, a feature is not finite, or there are fewer than 2 classes or as many
            classes as rows.

    Reference: Rousseeuw 1987; `sklearn.metrics.silhouette_score`.
    """
    clusters = sort_by_class("silhouette_score", features, labels, ignore_index)
    clusters.check_finite()
    counts = clusters.counts
    total = torch.zeros((), dtype=torch.float64, device=counts.device)
    for block, sums in clusters.distance_sums():
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

    With n rows, C classes, class sizes n_c, class means m_c and the mean m of all rows::

        (sum_c n_c |m_c - m|^2 / (C - 1)) / (sum_i |x_i - m_c(i)|^2 / (n - C))

    The score is 1 if the within-class dispersion is 0.

    Args:
        features: [N, D], any float dtype, finite. One row per sample.
        labels: [N], any integers. The class of each row.
        ignore_index: rows with this label are ignored. None ignores no rows.

    Returns:
        A 0-dim float64 tensor.

    Raises:
        TypeError: As for `silhouette_score`.
        ValueError: As for `silhouette_score`.

    Reference: Calinski and Harabasz 1974; `sklearn.metrics.calinski_harabasz_score`.
    """
    clusters = sort_by_class("calinski_harabasz_score", features, labels, ignore_index)
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
    `(s_c + s_d) / |m_c - m_d|`. Classes whose means coincide are not compared. As in scikit-learn, the score is 0 if
    all s_c, or all distances of means, are 0 (within 1e-8).

    Args:
        features: [N, D], any float dtype, finite. One row per sample.
        labels: [N], any integers. The class of each row.
        ignore_index: rows with this label are ignored. None ignores no rows.

    Returns:
        A 0-dim float64 tensor, not negative.

    Raises:
        TypeError: As for `silhouette_score`.
        ValueError: As for `silhouette_score`.

    Reference: Davies and Bouldin 1979; `sklearn.metrics.davies_bouldin_score`.
    """
    clusters = sort_by_class("davies_bouldin_score", features, labels, ignore_index)
    means = clusters.class_means()  # [C, D]
    spread = means.new_zeros(means.shape[0])  # [C]
    for block in clusters.blocks():
        spread.index_add_(0, clusters.ids[block], clusters.distances_to(means, block))
    spread /= clusters.counts
    total, widest = means.new_zeros(()), means.new_zeros(())
    for start in range(0, means.shape[0], clusters.largest_block):
        block = slice(start, start + clusters.largest_block)
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

    NaN densities (from NaN features) and ignored labels are left out. Labels outside [0, num_classes) raise on the
    CPU. Other devices leave them out, because a check would sync.

    Args:
        density: [...], floating point, the local densities of rows or pixels, as from `dgcl_ops.ops.knn_density`.
        labels: [...], integers, the class of each density.
        num_classes: C, the number of classes.
        quantiles: Q quantiles to report, in [0, 1], linearly interpolated.
        ignore_index: rows with this label are ignored. None ignores no rows.

    Returns:
        A dict with these keys.

        - `count`: [C] int64, the number of rows.
        - `mean`, `min`, `max`: [C].
        - `quantiles`: [Q, C].

        All but `count` are float64 (float32 on MPS), and NaN for a class without rows.

    Raises:
        TypeError: If `density` is not floating point, or `labels` are not integers.
        ValueError: If shapes differ, `num_classes` is not positive, a quantile is outside [0, 1], or, on the CPU, a
            label is out of range.
    """
    name = "density_statistics"
    density = checked_floats(name, "density", density)
    labels = checked_labels(name, labels)
    labels = per_pixel(name, "labels", labels, density.shape, ", the shape of density")
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
    values = torch.cat([values, values.new_full((1,), torch.nan)])  # read by empty classes
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
