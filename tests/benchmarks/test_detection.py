"""benchmarks/evidence/detection.py and detect.py: scores, AUROC, and the runs of both studies."""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_photos import BAG, OUTERWEAR, write_photos

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]

from evidence import detect, detection, run  # noqa: E402
from evidence import detect_tables as tables  # noqa: E402
from evidence.compare import CONTROL, METHOD  # noqa: E402
from evidence.detection import Pixels, auroc, fitted, scored  # noqa: E402
from semi_supervised.evaluate import predict_with_density  # noqa: E402
from semi_supervised.network import SegmentationNetwork  # noqa: E402

from dgcl_ops import DensityContrastLoss, FeatureTap  # noqa: E402
from dgcl_ops.viz import feature_density  # noqa: E402

BACKGROUND, IGNORE = 0, 255


def planted(count=4000, seed=0):
    """Pixels of three classes. Class 0 has no bank. Density and entropy see the errors with independent noise."""
    rng = np.random.default_rng(seed)
    predicted, wrong = rng.integers(3, size=count), rng.random(count) < 0.4
    labels = np.where(wrong, (predicted + 1) % 3, predicted)
    density, entropy = (wrong + rng.normal(size=count) for _ in range(2))
    return Pixels(labels, predicted, predicted > 0, density, entropy, rng.random(count))


# ---- AUROC ---------------------------------------------------------------------------------------------


def test_auroc_is_the_share_of_pairs_in_order_and_ties_count_half():
    positive = np.array([True, True, False, False, False])
    assert auroc(np.array([3.0, 1.0, 2.0, 0.0, 0.0]), positive) == pytest.approx(5 / 6)
    assert auroc(np.array([1.0, 0.0, 1.0, 0.0, 0.0]), positive) == pytest.approx(
        (0.5 + 2 + 0 + 2 * 0.5) / 6
    )
    assert auroc(np.zeros(5), positive) == 0.5
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(6, size=60), rng.random(60) < 0.3
    pairs = scores[positive][:, None] - scores[~positive][None]
    assert auroc(scores, positive) == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)


def test_auroc_needs_both_kinds_of_pixels_and_finite_scores():
    scores = np.arange(4.0)
    assert auroc(scores, np.zeros(4, bool)) is None
    assert auroc(scores, np.ones(4, bool)) is None
    assert auroc(scores[:0], np.zeros(0, bool)) is None
    mixed = np.array([True, False, True, True])
    assert auroc(np.array([0.0, np.nan, 1.0, 2.0]), mixed) is None
    assert auroc(scores, mixed) == pytest.approx(2 / 3)
    assert auroc(scores, mixed, least=2) is None


# ---- combined scores -----------------------------------------------------------------------------------


def test_combined_scores_find_more_errors_than_either_part():
    test, validation = planted(), planted(seed=1)
    known = test.where(test.known)
    found = {n: auroc(v, known.wrong) for n, v in scored(known, fitted(validation)).items()}
    # A shift of one standard deviation gives Phi(1 / sqrt 2) = 0.760. Two such scores give Phi(1) = 0.841.
    # The standard error of each figure is 0.01.
    assert found["density"] == pytest.approx(0.760, abs=0.04)
    assert found["entropy"] == pytest.approx(0.760, abs=0.04)
    assert found["regression"] == pytest.approx(0.841, abs=0.04)
    assert found["ranks"] == pytest.approx(found["regression"], abs=0.02)
    assert found["confidence"] == pytest.approx(0.5, abs=0.05)


def test_the_regression_is_fitted_to_validation_pixels_with_a_bank():
    validation = planted(seed=1)
    changed = validation._replace(density=np.where(validation.known, validation.density, 1e6))
    ours, theirs = (fitted(each)[-1].coef_ for each in (validation, changed))
    np.testing.assert_array_equal(ours, theirs)
    assert fitted(validation.where(~validation.wrong)) is None
    assert fitted(validation._replace(known=np.zeros_like(validation.known))) is None


