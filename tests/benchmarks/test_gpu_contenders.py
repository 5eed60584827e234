"""Contenders on a GPU, tested on the CPU: bf16, compiled steps, parts of a step."""

import pytest
import torch
from benchmark_runs import importable


@pytest.fixture
def benchmarks(monkeypatch):
    with importable(monkeypatch):
        yield


def test_bf16_contenders_agree_and_a_wrong_one_does_not(benchmarks):
    """bf16 contenders agree within rounding to 8 bits. A larger error is reported."""
    import agreement
    import contenders
    import workloads

    case = {"queries": 40, "bank": 200, "dim": 32, "classes": 0, "scales": [2, 5]}
    case |= {"metric": "cosine", "data": "clusters", "device": "cpu", "dtype": "float32"}
    problem = workloads.build(case)
    exact = agreement.brute_force(problem)
    name = "matmul + one top-k, bf16"
    density = contenders.contenders_for(False, "cuda")[name].run(problem)
    error = agreement.check_agreement(name, density, problem, exact, "float32")
    assert error > agreement.TOLERANCES["float32"] / 10  # it has rounded
    with pytest.raises(agreement.Disagreement, match="bf16"):
        agreement.check_agreement(name, density + 0.05, problem, exact, "float32")


def test_compiled_and_eager_steps(benchmarks, monkeypatch):
    """Both compile as a user would. Memory is not measured, since that would compile again."""
    import loss_bench
    import loss_steps

    compiled = []

    def compile_nothing(function, **options):
        compiled.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    options = ["--tiny", "--present", "3", "--threads", "1", "--repeats", "1", "--compiled"]
    taken = []
    monkeypatch.setattr(loss_bench, "append_rows", lambda path, columns, rows: taken.extend(rows))
    monkeypatch.setattr(loss_bench, "extra_memory", lambda *arguments: 1_000_000)
    assert loss_bench.main(options) == 0
    rows = {row["contender"]: row for row in taken}
    assert list(rows) == [loss_steps.OURS, loss_steps.PUBLISHED, *loss_steps.COMPILED]
    assert compiled == [{"fullgraph": True}, {}, {}]
    assert rows["dgcl_ops"]["extra_mb"] == 1.0
    assert rows["dgcl_ops, compiled"]["extra_mb"] is None


def test_a_wrong_part_ends_the_run(benchmarks, tmp_path, monkeypatch, capsys):
    import parts_bench

    monkeypatch.setattr(
        parts_bench, "finite_rows", lambda maps: ~torch.isfinite(maps).all(1).flatten()
    )
    assert parts_bench.main(["--tiny", "--repeats", "1", "--out", str(tmp_path)]) == 1
    assert "finite rows of one map: must be within" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
