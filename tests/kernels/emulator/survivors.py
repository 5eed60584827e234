"""Counts the candidates that the search's filter leaves to canonical scores.

    python -m kernels.emulator.survivors --queries 128 --rows 4000

Run it from tests/. A copy of the filter kernel reports what is in its lists. The copy is this tree's kernel with three
statements added. No item shares its bank rows with another, as on a GPU with many queries.
"""

import argparse
import ctypes
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import torch

from kernels.harness.build import CSRC, rebuild

from . import build

FILTER = "cuda/knn/filter.cuh"
# A statement that reports, and the text of the kernel that it comes before.
REPORTS = (
    ("        length[row] = kept;\n", r'std::puts("cut");'),
    (
        "    if (threadIdx.x == 0 && !resolved) atomicMax",
        r'if (threadIdx.x == 0 && it.queries > 0) std::puts(resolved ? "settled" : "lost");',
    ),
    (
        "      for (int i = 0; i < n; i += kTogether) warp_score",
        r'if (lane == 0) std::printf("%d\n", n);',
    ),
)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def clusters(rows: int, dim: int, generator: torch.Generator) -> torch.Tensor:
    """12 of them, with an average cosine of 0.55 within one."""
    centres = torch.randn(12, dim, generator=generator)
    which = torch.randint(0, 12, (rows,), generator=generator)
    return centres[which] + 0.9 * torch.randn(rows, dim, generator=generator)


def one_class(cosine: float):
    def make(rows: int, dim: int, generator: torch.Generator) -> torch.Tensor:
        """Rows around a mean, with this average cosine."""
        spread = (1 / cosine - 1) ** 0.5
        mean, noise = (torch.randn(n, dim, generator=generator) for n in (1, rows))
        return mean + spread * noise

    return make


def uniform(rows: int, dim: int, generator: torch.Generator) -> torch.Tensor:
    """Directions without a preference."""
    return torch.randn(rows, dim, generator=generator)


DATA = {
    "12 clusters": clusters,
    "one class, cosine 0.55": one_class(0.55),
    "one class, cosine 0.96": one_class(0.96),
    "one class, cosine 0.999": one_class(0.999),
    "uniform": uniform,
}


def reporting_kernels(folder: Path) -> Path:
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc)
    file = csrc / FILTER
    text = file.read_text().replace("#pragma once\n", "#pragma once\n#include <cstdio>\n")
    for place, statement in REPORTS:
        if text.count(place) != 1:
            raise LookupError(f"{FILTER} must contain {place!r} once")
        text = text.replace(place, f"{statement}\n{place}")
    file.write_text(text)
    build.build("plain")
    return rebuild(
        build.module("plain"), csrc, file, lambda source: build.concerns("knn_topk", source)
    )


def reports(search, folder: Path) -> Counter:
    """The lines that the kernel prints, and how often."""
    file = folder / "reports"
    code = os.fork()
    if code == 0:  # a process of its own flushes what C++ has buffered when it ends
        with file.open("w") as out:
            os.dup2(out.fileno(), 1)
        search()
        ctypes.CDLL(None).fflush(None)
        os._exit(0)
    if os.waitpid(code, 0)[1]:
        raise RuntimeError("the search failed")
    return Counter(file.read_text().splitlines())


def row(name: str, dtype: str, counts: Counter, queries: int) -> str:
    settled, lost, cuts = (counts.pop(word, 0) for word in ("settled", "lost", "cut"))
    survivors = torch.tensor([int(n) for n, times in counts.items() for _ in range(times)])
    said = "-" if not len(survivors) else f"{survivors.double().mean():.0f} ({survivors.max()})"
    return f"{name:26}{dtype:10}{said:>12}{cuts / queries:>8.1f}{lost / (settled + lost):>8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, number in (("queries", 64), ("rows", 4000), ("dim", 256), ("k", 32)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="by default all")
    wide = "KB per multiprocessor; with 228, float32 rows take 64 columns at a time"
    parser.add_argument("--shared", type=int, default=100, help=wide)
    chosen = parser.parse_args()
    print(f"{chosen.queries} queries, {chosen.rows} rows x {chosen.dim}, k = {chosen.k}, cosine")
    print("survivors and cuts are per query; lost is the share of items left to the exact path")
    print(f"{'data':26}{'bank':10}{'mean (max)':>12}{'cuts':>8}{'lost':>8}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder).resolve()
        emulator = build.load(file=reporting_kernels(folder))
        # one multiprocessor: the bank is not split
        emulator.configure("sequential", 1, 1, shared_kilobytes=chosen.shared)
        search = getattr(torch.ops, build.NAMESPACE).knn_topk
        for name, make in DATA.items():
            for dtype in chosen.dtype or DTYPES:
                generator = torch.Generator().manual_seed(1)
                rows = make(chosen.queries + chosen.rows, chosen.dim, generator)
                rows = torch.nn.functional.normalize(rows).to(DTYPES[dtype])
                pair = rows[: chosen.queries], rows[chosen.queries :]
                call = lambda pair=pair: search(*pair, chosen.k, "cosine", None, None, False, False)
                print(row(name, dtype, reports(call, folder), chosen.queries), flush=True)


if __name__ == "__main__":
    main()
