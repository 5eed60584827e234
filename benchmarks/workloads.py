"""Inputs of the density benchmarks."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgcl_ops._scales import scale_weights

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
CENTRES = 12
# Noise around a centre, per unit of the centre's own spread: cosine 1 / (1 + spread^2) inside a cluster.
# Cosine 0.55 in 12 clusters; 0.96 in one; 0.999, which the loss can lead to; 0.9999, where float32 sums hardly tell
# rows apart.
SPREADS = {"clusters": 0.905, "tight": 0.204, "compact": 0.0316, "near_equal": 0.01}
# Every row the same but for nothing, the last bit of each element, or noise of 1e-7: only ties and near-ties.
TIES = ("equal", "one_ulp", "noise")
SMALL_CLASS = 50  # queries of each class but the first, if the first has nearly all


@dataclass(frozen=True)
class Problem:
    """Queries and the bank they are measured against; grouped by class if there are offsets."""

    queries: Tensor  # [M, D]
    bank: Tensor  # [N, D], or [C, N, D]
    unit_bank: Tensor  # the bank's rows divided by their norms, as MemoryBank stores them
    scales: tuple[int, ...]
    metric: str
    offsets: Tensor | None = None  # [C + 1] int64
    # The offsets on the host: code that goes class by class must not wait for the device.
    cuts: tuple[int, ...] = ()

    def copy(self) -> "Problem":
        """With rows of its own."""
        copies = {n: getattr(self, n).clone() for n in ("queries", "bank", "unit_bank")}
        return replace(self, **copies)

    def input_bytes(self) -> int:
        """Of what each contender reads."""
        return sum(t.numel() * t.element_size() for t in (self.queries, self.bank))

    def classes(self) -> list["Problem"]:
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
    """[rows, D]: rows of one distribution. "uniform" are uniform directions."""
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
    """[C + 1]: class c gets a share in proportion to 1 / (c + 2)."""
    share = 1.0 / torch.arange(2, classes + 2, dtype=torch.float64)
    ends = (share.cumsum(0) / share.sum() * total).round().to(torch.int64)
    return torch.nn.functional.pad(ends, (1, 0))


def one_large_offsets(total: int, classes: int) -> Tensor:
    """[C + 1]: the first class gets all queries but SMALL_CLASS for each other."""
    ends = total - SMALL_CLASS * torch.arange(classes - 1, -1, -1)
    return torch.nn.functional.pad(ends, (1, 0))


def equal_offsets(total: int, classes: int) -> Tensor:
    """[C + 1]: every class gets the same share, but for one query."""
    return torch.arange(classes + 1) * total // classes


SHARES = {"equal": equal_offsets, "unequal": unequal_offsets, "one_large": one_large_offsets}


def build(case: dict) -> Problem:
    """The same inputs whenever it is called with the same case."""
    m, n, dim, classes = case["queries"], case["bank"], case["dim"], case["classes"]
    generator = torch.Generator().manual_seed(0)
    share = SHARES[case.get("shares", "unequal")]
    offsets = share(m, classes) if classes else torch.tensor([0, m])
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
    """Scores [M, max(scales)], sorted downward, to densities [M]."""
    ranks = max(scales)
    found = torch.full((1,), ranks, device=sorted_scores.device)
    weights = scale_weights(scales, found, ranks)[0]
    return sorted_scores @ weights.to(sorted_scores.dtype)
