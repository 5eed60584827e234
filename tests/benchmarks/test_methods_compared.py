"""benchmarks/evidence/methods.py: runs are equal but for the method, can be resumed, and agree with the page."""

import json
import math
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]

from evidence import methods as comparison  # noqa: E402
from evidence import methods_report as tables  # noqa: E402
from evidence.pool import outcomes  # noqa: E402
from evidence.run import described  # noqa: E402
from semi_supervised.methods import METHODS, choose, passes_of  # noqa: E402

RESULTS = ROOT / "benchmarks" / "evidence" / "results"
SEEDS = (0, 1, 2)


def row(method, budget, seed, miou):
    """A row as `train` returns it."""
    settings = comparison.settings_of(method, budget, seed, 6)
    passes = passes_of(settings)
    figures = {"miou": miou, "val_miou": miou + 1, "cpu_seconds": 2.0, "peak_mb": 100}
    facts = {"versions": "numpy 2", "cpu": "a", "torch": "b", "commit": "c"}
    return {
        "method": method,
        "budget": budget,
        "seed": seed,
        "steps": settings.steps,
        "passes": passes,
        "curve": f"{passes // 2}:{miou - 5} {passes}:{miou}",
        "networks": 1,
        "settings": described(settings),
        **figures,
        **facts,
    }


def rows_of(*names, seeds=SEEDS):
    rng = np.random.default_rng(0)
    return [
        row(name, budget, seed, round(rng.uniform(40, 50), 4))
        for name in names
        for budget in tables.BUDGETS
        for seed in seeds
    ]


def saved(rows, path):
    comparison.append_rows(path, comparison.COLUMNS, rows)
    return tables.read_rows(path)


# ---- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_methods_differ_in_name_and_steps_alone(name):
    control = comparison.settings_of(tables.CONTROL, "steps", 1, comparison.STEPS)
    for budget in tables.BUDGETS:
        settings = comparison.settings_of(name, budget, 1, comparison.STEPS)
        method = {"name": name} if name != "gct" else {"name": name, "detector_width": 8}
        same = {"steps": settings.steps, "warm_up": settings.warm_up, "method": method}
        assert replace(control, **same) == settings
        assert settings.warm_up == settings.steps // 3
        if budget == "steps":
            assert settings.steps == comparison.STEPS
        else:
            kind, options = choose(settings.method)
            step = max(kind.passes(settings, options).units, kind.warm_up_passes.units)
            assert 0 <= passes_of(control) - passes_of(settings) < step


# ---- runs -------------------------------------------------------------------------------------------


def test_a_resumed_comparison_has_the_same_digits(tmp_path, capsys):
    whole, resumed = tmp_path / "new folder" / "methods.csv", tmp_path / "methods.csv"
    fixed = ["--methods", "self_training", "ps_mt", "--seeds", "3", "--steps", "4"]
    fixed += ["--budgets", "steps"]
    comparison.main([*fixed, "--workers", "1", "--out", str(whole)])
    first = "".join(whole.read_text().splitlines(keepends=True)[:2])
    resumed.write_text(first)
    comparison.main([*fixed, "--workers", "2", "--out", str(resumed)])  # a process of its own
    assert "1 runs done, 1 to do" in capsys.readouterr().err
    assert resumed.read_text().startswith(first)

    rows, again = (tables.read_rows(path) for path in (whole, resumed))
    assert [each["method"] for each in rows] == ["self_training", "ps_mt"]
    own = ("cpu_seconds", "peak_mb", "date")
    for one, two in zip(rows, again, strict=True):
        assert {k: v for k, v in one.items() if k not in own} == {
            k: v for k, v in two.items() if k not in own
        }
        assert one["curve"][-1] == (one["passes"], one["miou"])
        assert len(one["curve"]) == 4  # one per step, as there are fewer than ten
        assert math.isfinite(one["val_miou"])
        if os.access("/proc/self/clear_refs", os.W_OK):
            assert one["peak_mb"] > 0
    assert rows[0]["miou"] != rows[1]["miou"]
    assert [each["networks"] for each in rows] == [1, 2]
    with pytest.raises(SystemExit, match=r"holds self_training, seed 3, with other settings"):
        comparison.main([*fixed[:-3], "5", "--budgets", "steps", "--out", str(whole)])


def test_a_run_that_fails_or_is_interrupted_loses_no_other(tmp_path, monkeypatch, capsys):
    ends = {"fixmatch": RuntimeError("planted"), "cps": KeyboardInterrupt()}

    def train(method, budget, seed, settings):
        if method in ends:
            raise ends[method]
        return row(method, budget, seed, 40.0)

    monkeypatch.setattr(comparison, "train", train)
    names = ["supervised", "fixmatch", "unimatch", "cps", "dgcl"]
    fixed = ["--seeds", "0", "--steps", "6", "--budgets", "passes", "--workers", "1"]
    fixed += ["--out", str(tmp_path / "methods.csv"), "--methods", *names]
    with pytest.raises(KeyboardInterrupt):
        comparison.main(fixed)
    rows = tables.read_rows(tmp_path / "methods.csv")
    assert [each["method"] for each in rows] == ["supervised", "unimatch"]
    del ends["cps"]
    with pytest.raises(SystemExit, match="1 of 3 runs failed: fixmatch, equal passes, seed 0"):
        comparison.main(fixed)
    assert "fixmatch, equal passes, seed 0: failed with RuntimeError: planted" in (
        capsys.readouterr().err
    )
    ends.clear()
    comparison.main(fixed)
    rows = tables.read_rows(tmp_path / "methods.csv")
    assert [each["method"] for each in rows] == [
        "supervised",
        "unimatch",
        "cps",
        "dgcl",
        "fixmatch",
    ]
    assert capsys.readouterr().err.startswith("4 runs done, 1 to do")


