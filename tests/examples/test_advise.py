"""The verdicts of advise.py on planted runs, and folders that it refuses."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest

for package in ("matplotlib", "scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)
from scipy import stats  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import advise  # noqa: E402
from semi_supervised import findings  # noqa: E402
from semi_supervised.findings import Paired  # noqa: E402

# ---- planted runs ---------------------------------------------------------------------------------

NAMES = {"S": "supervised", "C": "self_training", "D": "dgcl"}


def metrics_of(arm: str, seed: int, miou: float) -> dict:
    """Returns what a run of two classes writes. 80 % of the sparse pseudo labels and 90 % of all are right."""
    settings = {"seed": seed, "steps": 100, "warm_up": 30, "batch": 2, "contrast_weight": 0.5}
    settings |= {"method": {"name": NAMES[arm]}, "contrast": {"bank_capacity": 50}}
    figures = {
        "validation_miou": miou,
        "validation_images": 7,
        "validated_on_test": False,
        "network": "Net with 5 parameters",
        "labelled": 4,
        "labelled_images": [4, 3],
        "labelled_pixels": [800, 60],
        "pseudo_labels": None,
        "bank": None,
    }
    if arm != "S":
        counts = ("pixels", 100), ("right", 90), ("sparse_pixels", 20), ("sparse_right", 16)
        figures["pseudo_labels"] = {name: [number] * 2 for name, number in counts}
        figures["bank"] = {"capacity": 50, "rows_per_push": 10, "pushes": 70, "rows": [50, 50]}
        figures["bank"] |= {"ready": [True, True], "included": [True, True], "all_full": False}
    data = {"labelled": [f"{seed}.png"], "crop": [24, 32], "num_classes": 2}
    return {"seed": seed, "settings": settings, "data": data, "advice": figures}


def changed(metrics: dict, key: str, value) -> dict:
    """Returns a copy of nested dicts in which the entry "a.b" differs."""
    metrics = copy.deepcopy(metrics)
    *outer, last = key.split(".")
    inner = metrics
    for name in outer:
        inner = inner[name]
    inner[last] = value
    return metrics


def plant(root: Path, scores: dict[str, list[float]], key: str = "", value=None, only: str = "SCD"):
    """Writes the runs of each arm, one per seed. `key` differs in the arms `only`."""
    for arm, values in scores.items():
        for seed, miou in enumerate(values):
            metrics = metrics_of(arm, seed, miou)
            if key and arm in only:
                metrics = changed(metrics, key, value)
            folder = root / f"{NAMES[arm]}-seed-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "metrics.json").write_text(json.dumps(metrics))
    return root


def said(root: Path, capsys) -> str:
    advise.main([str(root)])
    return capsys.readouterr().out


def error_of(root: Path, capsys) -> str:
    with pytest.raises(SystemExit) as stopped:
        advise.main([str(root)])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


GOOD = {"S": [50.0, 51.0, 49.0], "C": [54.0, 55.2, 53.1]}  # self-training gains 4.1 points


@pytest.mark.parametrize(
    ("scores", "change", "expected"),
    [
        (GOOD, ("",), "Only a trial can say."),
        (GOOD, ("advice.bank.ready", [False, False]), "The loss cannot act."),
        (GOOD | {"D": [55.0, 56.3, 54.0]}, ("",), "weight 0.5: use it."),
        (GOOD | {"D": [53.0, 54.0, 52.2]}, ("",), "weight 0.5: leave it out."),
        (GOOD | {"D": [55.0, 54.2, 53.0]}, ("",), "weight 0.5: no difference shown."),
        (GOOD | {"D": [57.0]}, ("",), "weight 0.5: unknown. One seed cannot show an effect."),
    ],
)
def test_each_verdict(scores, change, expected, tmp_path, capsys):
    plant(tmp_path, scores, *change, only="CD")
    assert expected in said(tmp_path, capsys).splitlines()[-1]


def test_a_full_bank_is_needed_only_if_the_loss_waits_for_it(tmp_path, capsys):
    plant(tmp_path, GOOD, "advice.bank.rows", [50, 49], only="C")
    text = said(tmp_path, capsys)
    assert "classes whose bank is not full" in text
    assert "Only a trial can say." in text
    for path in tmp_path.glob("self_training*/metrics.json"):
        waiting = changed(json.loads(path.read_text()), "advice.bank.all_full", True)
        path.write_text(json.dumps(waiting))
    assert "The loss cannot act." in said(tmp_path, capsys)


def test_the_table_has_the_figures(tmp_path, capsys):
    plant(tmp_path, GOOD | {"D": [55.0, 54.2, 53.0]}, "advice.labelled_images", [4, 1])
    (tmp_path / "unfinished-seed-0").mkdir()
    text = said(tmp_path, capsys)
    gain = np.array(GOOD["C"]) - np.array(GOOD["S"])
    half = stats.sem(gain) * stats.t.ppf(0.975, 2)
    for line in (
        "9 runs, 2 classes, 7 validation images",
        "Not used: unfinished-seed-0.",
        f"self-training minus supervised, mIoU {gain.mean():+.2f} ± {half:.2f} (3 seeds)",
        "right pseudo labels, of all kept ones 90.0 %",
        "in the sparsest fifth of each class 80.0 %",
        "classes in fewer than 2 of them 1 (1)",
        "labelled pixels of the rarest class 60 (class 1)",
        "steps 100, of which 30 are supervised only",
        "rows that a class's bank received at most 700, 14.0 times its capacity of 50",
        "classes whose bank is not full none",
    ):
        assert line in " ".join(text.split())


def test_the_precision_is_the_mean_over_classes_with_a_density(tmp_path):
    run = metrics_of("C", 0, 50.0)
    labels = {"pixels": [900, 100], "right": [900, 20], "sparse_pixels": [0, 20]}
    run["advice"]["pseudo_labels"] = labels | {"sparse_right": [0, 1]}
    assert findings.precision(run["advice"]["pseudo_labels"]) == (92.0, 20.0, 5.0)


@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
def test_the_detectable_effect_has_a_power_of_80_percent(seeds):
    pair = Paired(np.random.default_rng(0).normal(size=seeds).tolist())
    deviation = np.std(pair.differences, ddof=1)
    effect = pair.detectable() * np.sqrt(seeds) / deviation
    drawn = np.random.default_rng(1).normal(effect / np.sqrt(seeds), 1, (seeds, 100_000))
    power = (stats.ttest_1samp(drawn, 0).pvalue < 0.05).mean()
    assert power == pytest.approx(0.8, abs=0.006)  # the standard error is 0.0013
    assert pair.detectable(seeds + 1) < pair.detectable()
    needed = pair.seeds_for(deviation)
    assert pair.detectable(needed) <= deviation < pair.detectable(needed - 1)


# ---- folders that cannot be judged ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (
            {},
            "RUNS must hold finished runs of supervised, self_training or dgcl, got no subfolders",
        ),
        ({"S": [50.0]}, "RUNS must hold runs with method.name=self_training, got only supervised"),
        ({"C": [50.0]}, "RUNS must hold runs with method.name=supervised, got only self-training"),
    ],
)
def test_missing_arms(scores, expected, tmp_path, capsys):
    plant(tmp_path, scores)
    assert f"advise.py: error: advise: {expected}" in error_of(tmp_path, capsys)


def test_no_folder(tmp_path, capsys):
    (tmp_path / "file").touch()
    for name in ("file", "none"):
        assert "RUNS must be a folder, got" in error_of(tmp_path / name, capsys)


def test_seeds_that_do_not_meet(tmp_path, capsys):
    plant(tmp_path, {"S": [50.0, 51.0], "C": [54.0]})
    (tmp_path / "supervised-seed-0" / "metrics.json").unlink()
    expected = "self-training and supervised must share a seed, got seeds [0] and [1]"
    assert expected in error_of(tmp_path, capsys)


def test_two_runs_of_one_arm_and_seed(tmp_path, capsys):
    plant(tmp_path, GOOD)
    twin = metrics_of("D", 1, 54.0)
    (tmp_path / "weight-0-seed-1").mkdir()
    path = tmp_path / "weight-0-seed-1" / "metrics.json"
    path.write_text(json.dumps(changed(twin, "settings.contrast_weight", 0.0)))
    expected = "one run of self-training with seed 1, got self_training-seed-1 and weight-0-seed-1"
    assert expected in error_of(tmp_path, capsys)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("data.num_classes", 3, "the runs must have the same data.num_classes, got 3 in"),
        ("data.labelled", ["x.png"], "the same labelled images with seed 0, got ['x.png'] in"),
        (
            "advice.labelled_pixels",
            [800, 61],
            "the same labelled pixels with seed 0, got [800, 61]",
        ),
        ("advice.validation_images", 8, "the same validation_images, got 8 in"),
        ("advice.network", "Other", "the same network, got 'Other' in"),
        ("settings.steps", 99, "the same steps, got 99 in"),
        ("settings.contrast", {}, "the same contrast, got {} in"),
    ],
)
def test_mixed_runs(key, value, expected, tmp_path, capsys):
    plant(tmp_path, GOOD | {"D": [55.0, 54.2, 53.0]}, key, value, only="D")
    assert expected in error_of(tmp_path, capsys)


def test_supervised_runs_need_no_bank_settings(tmp_path, capsys):
    plant(tmp_path, GOOD, "settings.contrast", {}, only="S")
    assert "Only a trial can say." in said(tmp_path, capsys)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("advice", None, "advice.validation_miou of"),
        ("seed", "0", "seed of"),
        ("seed", True, "seed of"),
        ("settings", [], "settings.method.name of"),
        ("advice.validation_miou", None, "must be of type int or float, got None"),
        ("advice.validation_miou", float("nan"), "must be finite, got NaN or inf"),
        ("advice.pseudo_labels", None, "advice.pseudo_labels.pixels of"),
        (
            "advice.pseudo_labels.right",
            [1],
            "must hold a whole number for each of 2 classes, got [1]",
        ),
        ("advice.bank.rows", [1, "2"], "must hold a whole number for each of 2 classes"),
        ("advice.labelled_pixels", [], "must hold a whole number for each of 0 classes, got []"),
    ],
)
def test_damaged_files(key, value, expected, tmp_path, capsys):
    plant(tmp_path, GOOD, key, value, only="C")
    assert expected in error_of(tmp_path, capsys)


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", "\x00"])
def test_files_that_are_not_metrics(content, tmp_path, capsys):
    plant(tmp_path, GOOD)
    path = tmp_path / "self_training-seed-0" / "metrics.json"
    path.write_text(content)
    assert str(path) in error_of(tmp_path, capsys)


def test_runs_of_an_earlier_version(tmp_path, capsys):
    plant(tmp_path, GOOD)
    path = tmp_path / "supervised-seed-2" / "metrics.json"
    metrics = json.loads(path.read_text())
    del metrics["advice"]
    path.write_text(json.dumps(metrics))
    assert "run the same command with --resume auto" in error_of(tmp_path, capsys)
