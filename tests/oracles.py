"""Float64 oracles as plain Python loops, random samples, and the one table of tolerances.

Nothing here calls the package, or a matrix product or sort from PyTorch. So a mistake goes unnoticed only if it is made
twice, in two styles.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

# DGCL_OPS_CPU_CAPABILITY, narrowest first.
LEVELS = ("portable", "avx2", "avx512", "avx512_vnni", "avx512_amx")

# Largest error allowed, as a multiple of the size of the summed terms (1 for cosines).
TOLERANCES = {
    # Sums of <= 300 terms in a tree over 32 lanes, plus a norm, a division and a mean: at most ~50
    # roundings, each 2^-53. The oracle adds one by one, so its own error is up to ~300 roundings.
    torch.float64: 400 * 2.0**-53,
    # The same ~50 roundings at 2^-24. Low-precision inputs are widened exactly and belong here as well.
    torch.float32: 64 * 2.0**-24,
    # Only gradients have the inputs' dtype: a float32 number rounded once to 11 or 8 bits.
    torch.float16: 2.0**-11 + 64 * 2.0**-24,
    torch.bfloat16: 2.0**-8 + 64 * 2.0**-24,
}


def assert_close(actual: Tensor, expected: Tensor, magnitude: float = 1.0) -> None:
    """|actual - expected| <= tolerance of actual's dtype * (magnitude + |expected|); NaN and inf in the same places."""
    assert actual.shape == expected.shape
    tolerance = TOLERANCES[actual.dtype]
    got, want = actual.detach().cpu().double(), expected.detach().cpu().double()
    assert torch.equal(got.isnan(), want.isnan())
    special = want.isinf() | got.isinf()
    assert torch.equal(got[special], want[special])
    usual = want.isfinite()
    error = (got - want).abs()[usual]
    allowed = (tolerance * (magnitude + want.abs()))[usual]
    assert bool((error <= allowed).all()), f"error {error.max()}, allowed {allowed.min()}"


