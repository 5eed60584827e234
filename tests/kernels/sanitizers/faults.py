"""Faults planted in copies of the CPU kernels: a sanitizer that reports nothing may be blind.

Each changes one place of one file, has one mode that has to report it, and counts as found only by what should be said.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from emulator.faults import change_once, includes
from emulator.worker import TIMED_OUT, Result

from . import build

BEYOND = "heap-buffer-overflow|use-after-poison|unknown-crash"
RACE = "ThreadSanitizer: data race"


@dataclass(frozen=True)
class Fault:
    what: str
    op: str  # whose cases are to find it
    file: str  # in csrc
    old: str  # occurs once
    new: str
    says: str  # a pattern of the report
    mode: str = "address"


QUEUE = "    run_queue((count + chunk - 1) / chunk, [&](auto& next) {\n"
FAULTS = [
    # ---- AddressSanitizer: writes
    Fault(
        "scratch of the tile product: one logit too many",
        "density_contrast",
        "cpu/density_contrast_kernel.cpp",
        "for (int64_t c = 0; c < prims_.tile_columns; ++c)\n          logits_",
        "for (int64_t c = 0; c <= prims_.tile_columns; ++c)\n          logits_",
        BEYOND,
    ),
    Fault(
        "scratch of the gradients: one element too many is cleared",
        "density_contrast_backward",
        "cpu/density_contrast_kernel.cpp",
        "std::fill_n(key_gradient.get(), p.dim, T(0));",
        "std::fill_n(key_gradient.get(), p.dim + 1, T(0));",
        BEYOND,
    ),
    Fault(
        "the ring's slot after the last",
        "memory_push",
        "cpu/memory_push_kernel.cpp",
        "(head[c] + i) % capacity;\n        if",
        "(head[c] + i) % (capacity + 1);\n        if",
        BEYOND,
    ),
    # ---- AddressSanitizer: reads
    Fault(
        "the bank's row after the last",
        "knn_topk_backward",
        "cpu/knn_topk_kernel.cpp",
        "row[i] >= made.problem.bank_rows)",
        "row[i] > made.problem.bank_rows)",
        BEYOND,
    ),
    Fault(
        "the pixel after the last",
        "gather_rows",
        "cpu/gather_rows_kernel.cpp",
        "pixel[i] >= map.images * map.area)",
        "pixel[i] > map.images * map.area)",
        BEYOND + "|Assertion '__n < this->size\\(\\)' failed",
    ),
    Fault(
        "survivors without room for a whole tile more",
        "knn_topk",
        "cpu/knn_block.h",
        "return survivors + kMaxTileColumns + kMaxWidth;",
        "return survivors;",
        BEYOND,
    ),
    Fault(
        "a whole register where fewer columns are left",
        "knn_topk",
        "math/canonical.h",
        "if (left >= V::width) {",
        "if (left >= 1) {",
        BEYOND,
    ),
    Fault(
        "a count of the standard library's vector",
        "knn_topk_backward",
        "cpu/knn_topk_kernel.cpp",
        "begin(static_cast<size_t>(total + 1), 0), pairs;",
        "begin(static_cast<size_t>(total), 0), pairs;",
        BEYOND + "|Assertion '__n < this->size\\(\\)' failed",
    ),
    # ---- UndefinedBehaviorSanitizer
    Fault(
        "signed overflow in a check",
        "class_counts",
        "cpu/class_counts_kernel.cpp",
        "if (c < 0 || c >= num_classes)",
        "if (c - num_classes >= 0 || c < 0)",
        "runtime error: signed integer overflow",
    ),
    Fault(
        "vectors loaded from rows that are not aligned for them",
        "density_contrast",
        "cpu/panel.h",
        "__attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T))));",
        "__attribute__((vector_size(4 * sizeof(T))));",
        "runtime error: (load|store|reference binding).* misaligned",
    ),
    # ---- ThreadSanitizer
    Fault(
        "one scratch for all threads",
        "knn_topk_backward",
        "cpu/knn_topk_kernel.cpp",
        f"{QUEUE}      Rows rows(p_.dim);\n",
        f"    Rows rows(p_.dim);\n{QUEUE}",
        RACE,
        "thread",
    ),
    Fault(
        "all queries' neighbours in one place",
        "knn_topk",
        "cpu/knn_topk_kernel.cpp",
        "value[query * k + r] = ",
        "value[r] = ",
        RACE,
        "thread",
    ),
    Fault(
        "the blocks of a group share their sum",
        "density_contrast",
        "cpu/density_contrast_kernel.cpp",
        "block_sums[static_cast<size_t>(item)] = sum;",
        "block_sums[static_cast<size_t>(g * blocks)] += sum;",
        RACE,
        "thread",
    ),
    Fault(
        "a meeting of blocks does not see what the one before has written",
        "silhouette_sums",
        "cpu/silhouette_sums_kernel.cpp",
        "std::memory_order_acquire",
        "std::memory_order_relaxed",
        RACE,
        "thread",
    ),
    Fault(
        "a queue without atomic numbers",
        "gather_rows",
        "common/parallel.h",
        "  std::atomic<int64_t> cursor{0};\n  auto next = [&]() -> int64_t {\n"
        "    const int64_t item = cursor.fetch_add(1, std::memory_order_relaxed);\n",
        "  int64_t cursor = 0;\n  auto next = [&]() -> int64_t {\n"
        "    const int64_t item = cursor++;\n",
        RACE,
        "thread",
    ),
    # What the annotations of the pool say is needed: without it, work seems to race with its caller.
    Fault(
        "the pool's order is not told",
        "memory_push",
        "common/parallel.h",
        "#if defined(__SANITIZE_THREAD__)\ninline void",
        "#if 0\ninline void",
        RACE,
        "thread",
    ),
]

# Where a file is compiled into more than the operator's own kernel: only that is compiled anew.
KERNELS = {"knn_topk_backward": "knn_topk", "density_contrast_backward": "density_contrast"}


def plant(fault: Fault, folder: Path) -> Path:
    """A copy of the sources with the fault in them; returns its csrc."""
    csrc = folder / "csrc"
    shutil.copytree(build.CSRC, csrc, ignore=shutil.ignore_patterns("cuda"))
    change_once(csrc / fault.file, fault.old, fault.new, fault.what)
    return csrc


def build_faulty(fault: Fault, folder: Path) -> Path:
    """The module with the fault: the operator's kernel and checks, search and instruction sets are compiled anew where
    it is."""
    csrc = plant(fault, folder)
    stem = KERNELS.get(fault.op, fault.op)
    concerned = [csrc / "cpu" / f"{stem}_kernel.cpp", csrc / "ops" / f"{stem}.cpp"]
    concerned += (csrc / "cpu" / "simd").glob("*.cpp")
    if stem.startswith("knn"):
        concerned.append(csrc / "cpu" / "knn_search.cpp")
    changed = {s for s in concerned if (csrc / fault.file) in includes(s, set())}
    if not changed:
        raise LookupError(f"{fault.op} is not made of {fault.file}")
    try:
        return build.build_changed(fault.mode, csrc, changed)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{fault.what}: does not compile:\n{error.stderr[-4000:]}") from None


def is_found(fault: Fault, result: Result) -> bool:
    """Whether this is the fault showing, and not another one or the search for it that broke."""
    if result.code == TIMED_OUT:
        raise RuntimeError(f"{fault.what}: timed out")
    return not result.clean and re.search(fault.says, result.output) is not None
