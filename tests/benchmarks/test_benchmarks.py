"""The benchmarks run, write their rows, and refuse to time contenders that disagree."""

import os
import time

import pytest
import torch
from benchmark_runs import importable, read, run

from dgcl_ops import backend_info

KNN = ("--sizes", "200x150x16", "--scales", "2", "5", "--threads", "1", "--repeats", "2")


@pytest.fixture
def benchmarks(monkeypatch):
    with importable(monkeypatch):
        yield


def test_knn_bench_writes_a_dated_row_per_contender(tmp_path):
    result = run("knn_bench.py", *KNN, "--no-memory", "--data", "tight", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    rows = {row["contender"]: row for row in read(tmp_path / "knn_bench.csv")}
    for name in ("dgcl_ops", "dgcl_ops, unit bank", "authors' way", "matmul + one top-k"):
        assert rows[name]["status"] == "measured"
        assert float(rows[name]["median_ms"]) > 0
        assert float(rows[name]["max_error"]) < 1e-5
        assert name in result.stdout
    assert rows["fp32 matmul alone"]["max_error"] == ""  # it has no top-k
    assert float(rows["dgcl_ops"]["time_over_ours"]) == 1
    assert {"faiss IndexFlat", "scikit-learn brute", "pykeops"} <= set(rows)
    for row in rows.values():
        assert row["date"]
        assert row["cpu"]
        assert row["torch"] == torch.__version__
        assert (row["cpu_capability"], row["threads"]) == (backend_info()["cpu_capability"], "1")
        assert (row["queries"], row["bank"], row["dim"], row["scales"]) == (
            "200",
            "150",
            "16",
            "2 5",
        )
        if row["status"] != "measured":
            assert f"absent: {row['contender']}: {row['status']}" in result.stdout
    assert "median ms" in result.stdout
    assert "we lose to: " in result.stdout
    assert "repeat 2/2" in result.stderr


def test_knn_bench_grouped(tmp_path):
    result = run("knn_bench.py", *KNN, "--classes", 3, "--no-memory", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    rows = {row["contender"]: row for row in read(tmp_path / "knn_bench.csv")}
    assert rows["dgcl_ops, call per class"]["status"] == "measured"
    assert rows["dgcl_ops"]["classes"] == "3"


def test_knn_bench_sweep_plots_and_appends(tmp_path, benchmarks):
    pytest.importorskip("matplotlib")
    import knn_bench

    arguments = [*KNN, "--no-memory", "--sweep", "d", "--values", "4", "8", "--out", str(tmp_path)]
    assert knn_bench.main(arguments) == 0
    assert (tmp_path / "knn_clusters_over_d.png").stat().st_size > 0
    assert [
        row["dim"] for row in read(tmp_path / "knn_bench.csv") if row["contender"] == "dgcl_ops"
    ] == [
        "4",
        "8",
    ]


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_other_metrics_agree(tmp_path, benchmarks, metric):
    import knn_bench

    arguments = [*KNN, "--no-memory", "--metric", metric, "--out", str(tmp_path)]
    assert knn_bench.main(arguments) == 0
    rows = {row["contender"]: row for row in read(tmp_path / "knn_bench.csv")}
    assert rows["matmul + one top-k"]["status"] == "measured"
    assert rows["authors' way"]["status"] == "implemented for cosine only"


def test_wrong_densities_are_not_timed(tmp_path, benchmarks, monkeypatch, capsys):
    import contenders
    import knn_bench

    right = contenders.knn_density
    monkeypatch.setattr(contenders, "knn_density", lambda *a, **k: right(*a, **k) + 1e-3)
    assert knn_bench.main([*KNN, "--no-memory", "--out", str(tmp_path)]) == 1
    assert "DISAGREEMENT" in capsys.readouterr().err
    assert not (tmp_path / "knn_bench.csv").exists()


def test_nan_is_a_disagreement(benchmarks):
    import agreement
    import contenders

    rows = torch.ones(4, 2)
    problem = contenders.Problem(rows, rows, rows, (2,), "cosine")
    wrong = torch.full((4,), torch.nan)
    with pytest.raises(agreement.Disagreement, match="dgcl_ops: densities must be within"):
        agreement.check_agreement(
            "dgcl_ops", wrong, problem, agreement.brute_force(problem), "float32"
        )


def test_peak_memory_is_that_of_the_call(benchmarks):
    import peak_memory

    if peak_memory.memory_method(torch.device("cpu")).startswith("not"):
        pytest.skip("needs Linux's /proc/self/clear_refs")
    inputs = torch.ones(4_000_000)  # 16 MB

    def call():
        temporary = inputs + inputs
        return temporary + inputs

    peak = peak_memory.peak_beyond_inputs(call, torch.device("cpu"))
    assert 31e6 < peak < 36e6  # temporary and result, without the inputs


def test_rows_of_another_format_are_not_mixed_in(tmp_path, benchmarks):
    import common

    path = tmp_path / "rows.csv"
    common.append_rows(path, ("a", "b"), [{"a": 1, "b": 2}])
    common.append_rows(path, ("a", "b"), [{"a": 3, "b": 4}])
    assert [row["a"] for row in read(path)] == ["1", "3"]
    with pytest.raises(RuntimeError, match="choose another --out"):
        common.append_rows(path, ("a", "c"), [{"a": 1, "c": 2}])


def test_loss_bench_writes_both_steps(tmp_path):
    small = ("--small", "--present", 3, "--threads", 1, "--repeats", 1)
    result = run("loss_bench.py", *small, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    ours, published = read(tmp_path / "loss_bench.csv")
    assert (ours["contender"], published["contender"]) == ("dgcl_ops", "published step")
    assert float(ours["loss"]) == pytest.approx(float(published["loss"]), rel=0.03)
    assert float(ours["shared_anchors"]) > 0.97
    for row in (ours, published):
        parts = [float(row[f"{part}_ms"]) for part in ("forward", "backward", "push")]
        assert float(row["total_ms"]) == pytest.approx(sum(parts), abs=0.1)
        assert row["memory_method"]
        assert (row["size"], row["present"]) == ("small", "3")
    assert "time / ours" in result.stdout


def test_a_loss_that_differs_is_not_timed(tmp_path, benchmarks, monkeypatch, capsys):
    import loss_bench
    import loss_steps

    right = loss_steps.OurStep.forward
    monkeypatch.setattr(loss_steps.OurStep, "forward", lambda *arguments: right(*arguments) * 1.1)
    small = [
        "--small",
        "--present",
        "3",
        "--threads",
        "1",
        "--repeats",
        "1",
        "--out",
        str(tmp_path),
    ]
    assert loss_bench.main(small) == 1
    assert "DISAGREEMENT" in capsys.readouterr().err
    assert not (tmp_path / "loss_bench.csv").exists()


HEAD = ("--tiny", "--threads", "1", "--repeats", "1")


def test_head_bench_writes_both_ways(tmp_path):
    result = run("head_bench.py", *HEAD, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    rows = {row["contender"]: row for row in read(tmp_path / "head_bench.csv")}
    assert set(rows) == {"head on maps", "head on chosen rows"}
    assert float(rows["head on chosen rows"]["time_over_rows"]) == 1
    for name, row in rows.items():
        assert float(row["median_ms"]) > 0
        assert row["memory_method"]
        assert name in result.stdout


def test_heads_that_disagree_are_not_timed(tmp_path, benchmarks, monkeypatch, capsys):
    import head_bench

    right = head_bench.ProjectionHead.forward
    monkeypatch.setattr(
        head_bench.ProjectionHead,
        "forward",
        lambda head, features, used=None: right(head, features, used) + (used is not None),
    )
    assert head_bench.main([*HEAD, "--out", str(tmp_path)]) == 1
    assert "DISAGREEMENT" in capsys.readouterr().err
    assert not (tmp_path / "head_bench.csv").exists()


METRICS = ("--sizes", "200x16", "--classes", "4", "--threads", "1", "--repeats", "2")


def test_metrics_bench_writes_both_sides_of_each_score(tmp_path):
    result = run("metrics_bench.py", *METRICS, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    rows = read(tmp_path / "metrics_bench.csv")
    assert [row["contender"] for row in rows] == ["dgcl_ops", "scikit-learn"] * 3
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        assert ours["score"] == theirs["score"]
        assert float(ours["value"]) == pytest.approx(float(theirs["value"]), rel=1e-3)
        assert float(ours["error"]) <= 1e-9
        assert float(ours["time_over_ours"]) == 1
        for row in (ours, theirs):
            assert float(row["min_ms"]) <= float(row["median_ms"]) <= float(row["max_ms"])
            assert (row["rows"], row["dim"], row["classes"]) == ("200", "16", "4")
            assert (row["threads"], row["dtype"]) == ("1", "float32")
            assert row["memory_method"]
            assert f"{row['score']}, {row['contender']}" in result.stdout
    assert "we lose at: " in result.stdout


def test_a_score_that_differs_is_not_timed(tmp_path, benchmarks, monkeypatch, capsys):
    import metrics_bench

    right = metrics_bench.metrics.davies_bouldin_score
    monkeypatch.setattr(
        metrics_bench.metrics, "davies_bouldin_score", lambda *a: right(*a) * (1 + 1e-8)
    )
    assert metrics_bench.main([*METRICS, "--no-memory", "--out", str(tmp_path)]) == 1
    assert "DISAGREEMENT" in capsys.readouterr().err
    assert not (tmp_path / "metrics_bench.csv").exists()


@pytest.mark.parametrize("arguments", [("--classes", "1"), ("--sizes", "20"), ("--sizes", "0x3")])
def test_metrics_bench_refuses_what_it_cannot_do(benchmarks, arguments, capsys):
    import metrics_bench

    with pytest.raises(SystemExit):
        metrics_bench.parse(list(arguments))
    assert "must" in capsys.readouterr().err


def test_disturbed_repeats_are_done_again(benchmarks, monkeypatch):
    import common

    shares = iter([0.5, 0.01, 0.3, 0.02])
    monkeypatch.setattr(common.OtherLoad, "share", lambda self: next(shares))
    monkeypatch.setattr(common, "wait_for_calm", lambda limit, deadline: None)
    calls = []
    runs = {"a": lambda: calls.append("a") or {"total": len(calls)}}
    measured, others = common.alternate(runs, 2, calm=0.05)
    assert [result["total"] for result in measured["a"]] == [2, 4]
    assert others == 0.02


def test_other_load_counts_other_processes_only(benchmarks):
    import common

    others = common.OtherLoad()
    if not others.known:
        pytest.skip("needs Linux's /proc/stat")
    begin, own = time.perf_counter(), time.process_time()
    while time.process_time() < own + 0.3:
        pass  # our own load must not count
    left = 1 - 0.3 / ((time.perf_counter() - begin) * os.cpu_count())
    assert 0 <= others.share() <= left + 0.1
