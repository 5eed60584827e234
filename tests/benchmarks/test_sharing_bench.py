"""Counted volumes match the shapes, and a bank too large for one process fits into four."""

from pathlib import Path

import pytest
import torch
from benchmark_runs import BENCHMARKS, importable, read
from torch import distributed as dist

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs gloo", allow_module_level=True)


@pytest.fixture
def bench(monkeypatch):
    with importable(monkeypatch):
        import sharing_bench

        yield sharing_bench


def test_one_collective_has_the_size_that_follows_from_the_shapes(bench):
    sizes = "--classes 5 --dim 8 --capacity 40 --rows-per-push 39 --images 1 --map 24"
    options = bench.parse(sizes.split())
    volume = bench.on_processes(2, options, "replicated", bench.volumes)
    per_rank = 20  # half of 39, rounded up
    size = 8 * (2 + 5) + 4 * 5 * per_rank * (1 + 8 + 8)
    assert volume == {
        "collectives": 1,
        "sent": size + -size % 8,
        "received": 2 * (size + -size % 8),
        "bank": 4 * 5 * 40 * (1 + 8 + 8),
    }
    options.exchange_dtype = torch.bfloat16
    half = bench.on_processes(2, options, "replicated", bench.volumes)
    assert volume["sent"] - half["sent"] == 2 * 5 * per_rank * (8 + 8)
    assert half["received"] == 2 * half["sent"]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_four_processes_hold_what_one_cannot(bench):
    options = bench.parse(["--small"])
    alone = bench.on_processes(1, options, "local", bench.under_limit)
    assert not alone["fits"]
    assert "allocate" in alone["error"]
    shared = bench.on_processes(4, options, "sharded", bench.under_limit)
    assert shared["fits"]
    assert shared["counts"] > 0
    assert shared["bank"] == alone["bank"] > 1.4 * shared["limit"]


def test_committed_volumes():
    rows = read(BENCHMARKS / "results" / "sharing_bench.csv")
    voc = [
        row
        for row in rows
        if (row["classes"], row["dim"], row["capacity"]) == ("21", "256", "10000")
    ]
    last = {(r["placement"], r["processes"]): r for r in voc if r["exchange_dtype"] == "float32"}
    whole = float(last["local", "1"]["bank_mb"])
    for size in (2, 4):
        replicated, sharded = (last[p, str(size)] for p in ("replicated", "sharded"))
        assert float(replicated["received_mb"]) <= 45 < float(replicated["published_sent_mb"]) / 6
        assert replicated["collectives"] == "1"
        assert float(replicated["bank_mb"]) == whole
        assert float(sharded["bank_mb"]) == pytest.approx(whole / size, rel=1e-3)
    half = next(row for row in voc if row["exchange_dtype"] == "bfloat16")
    # The formula of docs/guide/distributed.md, for four processes.
    for row, bytes_of_element in ((last["replicated", "4"], 4), (half, 2)):
        sent = 16 + 8 * 21 + 21 * 250 * (4 + bytes_of_element * (256 + 256))
        assert row["processes"] == "4"
        assert float(row["sent_mb"]) == pytest.approx(sent / 1e6, abs=0.01)
        assert float(row["received_mb"]) == pytest.approx(4 * sent / 1e6, abs=0.01)
