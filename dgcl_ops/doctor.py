"""What is installed, which code serves which device and why, and whether it computes the right thing here.

    python -m dgcl_ops.doctor [--device cpu]

Prints a report to paste into a bug report and runs every operator on small inputs against `reference.py` in
float64. Exit status: 0 if all checks pass, 1 if one fails.
"""

import argparse
import platform
import sys
import time

import torch

import dgcl_ops
from dgcl_ops import reference
from dgcl_ops.ops import (
    class_counts,
    density_contrast,
    gather_rows,
    knn_density,
    knn_topk,
    memory_push,
    silhouette_sums,
)

# Largest difference allowed to the float64 reference: sums of at most a few hundred float32 products of unit rows,
# each rounded to 6e-8, leave room of a factor of ten and more. Operators that only copy or count agree exactly.
TOLERANCE = 2e-5


def _difference(ours, exact) -> float:
    return (ours.double().cpu() - exact.double().cpu()).abs().max().item()


def _inputs(device: str):
    generator = torch.Generator().manual_seed(0)

    def rows(*shape):
        return torch.randn(shape, generator=generator).to(device)

    return rows


def _check_knn_topk(device: str) -> float:
    rows = _inputs(device)
    queries, bank = rows(67, 33), rows(301, 33)
    worst = 0.0
    for metric in ("cosine", "dot", "l2"):
        values, indices = knn_topk(queries, bank, 9, metric=metric)
        exact, exact_indices = reference.knn_topk(
            queries.double().cpu(), bank.double().cpu(), 9, metric
        )
        worst = max(
            worst, _difference(values, exact), float((indices.cpu() != exact_indices).sum())
        )
    return worst


def _check_knn_density(device: str) -> float:
    rows = _inputs(device)
    queries, bank = rows(90, 40), rows(3, 128, 40)
    offsets = torch.tensor([0, 50, 50, 88], device=device)
    counts = torch.tensor([128, 7, 20], device=device)
    ours = knn_density(queries, bank, query_offsets=offsets, bank_counts=counts)
    exact = reference.knn_density(
        queries.double().cpu(),
        bank.double().cpu(),
        query_offsets=offsets.cpu(),
        bank_counts=counts.cpu(),
    )
    return _difference(ours, exact)


def _check_density_contrast(device: str) -> float:
    rows = _inputs(device)
    arguments = rows(3, 20, 24), rows(3, 24), rows(3, 50, 24)
    counts = torch.tensor([20, 0, 5], device=device)
    anchors = arguments[0].requires_grad_()
    loss = density_contrast(*arguments, 0.5, anchor_counts=counts)
    (gradient,) = torch.autograd.grad(loss.sum(), anchors)
    wide = [a.detach().double().cpu() for a in arguments]
    wide[0].requires_grad_()
    exact = reference.density_contrast(*wide, 0.5, anchor_counts=counts.cpu())
    (exact_gradient,) = torch.autograd.grad(exact.sum(), wide[0])
    return max(_difference(loss.detach(), exact.detach()), _difference(gradient, exact_gradient))


def _check_memory_push(device: str) -> float:
    rows = _inputs(device)
    worst = 0.0
    state = [rows(2, 5, 8), rows(2, 5, 4), rows(2, 5)]
    heads, counts = torch.tensor([3, 0], device=device), torch.tensor([5, 2], device=device)
    arriving = rows(2, 7, 8), rows(2, 7, 4), rows(2, 7), torch.tensor([7, 3], device=device)
    ours = [t.clone() for t in (*state, counts, heads)]
    exact = [t.cpu().clone() for t in (*state, counts, heads)]
    memory_push(*ours, *arriving, normalize=True)
    reference.memory_push(*exact, *[t.cpu() for t in arriving], normalize=True)
    for mine, theirs in zip(ours, exact, strict=True):
        worst = max(worst, _difference(mine, theirs))
    return worst


def _check_class_counts(device: str) -> float:
    labels = torch.tensor([[0, 2, 255], [2, 1, 2]], device=device)
    return _difference(class_counts(labels, 4, 255), torch.tensor([1, 1, 3, 0]))


def _check_gather_rows(device: str) -> float:
    maps = _inputs(device)(2, 5, 6, 7)
    pixels = torch.tensor([[83, 0, 41], [42, 0, 7]], device=device)
    return _difference(gather_rows(maps, pixels), reference.gather_rows(maps.cpu(), pixels.cpu()))


def _check_silhouette_sums(device: str) -> float:
    features = _inputs(device)(150, 33)
    offsets = torch.tensor([0, 70, 70, 149], device=device)
    exact = reference.silhouette_sums(features.cpu(), offsets.cpu())
    return _difference(silhouette_sums(features, offsets), exact)


CHECKS = {
    "knn_topk": _check_knn_topk,
    "knn_density": _check_knn_density,
    "density_contrast": _check_density_contrast,
    "memory_push": _check_memory_push,
    "class_counts": _check_class_counts,
    "gather_rows": _check_gather_rows,
    "silhouette_sums": _check_silhouette_sums,
}


def report(device: str = "cpu") -> tuple[str, bool]:
    """The text of the report, and whether every check passed."""
    info = dgcl_ops.backend_info()
    lines = [
        f"dgcl_ops   {info['version']}",
        f"torch      {info['torch']}, {torch.get_num_threads()} threads",
        f"python     {platform.python_version()}, {platform.platform()}",
        f"extension  {info['extension']}",
        f"build      {info['build']}",
        f"cpu code   {info['cpu_capability']} (DGCL_OPS_CPU_CAPABILITY caps it)",
        f"required   {'compiled kernels only' if info['require_compiled'] else 'plain PyTorch where no kernel exists'}"
        " (DGCL_OPS_REQUIRE_COMPILED)",
        "devices",
    ]
    for name, serving in info["devices"].items():
        lines.append(f"  {name:<6} {serving['implementation']:<10} {serving['reason']}")
    lines.append(
        f"self-check on {device}, largest difference from the float64 reference (allowed: {TOLERANCE:g})"
    )
    passed = True
    for name, check in CHECKS.items():
        start = time.perf_counter()
        try:
            difference = check(device)
            good = difference <= TOLERANCE
            seconds = time.perf_counter() - start
            lines.append(
                f"  {name:<18} {difference:.1e}  {'ok' if good else 'WRONG'}  ({seconds:.2f} s)"
            )
        except Exception as error:  # a report must say what happened, whatever it was
            good = False
            lines.append(f"  {name:<18} FAILED: {type(error).__name__}: {error}")
        passed = passed and good
    lines.append("all checks passed" if passed else "a check FAILED: please report this text")
    return "\n".join(lines), passed


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dgcl_ops.doctor", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", default="cpu", help="device to check, such as cpu or cuda")
    text, passed = report(parser.parse_args(argv).device)
    print(text)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