def test_equal_scores_share_their_rank():
    known = planted(10)._replace(density=np.zeros(10), entropy=np.arange(10.0))
    np.testing.assert_array_equal(detection.summed_ranks(known), 5.5 + np.arange(1, 11))


# ---- columns -------------------------------------------------------------------------------------------


def test_densities_are_compared_only_where_there_is_a_bank():
    test = planted()
    row = detection.error_columns(test, fitted(planted(seed=1)), 4)
    assert tuple(row) == detection.ERRORS
    known = test.where(test.known)
    assert float(row["share_banked"]) == pytest.approx(test.known.mean(), abs=1e-4)
    assert float(row["wrong_banked"]) == pytest.approx(known.wrong.mean(), abs=1e-4)
    for name in ("density", "entropy"):
        expected = auroc(getattr(known, name), known.wrong)
        assert float(row[f"banked_{name}"]) == pytest.approx(expected, abs=1e-4)
    assert float(row["all_entropy"]) == pytest.approx(auroc(test.entropy, test.wrong), abs=1e-4)
    by_class = {name: row[f"class_{name}"].split() for name in detection.SCORES}
    for name, values in by_class.items():
        assert len(values) == 4
        assert (values[0] == "-") == (name not in ("entropy", "confidence"))
        assert values[3] == "-"  # never predicted
    some = test.where(test.predicted == 2)
    assert float(by_class["density"][2]) == pytest.approx(auroc(some.density, some.wrong), abs=1e-4)
    assert row["class_wrong"].split()[2:] == [f"{some.wrong.mean():.4f}", "-"]


def test_a_class_with_few_errors_has_no_figure():
    test = planted(600)  # about 80 wrong pixels per class
    row = detection.error_columns(test, None, 3)
    assert set(row["class_entropy"].split()) == {"-"}
    assert row["all_entropy"] != "-"
    assert row["banked_regression"] == "-"


def test_unknown_pixels_are_compared_with_labelled_foreground():
    labels = np.array([0, 0, 1, 1, 2, 2])  # class 2 is hidden
    predicted, score = np.array([0, 1, 1, 1, 0, 1]), np.array([9.0, 9.0, 1.0, 3.0, 2.0, 4.0])
    test = Pixels(labels, predicted, predicted > 0, score, -score, np.zeros(6))
    row = detection.unknown_columns(test, 2, background=0)
    assert tuple(row) == detection.UNKNOWN
    assert (row["hidden_pixels"], row["hidden_share_banked"]) == (2, "0.5000")
    assert row["hidden_density"] == "0.7500"  # 2 > 1, 4 > 1, 4 > 3
    assert row["hidden_entropy"] == "0.2500"
    assert row["hidden_confidence"] == "0.5000"
    assert row["hidden_banked_density"] == "1.0000"  # 4 > 1, 4 > 3
    whole = detection.unknown_columns(test, 2, background=None)
    assert whole["hidden_density"] == "0.3750"


# ---- scores of a network -------------------------------------------------------------------------------


@pytest.fixture
def student():
    """A network, a loss, and images with labels. The bank lacks class 0 and is not full."""
    torch.manual_seed(0)
    network = SegmentationNetwork(3).eval()
    width = network.classifier.in_channels
    contrast = DensityContrastLoss(3, width, 8, bank_capacity=64, exclude_classes=(0,))
    images, labels = torch.rand(3, 3, 40, 48), torch.randint(3, (3, 40, 48))
    labels[:, :5] = IGNORE
    with torch.no_grad(), FeatureTap(network, "classifier") as tap:
        # Each class must be predicted somewhere.
        network.classifier.bias -= network(images).mean((0, 2, 3))
        features = tap.pop()
    small = torch.randint(1, 3, (3, *features.shape[-2:]))
    for _ in range(4):
        contrast(torch.randn(3, 8, *features.shape[-2:]), small, features)
    assert contrast.bank.ready().tolist() == [False, True, True]
    return network, contrast, images, labels