def random_rows(*shape: int, dtype=torch.float32, seed: int = 0, device="cpu") -> Tensor:
    """Normally distributed rows. Each seed gives different ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


def integers(values, device="cpu") -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


def unit_row(row: list[float]) -> list[float]:
    if not all(math.isfinite(x) for x in row):
        return [math.nan] * len(row)
    largest = max(abs(x) for x in row)
    if largest == 0:
        return [0.0] * len(row)
    _, exponent = math.frexp(largest)
    scaled = [math.ldexp(x, -exponent) for x in row]
    norm = math.sqrt(sum(x * x for x in scaled))
    return [x / norm for x in scaled]


def score(query: list[float], row: list[float], metric: str) -> float:
    """The score of two rows. For cosine they are unit rows already."""
    if metric == "l2":
        return -math.sqrt(sum((q - b) * (q - b) for q, b in zip(query, row, strict=True)))
    return sum(q * b for q, b in zip(query, row, strict=True))


def _classes(queries, bank, query_offsets, bank_counts):
    """(first query, one past the last, rows of the bank) per class."""
    if bank.dim() == 2:
        return [(0, queries.shape[0], bank.double().tolist())]
    offsets = query_offsets.tolist()
    counts = [bank.shape[1]] * bank.shape[0] if bank_counts is None else bank_counts.tolist()
    return [
        (offsets[c], offsets[c + 1], bank[c].double().tolist()[: counts[c]])
        for c in range(bank.shape[0])
    ]


def knn_topk(
    queries,
    bank,
    k,
    metric="cosine",
    query_offsets=None,
    bank_counts=None,
    exclude_self=False,
    unit_bank=False,
):
    """values [M, k] float64 and indices [M, k]."""
    rows = queries.shape[0]
    values = [[-math.inf] * k for _ in range(rows)]
    indices = [[-1] * k for _ in range(rows)]
    lists = queries.double().tolist()
    for begin, end, bank_rows in _classes(queries, bank, query_offsets, bank_counts):
        if metric == "cosine" and not unit_bank:
            bank_rows = [unit_row(row) for row in bank_rows]
        for position, m in enumerate(range(begin, end)):
            if exclude_self and position >= len(bank_rows):
                continue
            query = unit_row(lists[m]) if metric == "cosine" else lists[m]
            scored = []
            for j, row in enumerate(bank_rows):
                s = score(query, row, metric)
                if not math.isnan(s) and s != -math.inf and not (exclude_self and j == position):
                    scored.append((-s, j))
            for r, (negated, j) in enumerate(sorted(scored)[:k]):
                values[m][r], indices[m][r] = -negated, j
    shape = (rows, k)
    return (
        torch.tensor(values, dtype=torch.float64).reshape(shape),
        torch.tensor(indices, dtype=torch.int64).reshape(shape),
    )


def knn_density(
    queries,
    bank,
    scales,
    metric="cosine",
    query_offsets=None,
    bank_counts=None,
    exclude_self=False,
    per_scale=False,
    unit_bank=False,
):
    """[M] float64, or [S, M]: the mean of the k best, for each k separately."""
    values, _ = knn_topk(
        queries, bank, max(scales), metric, query_offsets, bank_counts, exclude_self, unit_bank
    )
    density = torch.zeros(len(scales), queries.shape[0], dtype=torch.float64)
    for s, k in enumerate(scales):
        for m in range(queries.shape[0]):
            best = [v for v in values[m, :k].tolist() if v != -math.inf]
            density[s, m] = sum(best) / len(best) if best else 0.0
    for begin, end, bank_rows in _classes(queries, bank, query_offsets, bank_counts):
        for position, m in enumerate(range(begin, end)):
            has_bank = bank_rows and not (exclude_self and position >= len(bank_rows))
            nan_row = any(
                math.isnan(x) or (math.isinf(x) and metric == "cosine") for x in queries[m].tolist()
            )
            if nan_row and has_bank:
                density[:, m] = math.nan
    return density if per_scale else density.mean(0)


def density_contrast(
    anchors, keys, negatives, temperature, anchor_counts=None, negative_counts=None, eps=0.0
):
    """[G] float64, one anchor and one logit at a time."""
    groups, rows, _ = anchors.shape
    losses = []
    for g in range(groups):
        used = rows if anchor_counts is None else int(anchor_counts[g])
        in_use = negatives.shape[1] if negative_counts is None else int(negative_counts[g])
        key = unit_row(keys[g].double().tolist())
        others = [unit_row(negatives[g, j].double().tolist()) for j in range(in_use)]
        total = 0.0
        for i in range(used):
            anchor = unit_row(anchors[g, i].double().tolist())
            to_key = score(anchor, key, "dot") / temperature
            logits = [to_key] + [score(anchor, n, "dot") / temperature for n in others]
            top = max(logits)
            total += math.log(sum(math.exp(z - top) for z in logits) + eps) - (to_key - top)
        losses.append(total / used if used else 0.0)
    return torch.tensor(losses, dtype=torch.float64)


def memory_push(state: dict, rows: dict, row_counts, normalize=False) -> dict:
    """New rings, written row by row in the order of arrival. The oldest row is overwritten."""
    new = {name: tensor.clone() for name, tensor in state.items()}
    capacity = state["bank_features"].shape[1]
    for c, count in enumerate(row_counts.tolist()):
        for i in range(count):
            slot = int(new["heads"][c])
            feature = rows["features"][c, i].double()
            if normalize:
                feature = torch.tensor(unit_row(feature.tolist()), dtype=torch.float64)
            new["bank_features"][c, slot] = feature.to(new["bank_features"].dtype)
            new["bank_projections"][c, slot] = rows["projections"][c, i]
            new["bank_density"][c, slot] = rows["density"][c, i]
            new["heads"][c] = (slot + 1) % capacity
            new["counts"][c] = min(int(new["counts"][c]) + 1, capacity)
    return new


def silhouette_sums(features, offsets, rows=None):
    """[M, C] float64, one pair at a time."""
    bounds, lists = offsets.tolist(), features.double().tolist()
    queries = lists if rows is None else rows.double().tolist()
    sums = [
        [math.fsum(-score(x, y, "l2") for y in lists[begin:end]) for begin, end in pairwise(bounds)]
        for x in queries
    ]
    return torch.tensor(sums, dtype=torch.float64).reshape(len(queries), len(bounds) - 1)


def mixed(word: int) -> int:
    word = (word ^ (word >> 14)) * 0x4777BA65 % 2**32
    word = (word ^ (word >> 16)) * 0x727CB4EF % 2**32
    return word ^ (word >> 17)


def random_word(seed: int, step: int, stream: int, index: int) -> int:
    low_seed, high_seed, low_step, high_step = (
        v for word in (seed, step) for v in (word % 2**32, (word >> 32) % 2**32)
    )
    first = mixed((low_seed + 0x6D2B79F5 + stream * 0x3C6EF372) % 2**32)
    first = mixed(first ^ high_seed)
    first = mixed((first + low_step) % 2**32)
    second = mixed((first + 0x3C6EF372) % 2**32 ^ high_step)
    return mixed((mixed(index ^ first) + second) % 2**32)


def chi_square(buckets: torch.Tensor, count: int) -> float:
    """By how many standard deviations the bucket counts differ from an even spread."""
    observed = torch.bincount(buckets, minlength=count).double()
    expected = buckets.numel() / count
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return (statistic - (count - 1)) / (2 * (count - 1)) ** 0.5


def partition_keys(labels, usable, bits, num_classes: int, ignore_index: int):
    """Keys [R] and counts [C + 3], one pixel at a time."""
    keys, counts = [], [0] * (num_classes + 3)
    for label, use, word in zip(labels.tolist(), usable.tolist(), bits.tolist(), strict=True):
        skipped = 0 if label == ignore_index else 1 if not use else 2
        used = skipped == 2 and label in range(num_classes)
        counts[label if used else num_classes + skipped] += 1
        keys.append((label if used else num_classes) * 2**32 + word % 2**32)
    return integers(keys), integers(counts)


def contrast_case(dtype=torch.float64, device="cpu"):
    rows = (
        random_rows(3, 4, 6, dtype=dtype, seed=1, device=device),
        random_rows(3, 6, dtype=dtype, seed=2, device=device),
        random_rows(3, 5, 6, dtype=dtype, seed=3, device=device),
    )
    return tuple(t.requires_grad_() for t in rows)


def gradients(function, inputs, seed=9):
    """Gradients of a random weighting of the finite outputs. A plain sum could hide a gradient by symmetry."""
    output = function(*inputs)
    weights = random_rows(*output.shape, dtype=torch.float64, seed=seed).to(output)
    return torch.autograd.grad((output * weights).nan_to_num(0.0, 0.0, 0.0).sum(), inputs)
