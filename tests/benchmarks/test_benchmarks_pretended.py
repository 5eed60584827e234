"""Whole benchmarks on a pretended CUDA device, with CPU tensors, emulated kernels, and events that read the clock."""

import contextlib
import time
import types

import pytest
import torch
from benchmark_runs import importable, read


@pytest.fixture
def benchmarks(monkeypatch):
    with importable(monkeypatch):
        yield


@pytest.fixture
def everything_pretended(benchmarks, monkeypatch):
    """A device with CPU tensors and events that read this process's clock."""
    from kernels.emulator import replace

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            self.at = time.perf_counter()

        def query(self):
            return False

        def elapsed_time(self, other):
            return 1e3 * (other.at - self.at)

    properties = types.SimpleNamespace(major=9, minor=0, L2_cache_size=30_000)
    for name, stand_in in {
        "device": contextlib.nullcontext,
        "Event": Event,
        "synchronize": lambda device=None: None,
        "_sleep": lambda cycles: None,
        "get_device_properties": lambda device: properties,
        "get_device_name": lambda device: "NVIDIA X1",
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device: None,
        "memory_allocated": lambda device: 1_000_000,
        "max_memory_allocated": lambda device: 3_500_000,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in, raising=False)
    import on_cuda

    monkeypatch.setattr(on_cuda, "why_not", lambda device: None)
    monkeypatch.setattr(on_cuda, "driver_version", lambda: "580.1")
    with replace.emulated_kernels("benchmarks"):
        yield


def test_knn_bench_on_a_pretended_gpu(everything_pretended, tmp_path, monkeypatch, capsys):
    import contenders
    import knn_bench

    build, placed, met = knn_bench.build, [], []
    knn_density = contenders.knn_density

    def density(queries, *arguments, **options):
        met.append(queries.data_ptr())
        return knn_density(queries, *arguments, **options)

    monkeypatch.setattr(contenders, "knn_density", density)

    def on_the_cpu(case):
        placed.append(case["device"])
        return build({**case, "device": "cpu"})

    monkeypatch.setattr(knn_bench, "build", on_the_cpu)
    arguments = ["--sizes", "70x150x16", "--scales", "2", "5", "--repeats", "2", "--threads", "1"]
    arguments += ["--device", "cuda", "--out", str(tmp_path)]
    assert knn_bench.main(arguments) == 0
    assert set(placed) == {"cuda"}
    timed = met[3:-6]  # without one call of three contenders to compare, and two each for memory
    assert len(timed) == 9
    assert len(set(timed)) > 3
    assert all(now != last for now, last in zip(timed[1:], timed[:-1], strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["knn_bench_cuda.csv"]
    rows = {row["contender"]: row for row in read(tmp_path / "knn_bench_cuda.csv")}
    for name in ("dgcl_ops", "dgcl_ops, exact search", "authors' way, TF32", "TF32 matmul alone"):
        row = rows[name]
        assert row["status"] == "measured"
        assert float(row["median_ms"]) > 0
        assert (row["extra_mb"], row["memory_method"]) == (
            "2.5",
            "torch.cuda.max_memory_allocated",
        )
        assert (row["device"], row["capability"], row["host"]) == ("NVIDIA X1", "9.0", "ahead")
        assert (row["allow_tf32"], row["driver"], row["input_sets"]) == ("False", "580.1", "6")
    assert float(rows["dgcl_ops"]["time_over_ours"]) == 1
    printed = capsys.readouterr().out
    assert "NVIDIA X1 (compute capability 9.0" in printed
    assert "TF32 off unless named" in printed


def test_loss_bench_on_a_pretended_gpu(everything_pretended, tmp_path, monkeypatch, capsys):
    import loss_bench

    cpu, make_batch, builders = torch.device("cpu"), loss_bench.make_batch, loss_bench.builders
    monkeypatch.setattr(loss_bench, "make_batch", lambda *which: make_batch(*which[:-1], cpu))
    monkeypatch.setattr(
        loss_bench,
        "builders",
        lambda *which: {
            name: lambda size, device, build=build: build(size, cpu)
            for name, build in builders(*which).items()
        },
    )
    arguments = ["--tiny", "--present", "3", "--threads", "1", "--repeats", "1"]
    assert loss_bench.main([*arguments, "--device", "cuda", "--out", str(tmp_path)]) == 0
    rows = {row["contender"]: row for row in read(tmp_path / "loss_bench_cuda.csv")}
    assert set(rows) == {
        "dgcl_ops",
        "dgcl_ops, exact search",
        "published step",
        "published step, TF32",
    }
    for row in rows.values():
        parts = [float(row[f"{part}_ms"]) for part in ("forward", "backward", "push")]
        assert float(row["total_ms"]) == pytest.approx(sum(parts), abs=0.1)
        assert (row["extra_mb"], row["host"], row["allow_tf32"]) == ("2.5", "ahead", "False")
        assert int(row["input_sets"]) > 1
    assert "NVIDIA X1" in capsys.readouterr().out


def test_parts_bench_on_a_pretended_gpu(everything_pretended, tmp_path, monkeypatch):
    import parts_bench

    cpu, parts = torch.device("cpu"), parts_bench.parts
    monkeypatch.setattr(parts_bench, "parts", lambda size, device: parts(size, cpu))
    arguments = ["--tiny", "--repeats", "2", "--threads", "1", "--device", "cuda"]
    assert parts_bench.main([*arguments, "--out", str(tmp_path)]) == 0
    rows = {row["part"]: row for row in read(tmp_path / "parts_bench_cuda.csv")}
    assert set(rows) == set(parts("tiny", cpu))
    for row in rows.values():
        assert float(row["median_ms"]) > 0
        assert (row["extra_mb"], row["host"]) == ("2.5", "ahead")