def test_scores_are_those_of_the_network_at_each_pixel(student):
    network, contrast, images, labels = student
    pixels = detection.sample_pixels(network, contrast, [(images, labels)], IGNORE, 10**6)
    kept = (labels != IGNORE).flatten()
    with torch.no_grad():
        logits = network(images).movedim(1, -1).flatten(0, 2)[kept]
    assert np.array_equal(pixels.labels, labels.flatten()[kept])
    # The two sides round differently. The class may change at the few pixels where two logits are almost equal.
    same = torch.from_numpy(pixels.predicted) == logits.argmax(1)
    assert same.double().mean() > 0.999
    probabilities = logits.double().softmax(1).numpy()
    entropy = -(probabilities * np.log(probabilities)).sum(1)
    np.testing.assert_allclose(pixels.entropy, entropy, rtol=1e-3)  # float32 logits
    np.testing.assert_allclose(pixels.confidence, 1 - probabilities.max(1), rtol=1e-3)
    assert np.array_equal(pixels.known, pixels.predicted > 0)
    assert set(pixels.predicted.tolist()) == {0, 1, 2}

    # The density of the bilinear feature, in the bank of the likeliest class that has a bank.
    likeliest = torch.from_numpy(probabilities)[:, 1:].argmax(1) + 1
    with torch.no_grad(), FeatureTap(network, "classifier") as tap:
        network(images)
        whole = torch.nn.functional.interpolate(tap.pop(), labels.shape[1:], mode="bilinear")
    rows = whole.movedim(1, -1).flatten(0, 2)[kept]
    expected = feature_density(contrast.bank, rows, likeliest)
    np.testing.assert_allclose(pixels.density, -expected.double().numpy(), rtol=1e-4)
    np.testing.assert_array_equal(likeliest[pixels.known], pixels.predicted[pixels.known])

    # The example trainer interpolates densities instead of features. This ranks pixels similarly.
    _, density = predict_with_density(network, contrast, images)
    density = density.flatten()[kept].numpy()
    common = pixels.known & (density > 0)
    assert np.corrcoef(density[common], -pixels.density[common])[0, 1] > 0.5


def test_the_sample_depends_on_labels_and_order_alone(student):
    network, contrast, images, labels = student
    first = detection.sample_pixels(network, contrast, [(images, labels)], IGNORE, 50)
    assert len(first.labels) == 150
    singly = [(images[i : i + 1], labels[i : i + 1]) for i in range(3)]
    torch.manual_seed(5)
    other = SegmentationNetwork(3)
    numbered = labels.clone()
    numbered[labels != IGNORE] = torch.arange(int((labels != IGNORE).sum()))
    numbered[labels == IGNORE] = -1
    chosen = [
        detection.sample_pixels(each, contrast, batches, -1, 50).labels
        for each, batches in (
            (network, [(images, numbered)]),
            (other, [(images[i : i + 1], numbered[i : i + 1]) for i in range(3)]),
        )
    ]
    np.testing.assert_array_equal(*chosen)
    assert len(set(chosen[0].tolist())) == 150
    again = detection.sample_pixels(network, contrast, singly, IGNORE, 50)
    np.testing.assert_array_equal(again.labels, first.labels)


def test_without_a_bank_there_is_no_density(student):
    network, _, images, labels = student
    empty = DensityContrastLoss(3, network.classifier.in_channels, 8, bank_capacity=64)
    pixels = detection.sample_pixels(network, empty, [(images, labels)], IGNORE)
    assert np.isnan(pixels.density).all()
    assert not pixels.known.any()
    row = detection.error_columns(pixels, detection.fitted(pixels), 3)
    assert {row[f"banked_{name}"] for name in detection.SCORES} == {"-"}
    assert row["all_entropy"] != "-"


# ---- the runs ------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(detect, "FEW", 6)
    monkeypatch.setattr(detect.ccp, "FROZEN", replace(detect.ccp.FROZEN, crop=(32, 32)))
    monkeypatch.setattr(run, "CROP", (32, 32))
    monkeypatch.setattr(detect, "SAVED_EVERY", 2)
    return write_photos(tmp_path / "photos")


