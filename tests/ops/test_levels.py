"""Every instruction set gives the same bits, including ties. Requesting a missing one is an error."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from oracles import LEVELS

from dgcl_ops import backend_info

WIDEST = LEVELS.index(backend_info()["cpu_capability"])
if os.environ.get("DGCL_OPS_CPU_CAPABILITY"):
    pytest.skip(
        "DGCL_OPS_CPU_CAPABILITY already caps the level of this test run", allow_module_level=True
    )

DIGEST = """
import hashlib, torch
from dgcl_ops import backend_info, knn_density, knn_topk
from dgcl_ops.ops import memory_push
digest = hashlib.sha256()
def add(*tensors):
    for t in tensors:
        digest.update(t.contiguous().numpy().tobytes())
generator = torch.Generator().manual_seed(0)
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    for rows, dim in ((1, 1), (67, 31), (130, 32), (301, 33), (513, 67), (513, 100)):
        bank = torch.randn(rows, dim, generator=generator).to(dtype)
        bank[rows // 2 :] = bank[: rows - rows // 2].clone()  # ties
        bank[0] = 0
        queries = torch.cat([bank[: min(rows, 40)], torch.randn(29, dim, generator=generator).to(dtype)])
        for metric in ("cosine", "dot", "l2"):
            for k in (1, 7, 40):
                add(*knn_topk(queries, bank, k, metric=metric))
            add(knn_density(queries, bank, metric=metric), knn_density(bank, bank, exclude_self=True, metric=metric))
    ring = [torch.zeros(2, 9, 33, dtype=torch.float32), torch.zeros(2, 9, 5), torch.zeros(2, 9)]
    ring += [torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)]
    rows = torch.randn(2, 12, 33, generator=generator).to(dtype) * 1e-3, torch.ones(2, 12, 5), torch.ones(2, 12)
    memory_push(*ring, *rows, torch.tensor([12, 4]), normalize=True)
    add(*ring)
print(backend_info()["cpu_capability"], digest.hexdigest())
"""


def run(level: str):
    env = {**os.environ, "DGCL_OPS_CPU_CAPABILITY": level}
    command = [sys.executable, "-c", DIGEST]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_levels_agree_bit_for_bit():
    digests = {}
    for level in LEVELS[: WIDEST + 1]:
        result = run(level)
        assert result.returncode == 0, result.stderr
        used, digests[level] = result.stdout.split()
        assert used == level
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize("level", ["sse9", *LEVELS[WIDEST + 1 :]])
def test_unknown_or_missing_level_is_an_error(level):
    result = run(level)
    assert result.returncode != 0
    assert "DGCL_OPS_CPU_CAPABILITY" in result.stderr
    assert level in result.stderr


@pytest.mark.long
@pytest.mark.parametrize("level", LEVELS[:WIDEST])
def test_no_filter_loses_a_neighbour(level):
    """Runs test_knn_filter.py on the lower levels, which have other filters."""
    env = {**os.environ, "DGCL_OPS_CPU_CAPABILITY": level}
    tests = Path(__file__).with_name("test_knn_filter.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout


def test_levels_are_those_of_the_source():
    source = Path(__file__).resolve().parents[2] / "csrc" / "cpu" / "simd" / "dispatch.cpp"
    names = re.search(r"kLevelNames\[\] = \{([^}]*)\}", source.read_text())[1]
    assert tuple(re.findall(r'"(\w+)"', names)) == LEVELS
