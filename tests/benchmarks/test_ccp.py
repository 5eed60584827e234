"""benchmarks/evidence/ccp.py: runs are matched, resume bit for bit, and need the gates. The test comes last."""

import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_photos import BAG, write_photos

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]

from evidence import ccp, ccp_report, ccp_tables, ccp_test  # noqa: E402
from evidence.compare import CONTROL, METHOD, RANDOM, SUPERVISED  # noqa: E402
from evidence.photos import Photos  # noqa: E402
from semi_supervised.folder import FolderData  # noqa: E402

COMMITTED = ROOT / "benchmarks" / "evidence" / "results" / "ccp" / "runs.csv"
STEPS, LABELLED = 6, 6
TIMES = {"seconds", "date"}


@pytest.fixture(scope="module", autouse=True)
def small_study():
    """Makes the study small enough for the small folder."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (ccp, ccp_report, ccp_tables):
            patch.setattr(module, "FEW", LABELLED)
        patch.setattr(ccp, "FROZEN", replace(ccp.FROZEN, crop=(32, 32), saved_every=2))
        patch.setattr(ccp, "HASHED_EVERY", 2)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


def options_of(photos, folder, **changed):
    folder.mkdir(exist_ok=True)
    given = {"data": photos, "work": folder, "out": folder, "steps": STEPS, "workers": 1}
    return SimpleNamespace(**given | {"seeds": [0]} | changed)


@pytest.fixture(scope="module")
def study(photos, tmp_path_factory):
    """A folder with the runs and checkpoints of all arms with seed 0."""
    folder = tmp_path_factory.mktemp("study")
    ccp.train_all(ccp.study_cases([0]), options_of(photos, folder))
    return folder


def weights_of(path):
    state = torch.load(path, weights_only=True)
    kinds = "student", "teacher", "projection", "contrast"
    return {f"{kind}.{name}": value for kind in kinds for name, value in state[kind].items()}


# ---- matched runs --------------------------------------------------------------------------------------


def test_runs_of_a_seed_share_weights_and_inputs_and_other_seeds_do_not(study, photos, tmp_path):
    rows = ccp_report.read_rows(study / "runs.csv")
    assert {row["variant"] for row in rows} == set(ccp.ARMS)
    assert [(m.seeds, m.differing) for m in ccp_report.matchings(rows)] == [(1, []), (1, [])]
    inputs = {row["variant"]: row["inputs"] for row in rows}
    assert inputs[SUPERVISED] != inputs[CONTROL]  # a supervised run has no unlabelled images
    other = ccp.train(ccp.Case(CONTROL, LABELLED, 1), options_of(photos, tmp_path))
    assert other["start"] not in {row["start"] for row in rows}
    assert other["inputs"] not in inputs.values()
    final = [weights_of(study / f"{arm}, {LABELLED} labels, seed 0.pt") for arm in ccp.ARMS]
    classifiers = {tuple(each["student.classifier.weight"].flatten().tolist()) for each in final}
    assert len(classifiers) == len(ccp.ARMS)  # the arms do differ


def test_a_run_with_other_inputs_or_weights_is_found(study, photos, tmp_path, monkeypatch):
    rows = ccp_report.read_rows(study / "runs.csv")
    rows = [row for row in rows if row["variant"] != METHOD]
    monkeypatch.setattr(ccp, "FROZEN", replace(ccp.FROZEN, base=replace(ccp.BASE, jitter=0.1)))
    kept = ccp.PretrainedNetwork

    def other_network(*arguments, **options):
        torch.rand(1)
        return kept(*arguments, **options)

    monkeypatch.setattr(ccp, "PretrainedNetwork", other_network)
    changed = ccp.train(ccp.Case(METHOD, LABELLED, 0), options_of(photos, tmp_path))
    found = ccp_report.matchings([*rows, changed])
    assert [m.differing for m in found] == [[0], [0]]
    assert "NOT in [0]" in found[0].text()


def test_arms_differ_in_the_contrast_alone():
    def settings_of(arm):
        return ccp.settings_of(ccp.Case(arm, LABELLED, 3), 2000, ccp.FROZEN)

    control = settings_of(CONTROL)
    for arm in ccp.ARMS:
        settings = settings_of(arm)
        same = {n for n in vars(settings) if getattr(settings, n) == getattr(control, n)}
        allowed = {"contrast_weight", "contrast"} if arm != SUPERVISED else {"warm_up"}
        assert set(vars(settings)) - same <= allowed, arm
    assert settings_of(RANDOM).contrast == settings_of(METHOD).contrast | {
        "anchors": "random",
        "keys": "average",
    }


def test_committed_runs_are_matched():
    rows = ccp_report.read_rows(COMMITTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ccp_report, "FEW", 44)
        found = ccp_report.matchings(rows)
    assert found[0].seeds > 0
    assert [m.differing for m in found] == [[], []]


# ---- resumed runs --------------------------------------------------------------------------------------


def test_a_stopped_run_continues_bit_for_bit(study, photos, tmp_path, monkeypatch):
    case, step = ccp.Case(METHOD, LABELLED, 0), ccp.Trainer.train_step

    def stopping(trainer):
        if trainer.step == 5:
            raise KeyboardInterrupt
        return step(trainer)

    options = options_of(photos, tmp_path)
    monkeypatch.setattr(ccp.Trainer, "train_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        ccp.train(case, options)
    steps = []
    monkeypatch.setattr(
        ccp.Trainer, "train_step", lambda trainer: steps.append(trainer.step) or step(trainer)
    )
    resumed = ccp.train(case, options)
    assert steps == [4, 5]  # the checkpoint is of step 4
    [whole] = [r for r in csv.DictReader((study / "runs.csv").open()) if r["variant"] == METHOD]
    assert {n: str(v) for n, v in resumed.items() if n not in TIMES} == {
        n: v for n, v in whole.items() if n not in TIMES
    }
    ours, theirs = (weights_of(folder / f"{case.name}.pt") for folder in (tmp_path, study))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_rows_with_other_settings_are_refused(study, photos, tmp_path):
    (tmp_path / "runs.csv").write_text((study / "runs.csv").read_text())
    with pytest.raises(SystemExit, match=r"holds '.*' with other settings"):
        ccp.train_all(ccp.study_cases([0]), options_of(photos, tmp_path, steps=STEPS + 1))
    before = (study / "runs.csv").read_text()
    ccp.train_all(ccp.study_cases([0]), options_of(photos, study))  # nothing is left to do
    assert (study / "runs.csv").read_text() == before


# ---- gates ---------------------------------------------------------------------------------------------


def row(arm, labelled, seed, score, **further):
    facts = {"val_miou": score, "seconds": 1.0}
    return {"variant": arm, "labelled": labelled, "seed": seed, **facts, **further}


def gate_rows(all_labels, self_training):
    return [
        row(arm, labelled, seed, score + 10 * seed)
        for seed in (0, 1)
        for arm, labelled, score in (
            (SUPERVISED, LABELLED, 30.0),
            (SUPERVISED, ccp.ALL, 30.0 + all_labels + seed),
            (CONTROL, LABELLED, 30.0 + self_training - seed),
        )
    ]


def test_gates_are_mean_gains_over_two_seeds():
    rows = gate_rows(8.0, 3.5)
    found = ccp_report.gates([*rows, row(SUPERVISED, ccp.ALL, 2, 0.0), row(CONTROL, 6, 2, 0.0)])
    assert [gate.gain for gate in found] == [pytest.approx(8.5), pytest.approx(3.0)]
    assert [gate.least for gate in found] == [8.0, 3.0]
    assert all(gate.holds for gate in found)
    assert not any(gate.holds for gate in ccp_report.gates(gate_rows(7.4, 3.4)))
    assert [gate.gain for gate in ccp_report.gates(rows[1:])] == [None, None]
    assert not ccp_report.Gate("missing", None, 0.0).holds


@pytest.mark.parametrize(
    ("gains", "flags", "trained"),
    [
        ((9.0, 4.0), [], 20),  # 6 runs of the gates and 20 of the study; 4 are in both
        ((9.0, 2.0), [], 6),
        ((7.0, 4.0), [], 6),
        ((9.0, 2.0), ["--past-gates"], 20),
        ((9.0, 4.0), ["--gates"], 6),
    ],
)
def test_a_gate_that_does_not_hold_stops_the_study(
    photos, tmp_path, monkeypatch, gains, flags, trained
):
    scores = {(r["variant"], r["labelled"], r["seed"]): r["val_miou"] for r in gate_rows(*gains)}

    def train(case, options):
        score = scores.get((case.arm, case.labelled, case.seed), 0.0)
        settings = ccp.FROZEN.described(ccp.settings_of(case, options.steps, ccp.FROZEN))
        return row(case.arm, case.labelled, case.seed, score, settings=settings)

    monkeypatch.setattr(ccp, "train", train)
    fixed = ["--data", photos, "--out", tmp_path, "--work", tmp_path / "work", "--workers", 1]
    arguments = [*map(str, fixed), *flags]
    if trained == 6 and not flags:
        with pytest.raises(SystemExit, match="a gate does not hold"):
            ccp.main(arguments)
    else:
        ccp.main(arguments)
    rows = ccp_report.read_rows(tmp_path / "runs.csv")
    assert len({(r["variant"], r["labelled"], r["seed"]) for r in rows}) == len(rows) == trained


# ---- images in memory ----------------------------------------------------------------------------------


def test_photos_draw_the_batches_of_a_folder(photos):
    given = {"labelled": str(LABELLED), "crop": (32, 24), "seed": 1, "num_classes": 14}
    given |= {"scale": (0.5, 2.0), "pad": True, "unlabelled": photos / "unlabelled"}
    kinds = [kind(photos, **given) for kind in (FolderData, Photos)]
    generators = [np.random.default_rng(5) for _ in kinds]
    for _ in range(3):
        for draw in ("labelled", "unlabelled"):
            drawn = [
                getattr(kind, draw)(4, rng) for kind, rng in zip(kinds, generators, strict=True)
            ]
            for ours, theirs in zip(*drawn, strict=True):
                assert torch.equal(ours, theirs)
    assert generators[0].random() == generators[1].random()


def test_a_hidden_class_never_enters_the_training_labels(photos):
    case = ccp.Case(METHOD, LABELLED, 0)
    plain, without = (ccp.load(case, photos, ccp.FROZEN, hidden=hidden) for hidden in (None, BAG))
    seen = 0
    for step in range(10):
        pairs = [each.labelled(4, np.random.default_rng(step)) for each in (plain, without)]
        (images, labels), (same_images, hidden) = pairs
        assert torch.equal(images, same_images)
        assert torch.equal(hidden, labels.where(labels != BAG, plain.ignore_index))
        seen += int((labels == BAG).sum())
    assert seen > 0
    assert plain.pixels[BAG] > 0 == without.pixels[BAG]
    assert any((sample.read()[1] == BAG).any() for sample in without.test)  # evaluation sees it
    assert without.description()["hidden"] == BAG


# ---- the test images -----------------------------------------------------------------------------------


def test_the_test_waits_for_the_last_run(study, photos, tmp_path, monkeypatch):
    lines = (study / "runs.csv").read_text().splitlines(keepends=True)
    (tmp_path / "runs.csv").write_text("".join(lines[:-1]))
    read = []
    monkeypatch.setattr(ccp_test, "measure", lambda case, options: read.append(case))
    options = options_of(photos, tmp_path, work=study, split="test")
    with pytest.raises(SystemExit, match=r"1 of 4 runs are missing from .*: supervised, 6 labels"):
        ccp_test.measure_all(options)
    (tmp_path / "runs.csv").write_text("".join(lines))
    options.work = tmp_path  # no checkpoints
    with pytest.raises(SystemExit, match="4 of 4 runs are missing"):
        ccp_test.measure_all(options)
    assert not read
    assert not (tmp_path / "test.csv").exists()


def test_each_run_is_measured_once_and_as_in_the_training(study, photos, tmp_path, monkeypatch):
    (tmp_path / "runs.csv").write_text((study / "runs.csv").read_text())
    options = options_of(photos, tmp_path, work=study, split="val")
    ccp_test.measure_all(options)
    rows, trained = (ccp_report.read_rows(tmp_path / f"{n}.csv") for n in ("val", "runs"))
    scores = {row["variant"]: row["val_miou"] for row in trained}
    assert {row["variant"]: row["miou"] for row in rows} == scores
    assert not (tmp_path / "test.csv").exists()

    options.split = "test"
    ccp_test.measure_all(options)
    whole = (tmp_path / "test.csv").read_text()
    (tmp_path / "test.csv").write_text("".join(whole.splitlines(keepends=True)[:2]))
    kept, measured = ccp_test.measure, []
    monkeypatch.setattr(
        ccp_test, "measure", lambda case, options: measured.append(case) or kept(case, options)
    )
    ccp_test.measure_all(options)
    assert len(measured) == 3
    again, first = (
        [{n: v for n, v in r.items() if n not in TIMES} for r in csv.DictReader(text.splitlines())]
        for text in ((tmp_path / "test.csv").read_text(), whole)
    )
    assert again == first
    pixels = sum(
        int((s.read()[1] == 0).sum()) for s in ccp.load(measured[0], photos, ccp.FROZEN).test
    )
    assert first[0]["class_pixels"].split()[0] == str(pixels)
    by_arm = {r["variant"]: r for r in first}
    assert by_arm[SUPERVISED]["banked_density"] == "-"  # its bank is empty
    assert by_arm[SUPERVISED]["all_entropy"] != "-"

    text = ccp_tables.report(tmp_path)
    assert text == (tmp_path / "ccp.md").read_text()
    assert (tmp_path / "ccp.png").stat().st_size > 10_000
    with pytest.raises(SystemExit, match="with other settings"):
        ccp_test.measure_all(options_of(photos, tmp_path, work=study, split="val", steps=7))


def test_an_unfinished_checkpoint_is_not_measured(study, photos, tmp_path):
    case = ccp.Case(METHOD, LABELLED, 0)
    state = torch.load(study / f"{case.name}.pt", weights_only=True)
    torch.save(state | {"step": 4}, tmp_path / f"{case.name}.pt")
    with pytest.raises(ValueError, match=r"must be from step 6, got step 4"):
        ccp_test.measure(case, options_of(photos, tmp_path, split="val"))


# ---- statistics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 5, 8])
def test_the_smallest_difference_shown_has_80_percent_power(count):
    differences = [0.3 * (-1) ** i + 0.1 * i for i in range(count)]
    shift, spread = ccp_tables.smallest_shown(differences), np.std(differences, ddof=1)
    drawn = np.random.default_rng(0).normal(shift, spread, (100_000, count))
    t = drawn.mean(1) / (drawn.std(1, ddof=1) / math.sqrt(count))
    limit = {3: 4.3027, 5: 2.7764, 8: 2.3646}[count]  # of a table of Student's t, 95 %
    # The standard error of the share is 0.0013.
    assert (abs(t) > limit).mean() == pytest.approx(0.8, abs=0.006)
    assert ccp_tables.smallest_shown([1.0]) == math.inf


def test_rare_classes_are_those_with_few_labelled_pixels():
    assert ccp_tables.rare_classes([9000, 951, 45, 4, 0]) == {2, 3}
    pixels, iou = "9000 951 49", "90 50 4"
    one = dict.fromkeys(("miou", "silhouette", "calinski_harabasz", "davies_bouldin"), "0")
    one |= dict.fromkeys(ccp_tables.banked_columns(), "-")
    one |= {f"class_{name}": "- - -" for name in ccp_tables.SCORES}
    [found] = ccp_tables.tested([one | {"class_pixels": pixels, "class_iou": iou}])
    assert (found["rare"], found["frequent"]) == (4.0, 70.0)
    assert found["banked_density"] is None


def test_settings_in_a_row_are_those_of_the_run(study):
    for row in ccp_report.read_rows(study / "runs.csv"):
        settings = json.loads(row["settings"])
        assert settings["steps"] == STEPS
        assert settings["contrast"]["exclude_classes"] == [0]


def test_the_committed_report_is_of_the_committed_runs(tmp_path, monkeypatch):
    for module in (ccp, ccp_report, ccp_tables):
        monkeypatch.setattr(module, "FEW", 44)
    for name in ("runs.csv", "test.csv"):
        (tmp_path / name).write_text((COMMITTED.parent / name).read_text())
    assert ccp_tables.report(tmp_path) == (COMMITTED.parent / "ccp.md").read_text()
