"""The scores of `metrics` in blocks of any size: bounded memory, no threads for a short block."""

import subprocess
import sys
import weakref

import pytest
import torch
from test_metrics import SCORES, blobs, each_score
from torch.utils._python_dispatch import TorchDispatchMode

from dgcl_ops import _clusters
from dgcl_ops._clusters import Clusters


class PeakMemory(TorchDispatchMode):
    """Tracks the bytes alive at once in storages created while the mode is on."""

    def __init__(self):
        super().__init__()
        self.holders, self.alive, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if not isinstance(tensor, torch.Tensor):
                continue
            key = tensor.untyped_storage().data_ptr()
            if key in inputs and key not in self.holders:
                continue  # a view of something older than the mode
            size = tensor.untyped_storage().nbytes()
            if key not in self.holders:
                self.holders[key] = 0
                self.alive += size
            self.holders[key] += 1
            weakref.finalize(tensor, self.release, key, size)
        self.peak = max(self.peak, self.alive)
        return result

    def release(self, key, size):
        self.holders[key] -= 1
        if self.holders[key] == 0:
            del self.holders[key]
            self.alive -= size


@each_score
@pytest.mark.parametrize("block", [1, 2, 7, 31, 64])
def test_block_size_does_not_matter(name, block, monkeypatch):
    features, labels = blobs(64, 5, 6)
    mine = SCORES[name][0]
    expected = mine(features, labels)
    monkeypatch.setattr(_clusters, "_LARGEST_BLOCK", block)
    monkeypatch.setattr(Clusters, "sum_block", lambda self, copies: block)
    torch.testing.assert_close(mine(features, labels), expected, rtol=1e-12, atol=1e-12)


@each_score
@pytest.mark.parametrize("megabytes", [64, 5])
def test_working_memory_stays_below_the_budget(name, megabytes, monkeypatch):
    """The smaller budget is too small for the sums of all rows at once."""
    features, labels = blobs(5000, 64, 21)
    features = features.float()
    monkeypatch.setattr(_clusters, "_BUDGET_DOUBLES", megabytes * 2**20 // 8)
    with PeakMemory() as memory:
        SCORES[name][0](features, labels)
    assert 0 < memory.peak <= megabytes * 2**20  # an N x N float64 matrix would be 200 MB


@pytest.mark.parametrize(("width", "classes"), [(1, 2), (256, 21), (4096, 150), (65536, 2)])
def test_block_fits_the_budget(width, classes):
    clusters = Clusters(
        "", torch.empty(1, width, device="meta"), None, None, torch.empty(classes, device="meta")
    )
    b = clusters.block
    assert b >= 16
    assert 8 * (6 * b * width + 4 * classes * b) <= 64 * 2**20
    for copies in (1, 2):
        b = clusters.sum_block(copies)
        assert b >= 16
        assert copies * b * width * 4 + 4 * 8 * classes * b <= 48 * 2**20


THREADS = """
import os, sys, torch
from dgcl_ops import metrics
torch.set_num_threads(3)
before = len(os.listdir("/proc/self/task"))
features, labels = torch.randn(3000, 64), torch.arange(3000) % 3
if sys.argv[1] == "sum":
    torch.ones(3000, 64).sum()
else:
    getattr(metrics, sys.argv[1])(features, labels)
print(len(os.listdir("/proc/self/task")) - before)
"""


def started_threads(score: str) -> int:
    command = [sys.executable, "-c", THREADS, score]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self")
@pytest.mark.parametrize("score", ["calinski_harabasz_score", "davies_bouldin_score"])
def test_blocks_start_no_threads(score):
    """A parallel region waits for its slowest thread, so hundreds of regions make a score slow on busy cores."""
    assert started_threads(score) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self")
def test_a_sum_over_all_rows_would_start_threads():
    """Shows that the test above can fail."""
    assert started_threads("sum") == 2