def arguments_of(study, photos, folder, *further):
    given = "--study", study, "--data", photos, "--out", folder, "--work", folder / "work"
    return [*map(str, given), "--steps", "6", "--workers", "1", "--seeds", "0", *further]


def rows_of(path):
    """Reads rows, without the columns that hold times."""
    with path.open(newline="") as file:
        return [
            {n: v for n, v in row.items() if n not in ("seconds", "date")}
            for row in csv.DictReader(file)
        ]


def test_unknown_class_runs_are_resumed_and_hide_the_class(small, tmp_path, monkeypatch, capsys):
    out, trainers, kept = tmp_path / "out", [], detect.Trainer

    class Watched(kept):
        def train_step(self):
            if self.step == 4 and not self.stopped:
                raise RuntimeError("stopped")
            batch, _ = self.batches.take(self.step)
            self.seen |= set(batch.labels.flatten().tolist())
            return super().train_step()

        def __init__(self, *given):
            super().__init__(*given)
            self.stopped, self.seen = bool(trainers), set()
            trainers.append(self)

    monkeypatch.setattr(detect, "Trainer", Watched)
    arguments = arguments_of("unknown", small, out, "--hidden", str(BAG))
    with pytest.raises(SystemExit, match=r"1 of 2 runs failed: unknown, density contrast, without"):
        detect.main(arguments)
    detect.main(arguments)
    assert "1 runs to do" in capsys.readouterr().err
    assert trainers[-1].step == 6
    assert all(BAG not in each.seen and OUTERWEAR in each.seen for each in trainers)
    rows = rows_of(out / "unknown.csv")
    assert [(r["variant"], r["hidden"]) for r in rows] == [(CONTROL, "11"), (METHOD, "11")]
    shown = sum(int((sample.read()[1] == BAG).sum()) for sample in trainers[0].data.test)
    assert {r["hidden_pixels"] for r in rows} == {str(shown)}  # all of them: fewer than PER_IMAGE
    assert all(0 <= float(r["hidden_entropy"]) <= 1 for r in rows)

    whole = tmp_path / "whole"
    detect.main(arguments_of("unknown", small, whole, "--hidden", str(BAG)))
    resumed = {r["variant"]: r for r in rows}
    assert {r["variant"]: r for r in rows_of(whole / "unknown.csv")} == resumed
    with pytest.raises(SystemExit, match="with other settings"):
        detect.main([*arguments, "--steps", "7"])
    assert "| bag | density contrast | 1 |" in tables.report(out)


def test_error_runs_use_the_weak_view_and_differ_in_the_weight_alone(small, tmp_path):
    detect.main(arguments_of("errors", small, tmp_path / "out"))
    rows = rows_of(tmp_path / "out" / "errors.csv")
    assert {r["variant"] for r in rows} == {CONTROL, METHOD}
    assert all("contrast_view" not in r["settings"] for r in rows)  # weak is the default
    assert all(0 <= float(r["all_entropy"]) <= 1 for r in rows)
    cases = [detect.Case("errors", arm, 2) for arm in (CONTROL, METHOD)]
    control, method = (vars(detect.road_settings(case, 600)) for case in cases)
    assert {n for n in method if method[n] != control[n]} == {"contrast_weight"}
    assert method["contrast_view"] == "weak"
    text = (tmp_path / "out" / "detect.md").read_text()
    assert f"| {METHOD} | 1 |" in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--study", "errors"], "--study and --data are required without --report"),
        (["--study", "errors", "--data", "nowhere"], "--data must hold train/, val/ and test/"),
        (["--study", "unknown", "--data", "PHOTOS", "--hidden", "0"], r"--hidden must lie in"),
        (
            ["--study", "errors", "--data", "PHOTOS", "--hidden", "4"],
            "--hidden needs --study unknown",
        ),
        (["--study", "errors", "--data", "PHOTOS", "--steps", "2"], "--steps must be at least 5"),
    ],
)
def test_wrong_options_are_refused(small, capsys, given, message):
    with pytest.raises(SystemExit):
        detect.parse([str(small) if each == "PHOTOS" else each for each in given])
    assert message in capsys.readouterr().err
