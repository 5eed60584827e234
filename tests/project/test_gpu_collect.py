"""Packing for a GPU and collecting results: sizes, figures, and no figure without a measurement."""

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
from gpu_kit import ROOT, command_of


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="packing lists the files by git")
@pytest.mark.parametrize(("limit", "status"), [("20", 0), ("0.1", 1)])
def test_a_pack_of_limited_size(monkeypatch, tmp_path, capsys, limit, status):
    pack = command_of("gpu_pack")
    monkeypatch.setattr(pack, "build_info", lambda *_: "stable ABI 2.10, cuda 13.0 for sm_90")
    wheel = tmp_path / "dgcl_ops-0.1.0-cp310-abi3-linux_x86_64.whl"
    wheel.write_bytes(bytes(200_000))
    folder = tmp_path / "pack"
    monkeypatch.setattr(
        sys, "argv", ["gpu_pack", str(folder), "--wheel", str(wheel), "--limit-mib", limit]
    )
    assert pack.main() == status
    assert ("must have at most 0.1 MiB" in capsys.readouterr().err) == bool(status)
    for name in (
        ".ci/gpu_run",
        ".ci/gpu/steps.py",
        "tests/conftest.py",
        "benchmarks/gpu_predictions.csv",
    ):
        assert (folder / name).is_file()
    assert not (folder / "dgcl_ops").exists()


def test_a_pack_without_kernels_is_refused(monkeypatch, tmp_path):
    pack = command_of("gpu_pack")
    monkeypatch.setattr(pack, "build_info", lambda *_: "stable ABI 2.10, cuda no")
    monkeypatch.setattr(sys, "argv", ["gpu_pack", str(tmp_path / "pack"), "--wheel", __file__])
    with pytest.raises(SystemExit, match="must have kernels for sm_90"):
        pack.main()


def test_every_phrase_that_a_run_makes_wrong_is_on_a_page():
    collect = command_of("gpu_collect")
    found = {line.split(": ", 1)[1] for line in collect.stale(ROOT)}
    assert found == set(collect.STALE)


