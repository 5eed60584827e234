"""Every section of the suite runs, writes its rows and aims, and never times a wrong contender."""

import pytest
import torch
from benchmark_runs import importable, read

from dgcl_ops import backend_info, knn_topk


@pytest.fixture
def benchmarks(monkeypatch):
    with importable(monkeypatch):
        yield


def suite(tmp_path, *only: str) -> int:
    import suite

    return suite.main(
        ["--quick", "--threads", "1", "--out", str(tmp_path), *(("--only", *only) if only else ())]
    )


@pytest.mark.parametrize("section", ["search", "worst", "grouped", "scaling", "dims"])
def test_a_section_writes_rows_and_aims(tmp_path, benchmarks, capsys, section):
    import sections

    if section in ("scaling", "dims"):
        pytest.importorskip("matplotlib")
    assert suite(tmp_path, section) == 0
    rows, aims = read(tmp_path / "suite.csv"), read(tmp_path / "aims.csv")
    assert tuple(rows[0]) == sections.COLUMNS
    assert tuple(aims[0]) == sections.AIM_COLUMNS
    ours = [row for row in rows if row["contender"] == "dgcl_ops"]
    assert ours
    for row in ours:
        assert (row["section"], row["status"], row["threads"]) == (section, "measured", "1")
        assert row["date"]
        assert row["commit"]
        assert float(row["median_ms"]) > 0
        assert float(row["cpu_use"]) >= 0
        assert float(row["max_error"]) < 1e-4
    for aim in aims:
        assert aim["section"] == section
        if aim["value"]:
            assert (aim["verdict"] in ("met", "short")) == bool(aim["aim"])
            assert float(aim["value"]) >= 0
        else:
            assert aim["verdict"] == "not measured"
    printed = capsys.readouterr()
    assert f"Aims: {section}" in printed.out
    assert f"[1/1] {section}" in printed.err
    pictures = {"scaling": ["knn_clusters_over_mn_suite.png"]}
    pictures["dims"] = ["knn_clusters_over_d_suite.png"]
    assert [path.name for path in tmp_path.glob("*.png")] == pictures.get(section, [])


def test_every_kind_of_data_and_type_has_its_rows(tmp_path, benchmarks):
    pytest.importorskip("matplotlib")
    assert suite(tmp_path, "search", "worst", "grouped", "dims") == 0
    rows = read(tmp_path / "suite.csv")
    assert {row["data"] for row in rows} == {
        *("clusters", "uniform", "tight", "equal", "one_ulp", "noise"),
    }
    assert {row["metric"] for row in rows} == {"cosine", "dot", "l2"}
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16", "float16", "float64"}
    assert {row["shares"] for row in rows if row["section"] == "grouped"} == {
        "one_large",
        "unequal",
    }


def test_memory_has_a_row_per_size(tmp_path, benchmarks):
    import peak_memory

    if peak_memory.memory_method(torch.device("cpu")).startswith("not"):
        pytest.skip("needs Linux's /proc/self/clear_refs")
    assert suite(tmp_path, "memory") == 0
    (row,) = read(tmp_path / "suite.csv")
    assert (row["status"], row["median_ms"]) == ("memory only", "")
    assert float(row["extra_mb"]) >= 0
    (aim,) = read(tmp_path / "aims.csv")
    assert aim["aim"] == "<= 32.0"  # the packed copy of 200 x 32 bytes rounds to 0
    assert aim["verdict"] == "met"


def test_levels_say_what_is_absent_and_agree(tmp_path, benchmarks):
    import levels

    assert suite(tmp_path, "levels") == 0
    rows = {row["level"]: row for row in read(tmp_path / "suite.csv")}
    assert tuple(rows) == levels.LEVELS
    assert backend_info()["cpu_capability"] in levels.LEVELS
    for row in rows.values():
        assert (row["status"] == "measured") == bool(row["digest"])
        assert row["status"] == "measured" or "DGCL_OPS_CPU_CAPABILITY" in row["status"]
    assert len({row["digest"] for row in rows.values()} - {""}) == 1
    assert read(tmp_path / "aims.csv")[-1]["verdict"] == "met"


def test_other_benchmarks_are_called(tmp_path, benchmarks, monkeypatch, capsys):
    import loss_bench
    import metrics_bench

    calls = []
    monkeypatch.setattr(loss_bench, "main", lambda arguments: calls.append(arguments) or 0)
    assert suite(tmp_path, "loss") == 0
    assert calls[0][:4] == ["--threads", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(loss_bench, "main", lambda arguments: 1)
    assert suite(tmp_path, "loss") == 1
    assert "loss_bench.py failed" in capsys.readouterr().err

    monkeypatch.setattr(metrics_bench, "main", lambda arguments: calls.append(arguments) or 0)
    assert suite(tmp_path, "scores") == 0
    assert calls[-1] == ["--threads", "1", "--out", str(tmp_path), "--quick"]


def test_an_aim_is_met_or_short_or_not_measured(tmp_path, benchmarks, capsys):
    import sections
    import suite

    run = sections.Run("search", suite.parse(["--out", str(tmp_path)]), sections.QUICK)
    for value, aim in ((1.3, "<= 1.3"), (1.4, "<= 1.3"), (5.0, ">= 5"), (4.9, ">= 5")):
        run.judge("case", "ratio", value, aim)
    run.judge("case", "ratio", None, ">= 5")
    run.judge("case", "ratio", 2.0)
    verdicts = ["met", "short", "met", "short", "not measured", ""]
    assert [row["verdict"] for row in read(tmp_path / "aims.csv")] == verdicts
    run.report()
    assert capsys.readouterr().out.count("short") == 2


def test_a_matrix_that_is_too_large_is_not_built(benchmarks):
    import contenders

    queries, bank = (torch.zeros(1, 1).expand(n, 1) for n in (40_000, 30_000))
    problem = contenders.Problem(queries, bank, bank, (2,), "cosine")
    offered = {**contenders.contenders_for(False), **contenders.ON_REQUEST}
    for name in (contenders.PUBLISHED, contenders.PLAIN, contenders.BARE, contenders.FLOOR):
        assert offered[name].missing(problem) == "its matrix would take 4.8 GB, the limit is 4"
    assert offered[contenders.OURS].missing(problem) == ""


def test_wrong_neighbours_are_not_timed(tmp_path, benchmarks, monkeypatch, capsys):
    import contenders

    def one_off(*arguments, **options):
        values, indices = knn_topk(*arguments, **options)
        return values, (indices + 1) % arguments[1].shape[-2]

    monkeypatch.setattr(contenders, "knn_topk", one_off)
    assert suite(tmp_path, "search") == 1
    assert "DISAGREEMENT" in capsys.readouterr().err
    assert not (tmp_path / "suite.csv").exists()
