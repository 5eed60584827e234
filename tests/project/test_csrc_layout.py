"""Includes in csrc/ go only to lower layers, and PyTorch's headers stay out of the CUDA kernels."""

import re
import shutil
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
if not CSRC.exists():
    pytest.skip("needs csrc/, which is missing here", allow_module_level=True)

# From lowest to highest. A file may include its own layer and lower ones. csrc/cpu and csrc/cuda share only BASE.
BASE = ("math/*", "common/*", "ops/*")
CPU = (
    "cpu/simd/*",
    "cpu/rows.* cpu/panel.h",
    "cpu/knn/problem.*",
    "cpu/knn/rows.h cpu/knn/order.h",
    "cpu/knn/exact.h cpu/knn/float_filter.h cpu/knn/int8_filter.h",
    "cpu/knn/block.h",
    "cpu/knn/search.*",
    "cpu/*_kernel.cpp",
)
CUDA = (
    "cuda/compat.cuh cuda/rows.* cuda/errors.cu cuda/binding.h",
    "cuda/knn/search.h",
    "cuda/knn/items.cuh cuda/knn/candidates.cuh",
    "cuda/knn/merge.cuh cuda/knn/exact.cuh cuda/knn/filter_prepare.cuh cuda/knn/filter_tile.cuh",
    "cuda/knn/filter_cut.cuh",
    "cuda/knn/filter.cuh",
    "cuda/knn/search.cu cuda/knn/search_binding.*",
    "cuda/contrast_* cuda/*_kernel.* cuda/*_binding.cpp",
)
PYTORCH = ("cuda/binding.h", "cuda/contrast_tensors.h", "cuda/*_binding.*", "cuda/knn/*_binding.*")


def sources(csrc: Path) -> list[Path]:
    return [p for p in sorted(csrc.rglob("*")) if p.suffix in (".h", ".cpp", ".cu", ".cuh")]


def included(file: Path) -> list[Path]:
    """The files of csrc that `file` includes directly."""
    names = re.findall(r'^\s*#\s*include\s*"([^"]+)"', file.read_text(), re.MULTILINE)
    found = [(file.parent / name).resolve() for name in names]
    return [path for path in found if path.exists()]  # the emulator's header is in another folder


def matches(path: Path, csrc: Path, patterns: str) -> bool:
    return any(path.parent == (csrc / p).parent and path.match(p) for p in patterns.split())


def place(path: Path, csrc: Path) -> tuple[str, int]:
    """Side and layer of a file."""
    places = [
        (side, number)
        for side, layers in (("cpu", BASE + CPU), ("cuda", BASE + CUDA))
        for number, patterns in enumerate(layers)
        if matches(path, csrc, patterns)
    ]
    if path == csrc / "extension.cpp":
        return "cpu", len(BASE + CPU)
    if not places:
        raise LookupError(f"{path.relative_to(csrc)} has no layer in {Path(__file__).name}")
    return places[0] if len(places) == 1 else ("both", places[0][1])


def cycle_from(file: Path, path: tuple[Path, ...], done: set[Path]) -> tuple[Path, ...]:
    if file in path:
        return (*path[path.index(file) :], file)
    if file in done:
        return ()
    for other in included(file):
        if cycle := cycle_from(other, (*path, file), done):
            return cycle
    done.add(file)
    return ()


def reaches_pytorch(file: Path, seen: set[Path]) -> bool:
    """Whether the file includes a header of PyTorch, directly or through another file."""
    seen.add(file)
    if re.search(r"^\s*#\s*include\s*<(torch|ATen|c10)/", file.read_text(), re.MULTILINE):
        return True
    return any(reaches_pytorch(other, seen) for other in included(file) if other not in seen)


def faults(csrc: Path) -> list[str]:
    csrc = csrc.resolve()
    found = []
    for file in sources(csrc):
        side, layer = place(file, csrc)
        name = file.relative_to(csrc)
        for other in included(file):
            other_side, other_layer = place(other, csrc)
            if other_layer > layer or other_side not in (side, "both"):
                found.append(f"{name} includes {other.relative_to(csrc)}")
        if cycle := cycle_from(file, (), set()):
            found.append(" -> ".join(str(f.relative_to(csrc)) for f in cycle))
        allowed = any(matches(file, csrc, pattern) for pattern in PYTORCH)
        if name.parts[0] in ("cuda", "math") and not allowed and reaches_pytorch(file, set()):
            found.append(f"{name} includes PyTorch's headers")
    return found


def test_includes_run_down():
    assert faults(CSRC) == []


@pytest.mark.parametrize(
    ("file", "include", "fault"),
    [
        ("cpu/knn/rows.h", '"search.h"', "cpu/knn/rows.h includes cpu/knn/search.h"),
        ("cpu/knn/exact.h", '"block.h"', "cpu/knn/exact.h includes cpu/knn/block.h"),
        ("cpu/rows.h", '"knn/problem.h"', "cpu/rows.h includes cpu/knn/problem.h"),
        ("math/density.h", '"../common/check.h"', "math/density.h includes common/check.h"),
        ("common/check.h", '"../ops/checks.h"', "common/check.h includes ops/checks.h"),
        ("ops/checks.h", '"../cpu/rows.h"', "ops/checks.h includes cpu/rows.h"),
        ("cpu/panel.h", '"../cuda/rows.h"', "cpu/panel.h includes cuda/rows.h"),
        ("cuda/rows.h", '"../cpu/rows.h"', "cuda/rows.h includes cpu/rows.h"),
        ("cuda/knn/items.cuh", '"exact.cuh"', "cuda/knn/items.cuh includes cuda/knn/exact.cuh"),
        ("cuda/rows.h", "<torch/csrc/stable/tensor.h>", "cuda/rows.h includes PyTorch's headers"),
        ("cuda/rows.h", "<ATen/ATen.h>", "cuda/rows.h includes PyTorch's headers"),
        ("cuda/knn/exact.cuh", '"../binding.h"', "cuda/knn/exact.cuh includes PyTorch's headers"),
        ("cuda/rows.h", ' "../cpu/rows.h"', "cuda/rows.h includes cpu/rows.h"),
        ("math/density.h", "<torch/types.h>", "math/density.h includes PyTorch's headers"),
        ("math/host_device.h", '"density.h"', "math/host_device.h -> math/density.h"),
    ],
)
def test_a_planted_include_is_found(tmp_path, file, include, fault):
    copy = tmp_path / "csrc"
    shutil.copytree(CSRC, copy)
    text = (copy / file).read_text()
    (copy / file).write_text(text.replace("#pragma once\n", f"#pragma once\n#include {include}\n"))
    assert any(fault in line for line in faults(copy))


def test_a_file_without_a_layer_is_an_error(tmp_path):
    copy = tmp_path / "csrc"
    shutil.copytree(CSRC, copy)
    (copy / "cpu" / "knn" / "extra.h").write_text("#pragma once\n")
    with pytest.raises(LookupError, match=r"cpu/knn/extra\.h has no layer"):
        faults(copy)
