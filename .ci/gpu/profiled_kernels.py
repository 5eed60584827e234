"""The program that run_ncu.py profiles: it launches each kernel of interest once, at the size of a VOC step.

python profiled_kernels.py [--tiny]
"""

import sys

import torch

from dgcl_ops import ops
from dgcl_ops.doctor.compare import SEARCH, environment


def main() -> int:
    tiny = "--tiny" in sys.argv
    rows, dim, side, classes = (130, 24, 15, 3) if tiny else (10_000, 256, 129, 21)
    anchors, negatives = (10, 40) if tiny else (200, 512)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to("cuda")

    queries, bank = draw(rows, dim), draw(rows, dim)
    for path in ("auto", "exact"):  # knn_bank_lengths, knn_filter, knn_exact
        with environment(SEARCH, path):
            ops.knn_density(queries, bank, scales=(2, 5) if tiny else (8, 16, 32))
    parts = [draw(classes, anchors, dim), draw(classes, dim), draw(classes, negatives, dim)]
    for part in parts:
        part.requires_grad_()
    ops.density_contrast(*parts, 0.5).sum().backward()  # contrast_gradient
    maps = draw(1 if tiny else 8, dim, side, side).requires_grad_()
    pixels = torch.randperm(maps.numel() // dim, generator=generator).to("cuda")
    picked = ops.gather_rows(maps, pixels)  # gather_rows_transposed
    picked.backward(torch.ones_like(picked))  # scatter_rows
    torch.cuda.synchronize()
    print("launched")
    return 0


if __name__ == "__main__":
    sys.exit(main())