def came_back(folder: Path, gpu: str, rehearsal: str = "") -> Path:
    """Creates an OUT with two figures."""
    folder.mkdir()
    environment = {
        "step": "environment",
        "title": "machine",
        "status": "passed",
        "seconds": 1.0,
        "note": gpu,
    }
    environment["figures"] = {"gpu": gpu, "torch": "2.11.0"}
    profile = {
        **environment,
        "step": "profile",
        "title": "kernels",
        "figures": {"host_ms": 0.6, "graph_ms": 8.0},
    }
    profile["figures"]["kernels"] = {
        "void dgcl::knn_bank_lengths_kernel<float>(A)": {"count": 1, "ms": 0.3}
    }
    lines = [{"run": {"rehearsal": rehearsal, "commit": "abc"}}, environment, profile]
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = {"part": "candidates' gather", "size": "voc", "median_ms": "0.2", "device": gpu}
    with (folder / "parts_bench_cuda.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerow(row)
    return folder


def collect(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_collect", *map(str, arguments)])
    return command_of("gpu_collect").main()


def test_what_came_back_becomes_results(monkeypatch, tmp_path, capsys):
    out, results = came_back(tmp_path / "out", "NVIDIA H200"), tmp_path / "results"
    for _ in range(2):  # a second time adds nothing
        assert collect(monkeypatch, out, "--results", results) == 0
    assert len((results / "parts_bench_cuda.csv").read_text().splitlines()) == 2
    report = (results / "gpu_run.md").read_text()
    assert "| VOC step, ours, host time | 0.7 ms | 0.4 to 1.0 | 0.6 ms | as predicted |" in report
    assert (
        "| knn_bank_lengths in a VOC step | 0.06 ms | 0.045 to 0.1 | 0.3 ms | more than predicted |"
        in report
    )
    assert "| VOC step, published, eager | 85 ms | 51 to 119 | - | not measured |" in report
    printed = capsys.readouterr().out
    assert "The host enqueues a step in 0.6 ms. A CUDA graph replays it in 8 ms." in printed
    assert "take {a}" not in printed
    assert "Under torch.compile the step" not in printed  # not measured
    assert "tests and the doctor pass" not in printed


@pytest.mark.parametrize(
    ("gpu", "rehearsal"), [("NVIDIA X1 (pretended)", ""), ("NVIDIA H200", "short")]
)
def test_a_rehearsal_never_becomes_results(monkeypatch, tmp_path, gpu, rehearsal):
    out, results = came_back(tmp_path / "out", gpu, rehearsal), tmp_path / "results"
    with pytest.raises(SystemExit, match="is from a rehearsal, so its figures are meaningless"):
        collect(monkeypatch, out, "--results", results)
    assert not results.exists()
    assert collect(monkeypatch, out, "--rehearsal") == 0
    assert "every figure is meaningless" in (out / "collected" / "gpu_run.md").read_text()


def test_a_run_without_a_gpu_is_refused(monkeypatch, tmp_path):
    out, results = came_back(tmp_path / "out", ""), tmp_path / "results"
    (out / "parts_bench_cuda.csv").unlink()
    note = "NO CUDA DEVICE; torch 2.11.0"
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    lines[1] |= {"status": "failed", "note": note}
    (out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit, match=f"must be from a run with a GPU, got {note}"):
        collect(monkeypatch, out, "--results", results)
    assert not results.exists()


@pytest.mark.parametrize(("outcome", "said"), [("passed", True), ("skipped", False)])
def test_tests_that_were_all_skipped_did_not_pass(monkeypatch, tmp_path, capsys, outcome, said):
    out = came_back(tmp_path / "out", "NVIDIA H200")
    passed = {"title": "t", "status": "passed", "seconds": 1.0, "note": "", "figures": {}}
    with (out / "results.jsonl").open("a") as file:
        for step in ("small_ops", "doctor", "tests"):
            file.write(json.dumps({"step": step, **passed}) + "\n")
    (out / "tests.csv").write_text(f"{outcome},0.1,tests/test_a.py::test_b,\n")
    assert collect(monkeypatch, out, "--results", tmp_path / "results") == 0
    assert ("1 tests and the doctor pass" in capsys.readouterr().out) == said


def test_predictions_are_of_figures_that_exist(monkeypatch):
    """The benchmarks write every column and contender that a prediction names."""
    from benchmark_runs import importable

    collected = command_of("gpu_collect")
    with importable(monkeypatch):
        import contenders
        import knn_bench
        import loss_bench
        import loss_steps
        import on_cuda
        import parts_bench

        columns = {
            "knn_bench_cuda.csv": knn_bench.CUDA_COLUMNS,
            "loss_bench_cuda.csv": loss_bench.COLUMNS + on_cuda.COLUMNS,
            "parts_bench_cuda.csv": parts_bench.COLUMNS + on_cuda.COLUMNS,
        }
        names = {
            "knn_bench_cuda.csv": set(contenders.contenders_for(False, "cuda")),
            "loss_bench_cuda.csv": {
                *loss_steps.builders("cuda"),
                *loss_steps.builders("cuda", True),
            },
            "parts_bench_cuda.csv": set(parts_bench.parts("tiny", torch.device("cpu"))),
        }
    predictions = collected.summary.rows_of(collected.PREDICTIONS)
    figures = {p["figure"] for p in predictions}
    assert len(figures) == len(predictions) > 20
    for prediction in predictions:
        float(prediction["predicted"]), float(prediction["low"])
        if prediction["source"] == "profile":
            continue
        source = prediction["source"]
        wanted = dict(part.split("=") for part in prediction["match"].split(";"))
        assert {*wanted, prediction["column"]} <= set(columns[source]), prediction
        assert wanted.get("contender", wanted.get("part")) in names[source], prediction
    for _, used in collected.SENTENCES:
        assert set(used.values()) <= figures
