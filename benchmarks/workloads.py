"""Draws the problems of the density benchmarks."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgcl_ops._scales import scale_weights

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
CENTRES = 12
# Noise around a centre, relative to the centre's own spread. The cosine inside a cluster is 1 / (1 + spread^2).
# clusters: 0.55 in 12 clusters. tight: 0.96 in one. compact: 0.999, which training with the loss can reach. near_equal:
# 0.9999, where float32 sums barely separate rows.
SPREADS = {"clusters": 0.905, "tight": 0.204, "compact": 0.0316, "near_equal": 0.01}
# Rows that are all equal, differ in the last bit of each element, or differ by noise of 1e-7.
TIES = ("equal", "one_ulp", "noise")
SMALL_CLASS = 50  # with shares "one_large", the queries of each class except the first


@dataclass(frozen=True)
class Problem:
    """Queries and their bank, grouped by class if there are offsets.

    Attributes:
        queries: [M, D].
        bank: [N, D] or [C, N, D].
        unit_bank: the bank with unit rows, as MemoryBank stores it.
        scales: numbers of neighbours.
        metric: "cosine", "dot" or "l2".
        offsets: [C + 1] int64, or None.
        cuts: the offsets on the host, so that a loop over the classes need not sync.
    """

    queries: Tensor
    bank: Tensor
    unit_bank: Tensor
    scales: tuple[int, ...]
    metric: str
    offsets: Tensor | None = None
    cuts: tuple[int, ...] = ()

    def copy(self) -> "Problem":
        """Returns the same problem with its own memory."""
        copies = {n: getattr(self, n).clone() for n in ("queries", "bank", "unit_bank")}
        return replace(self, **copies)

    def input_bytes(self) -> int:
        """Returns the size of what each contender reads."""
        return sum(t.numel() * t.element_size() for t in (self.queries, self.bank))

    def classes(self) -> list["Problem"]:
        """Returns one problem per class."""
        if self.offsets is None:
            return [self]
        cuts = self.cuts
        return [
            replace(
                self,
                queries=self.queries[cuts[c] : cuts[c + 1]],
                bank=self.bank[c],
                unit_bank=self.unit_bank[c],
                offsets=None,
                cuts=(),
            )
            for c in range(len(cuts) - 1)
        ]


def random_rows(data: str, rows: int, dim: int, generator: torch.Generator) -> Tensor:
    """Draws rows [rows, D] from one distribution. "uniform" means uniform directions."""
    if data in TIES:
        row = torch.randn(1, dim, generator=generator).expand(rows, dim)
        if data == "noise":
            return row + 1e-7 * torch.randn(rows, dim, generator=generator)
        if data == "equal":
            return row.clone()
        step = torch.randint(-1, 2, (rows, dim), generator=generator)
        return torch.where(step == 0, row, row.nextafter(step * torch.inf))
    noise = torch.randn(rows, dim, generator=generator)
    if data == "uniform":
        return noise
    centres = torch.randn(CENTRES if data == "clusters" else 1, dim, generator=generator)
    chosen = torch.randint(len(centres), (rows,), generator=generator)
    return noise.mul_(SPREADS[data]).add_(centres[chosen])


def unequal_offsets(total: int, classes: int) -> Tensor:
    """Returns offsets [C + 1]. The size of class c is proportional to 1 / (c + 2)."""
    weight = 1.0 / torch.arange(2, classes + 2, dtype=torch.float64)
    ends = (weight.cumsum(0) / weight.sum() * total).round().to(torch.int64)
    return torch.nn.functional.pad(ends, (1, 0))


def one_large_offsets(total: int, classes: int) -> Tensor:
    """Returns offsets [C + 1]. Every class except the first gets SMALL_CLASS queries."""
    ends = total - SMALL_CLASS * torch.arange(classes - 1, -1, -1)
    return torch.nn.functional.pad(ends, (1, 0))


def equal_offsets(total: int, classes: int) -> Tensor:
    """Returns offsets [C + 1]. Class sizes differ by at most one query."""
    return torch.arange(classes + 1) * total // classes


SHARES = {"equal": equal_offsets, "unequal": unequal_offsets, "one_large": one_large_offsets}


def build(case: dict) -> Problem:
    """Draws a problem. The same case always gives the same problem."""
    m, n, dim, classes = case["queries"], case["bank"], case["dim"], case["classes"]
    generator = torch.Generator().manual_seed(0)
    divide = SHARES[case.get("shares", "unequal")]
    offsets = divide(m, classes) if classes else torch.tensor([0, m])
    queries, banks = torch.empty(m, dim), torch.empty(max(1, classes), n, dim)
    for c in range(len(banks)):
        begin, end = offsets[c], offsets[c + 1]
        rows = random_rows(case["data"], n + int(end - begin), dim, generator)
        banks[c], queries[begin:end] = rows[:n], rows[n:]
    bank = banks if classes else banks[0]
    unit_bank = torch.nn.functional.normalize(bank, dim=-1)
    device, dtype = case["device"], DTYPES[case["dtype"]]
    queries, bank, unit_bank = (t.to(device, dtype) for t in (queries, bank, unit_bank))
    cuts = tuple(offsets.tolist()) if classes else ()
    offsets = offsets.to(device) if classes else None
    return Problem(queries, bank, unit_bank, tuple(case["scales"]), case["metric"], offsets, cuts)


def density_of(sorted_scores: Tensor, scales: tuple[int, ...]) -> Tensor:
    """Computes densities [M] from scores [M, max(scales)] in descending order."""
    k_max = max(scales)
    available = torch.full((1,), k_max, device=sorted_scores.device)
    weights = scale_weights(scales, available, k_max)[0]
    return sorted_scores @ weights.to(sorted_scores.dtype)