@pytest.mark.parametrize("workers", [1, 2])
def test_outcomes_are_results_or_exceptions(workers):
    found = dict(outcomes(math.sqrt, [(4,), (-1,), (9,), (16,)], workers))
    assert isinstance(found.pop((-1,)), ValueError)
    assert found == {(4,): 2, (9,): 3, (16,): 4}


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--workers", "0"], "--workers must be at least 1, got 0"),
        (["--seeds", "-1"], "--seeds must not be negative, got"),
        (["--methods", "none"], "invalid choice: 'none'"),
        (["--page", "none.md"], "--page must name a file, got none.md"),
    ],
)
def test_wrong_options_are_refused(wrong, text, capsys):
    with pytest.raises(SystemExit):
        comparison.main(wrong)
    assert text in capsys.readouterr().err


# ---- tables -----------------------------------------------------------------------------------------


def test_differences_are_those_of_the_paired_t_test(tmp_path):
    rows = saved(rows_of("supervised", "self_training", "fixmatch")[::-1], tmp_path / "rows.csv")
    for budget in tables.BUDGETS:
        own = tables.of_budget(rows, budget)
        new, old = (
            [r["miou"] for seed in SEEDS for r in own if (r["method"], r["seed"]) == (name, seed)]
            for name in ("fixmatch", "supervised")
        )
        alone = {**own[0], "seed": 9}
        difference = tables.differences([*own, alone], "fixmatch", "supervised")
        expected = stats.ttest_rel(new, old).confidence_interval(0.95)
        assert difference.mean - difference.half == pytest.approx(expected.low)
        assert difference.mean + difference.half == pytest.approx(expected.high)
        line = next(x for x in tables.budget_table(rows, budget).splitlines() if "`fixmatch`" in x)
        assert f"| {np.mean(new):.2f} ± {np.std(new, ddof=1):.2f} |" in line
        assert difference.text(2) in line
    assert tables.differences(rows, "fixmatch", "cps") is None


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_power_is_that_of_simulated_tests(seeds):
    effect = tables.detectable(seeds)
    samples = np.random.default_rng(0).normal(effect, 1, (seeds, 20_000))
    found = (stats.ttest_1samp(samples, 0).pvalue < 0.05).mean()
    assert found == pytest.approx(0.8, abs=0.01)


def test_report_has_every_method_and_a_plot(tmp_path):
    rows = saved(rows_of(*METHODS), tmp_path / "methods.csv")
    text = tables.report(rows, tmp_path / "methods.csv")
    for name in METHODS:
        assert text.count(f"\n| `{name}` |") == 3  # both budgets and the list of methods
    intervals = len(re.findall(r"± \d+\.\d\d \(\d/3", text))
    controls = 4  # two methods are controls, and are compared with each other
    stated = int(re.search(r"have (\d+) such intervals", text)[1])
    assert intervals == stated + controls == 2 * 2 * (len(METHODS) - 1)
    assert (tmp_path / "methods.png").stat().st_size > 10_000


def test_report_of_a_part(tmp_path):
    assert tables.report([], tmp_path / "methods.csv") == "No runs have been recorded yet."
    rows = saved(rows_of("fixmatch", seeds=(4,))[:1], tmp_path / "methods.csv")
    text = tables.report(rows, tmp_path / "methods.csv")
    assert "| `fixmatch` | 6 | 34 |" in text
    assert "Equal passes" not in text
    assert "No method has two seeds in common with a control" in text


def test_page_gets_the_tables_and_keeps_the_rest():
    page = "# Page\n\nWords.\n\n## Results\n\nold\n\n### Deeper\n\nold\n\n## Next\n\nWords.\n"
    assert tables.in_page(page, r"new \1") == (
        "# Page\n\nWords.\n\n## Results\n\nnew \\1\n\n## Next\n\nWords.\n"
    )
    assert tables.in_page("## Results\n\nold\n", "new") == "## Results\n\nnew\n"
    with pytest.raises(ValueError, match="must have one section Results, got 0"):
        tables.in_page("## Result\n", "new")


# ---- the committed page -----------------------------------------------------------------------------


def test_the_page_agrees_with_the_committed_runs(tmp_path):
    """python benchmarks/evidence/methods.py --report --page docs/comparison.md"""
    page, rows = (ROOT / "docs" / "comparison.md").read_text(), RESULTS / "methods.csv"
    text = tables.report(tables.read_rows(rows), tmp_path / "methods.csv")
    assert tables.in_page(page, text) == page
    assert rows.exists() == (RESULTS / "methods.png").exists()
    first = page.split("\n\n")[1]
    assert "handwritten digits at 64 x 64 pixels, not the published" in first


def test_the_committed_runs_are_whole_and_of_these_settings():
    rows = tables.read_rows(RESULTS / "methods.csv")
    cases = {(each["method"], each["budget"], each["seed"]) for each in rows}
    assert len(cases) == len(rows)
    assert cases == {(m, b, s) for m, _, _ in cases for b in tables.BUDGETS for s in SEEDS}
    for each in rows:
        settings = comparison.settings_of(
            each["method"], each["budget"], each["seed"], comparison.STEPS
        )
        assert json.loads(each["settings"]) == json.loads(described(settings))
        assert each["passes"] == passes_of(settings)
        assert each["curve"][-1] == (each["passes"], each["miou"])
        assert not each["commit"].endswith("+")  # the commit has the code of the run
    again = {}  # both budgets give self_training the same settings
    for each in rows:
        first = again.setdefault(each["settings"], each)
        assert (first["miou"], first["curve"]) == (each["miou"], each["curve"])
