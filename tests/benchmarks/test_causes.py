"""benchmarks/evidence/causes.py: each variant changes what its name says, and nothing else."""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]

from evidence import causes, causes_report  # noqa: E402
from evidence.compare import CONTROL, METHOD  # noqa: E402
from semi_supervised.methods import METHODS  # noqa: E402
from semi_supervised.scenes import DigitScenes  # noqa: E402

from dgcl_ops import resize_labels  # noqa: E402

COMMITTED = ROOT / "benchmarks" / "evidence" / "results" / "causes.csv"
STEPS = 6


def trainer_of(name, steps=STEPS, **changes):
    """A trainer on a few scenes, after the warm-up."""
    data = causes.KnownScenes(4, 6, 0, 2)
    settings = replace(causes.VARIANTS[name].settings_of(0, steps), batch=2, **changes)
    trainer = causes.build(data, settings)
    trainer.run(until=settings.warm_up)
    return trainer


def test_no_other_program_sees_the_probe():
    trainer_of(METHOD)
    assert "probe" not in METHODS


def test_known_scenes_draw_the_batches_of_the_demo():
    known, plain = (kind(4, 6, 1, 2) for kind in (causes.KnownScenes, DigitScenes))
    for draw in ("unlabelled", "labelled", "unlabelled"):
        ours, theirs = (getattr(x, draw)(3, np.random.default_rng(2)) for x in (known, plain))
        assert all(map(torch.equal, ours, theirs))
    images, _ = known.unlabelled(3, np.random.default_rng(2))
    assert known.truth.shape == (3, *images.shape[-2:])
    assert len(known.truth.unique()) > 3  # digits and background


@pytest.mark.parametrize("name", [n for n in causes.VARIANTS if not n.startswith(CONTROL)])
def test_with_weight_0_a_variant_is_its_control(name):
    """The control is the one that the table pairs with the variant."""
    rows = [
        {"variant": n, "seed": 0, "steps": s.steps, "labelled": v.labelled, "miou": i}
        | {"settings": causes.described(s)}
        for i, (n, v) in enumerate(causes.VARIANTS.items())
        for s in [v.settings_of(0, 500)]
    ]
    places = {n: i for i, n in enumerate(causes.VARIANTS)}
    [behind] = causes_report.compared(rows, name, "miou").differences
    control = [*places][places[name] - int(behind)]
    assert control.startswith(CONTROL)
    weights = []
    for each in (control, name):
        trainer = trainer_of(each, contrast_weight=0.0)
        trainer.run()
        weights.append([*trainer.student.parameters(), *trainer.teacher.parameters()])
    assert all(map(torch.equal, *weights))


def test_the_contrast_gets_the_labels_that_a_variant_names():
    kept = {}
    for name, labels in (
        (METHOD, "pseudo"),
        ("labelled pixels alone", "labelled"),
        ("right pseudo labels", "right"),
        ("true labels", "true"),
    ):
        trainer = trainer_of(name)
        assert trainer.method.options.labels == labels
        batch, _ = trainer.batches.take(trainer.step)
        kept[labels] = trainer.method.teach(batch).contrast
        truth = resize_labels(trainer.data.truth, kept[labels].shape[-2:])
    pseudo, right, ignore = kept["pseudo"], kept["right"], trainer.data.ignore_index
    assert (kept["labelled"] == ignore).all()
    assert torch.equal(kept["true"], truth)
    used = right != ignore
    assert 0 < used.sum() < (pseudo != ignore).sum()  # some pseudo labels are wrong
    assert torch.equal(right[used], truth[used])
    assert torch.equal(used, pseudo == truth)


def test_drop_share_start_and_bank_are_what_a_variant_names():
    assert trainer_of("drops 80 to 50 %").method.contrast_drop(1.0) == 0.5
    assert trainer_of(METHOD).method.contrast_drop(1.0) == 0.1

    trainer, weights = trainer_of("from half of the training", steps=12), []
    trainer.run(after_step=lambda t: weights.append(t.method.weight))
    warm_up = trainer.settings.warm_up
    half = -(-(12 - warm_up) // 2)
    assert weights == [0.0] * half + [0.5] * (12 - warm_up - half)

    trainer = trainer_of("bank of the teacher's features")
    with torch.no_grad():
        for parameter in trainer.teacher.parameters():
            parameter.mul_(0)  # features of 0
    trainer.train_step()
    bank = trainer.contrast.bank
    stored = bank.features[bank.counts > 0][:, 0]
    assert len(stored) > 0
    assert (stored == 0).all()


def test_a_variant_is_compared_with_the_control_of_its_steps_and_labels():
    def row(variant, seed, miou, steps=500, labelled=40, settings="{}"):
        facts = {"seed": seed, "steps": steps, "labelled": labelled, "settings": settings}
        return {"variant": variant, "miou": miou, "calinski_harabasz": 10 * miou} | facts

    rows = [row(CONTROL, 0, 50.0), row(CONTROL, 1, 52.0), row("x", 1, 53.0), row("x", 0, 50.5)]
    rows += [row(f"{CONTROL}, long", 0, 60.0, steps=1000), row("x, long", 0, 59.0, steps=1000)]
    rows += [row(f"{CONTROL}, few", 0, 40.0, labelled=10), row("x, few", 0, 42.0, labelled=10)]
    strong = {"settings": '{"contrast_view":"strong"}'}
    rows += [row(f"{CONTROL}, strong", 0, 30.0, **strong), row("x, strong", 0, 33.0, **strong)]
    rows += [row("x", 7, 99.0)]  # no control
    names = ("x", "x, long", "x, few", "x, strong", "y")
    found = [causes_report.compared(rows, n, "miou") for n in names]
    assert [each and each.differences for each in found] == [[0.5, 1.0], [-1.0], [2.0], [3.0], None]
    text = causes_report.table(rows)
    assert "| x | 2 | +0.75 ± 3.18 (2/2, null) | +7.5 ± 31.8 (2/2, null) |" in text
    assert CONTROL not in text


def test_runs_are_resumed_and_other_settings_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(causes, "PLAN", replace(causes.PLAN, unlabelled=6, evaluated=2))
    names = [CONTROL, METHOD]
    fixed = ["--variants", *names, "--seeds", "0", "--workers", "1"]
    for out in ("whole.csv", "resumed.csv"):
        if out == "resumed.csv":
            first = "".join((tmp_path / "whole.csv").read_text().splitlines(keepends=True)[:2])
            (tmp_path / out).write_text(first)
        causes.main([*fixed, "--steps", "10", "--out", str(tmp_path / out)])
    assert "1 runs to do" in capsys.readouterr().err
    whole, resumed = (
        list(csv.DictReader((tmp_path / f"{name}.csv").open())) for name in ("whole", "resumed")
    )
    compared = ("variant", "seed", "miou", "calinski_harabasz", "right", "settings")
    assert [[r[n] for n in compared] for r in whole] == [[r[n] for n in compared] for r in resumed]
    with pytest.raises(SystemExit, match="'self-training', seed 0, with other settings"):
        causes.main([*fixed, "--steps", "20", "--out", str(tmp_path / "whole.csv")])


@pytest.mark.skipif(not COMMITTED.exists(), reason="no runs of the experiments are committed yet")
def test_committed_runs_have_the_settings_of_their_variant():
    rows = causes_report.read_rows(COMMITTED)
    assert len({(row["variant"], row["seed"]) for row in rows}) == len(rows) > 0
    for row in rows:
        settings = causes.VARIANTS[row["variant"]].settings_of(row["seed"], 500)
        assert row["settings"] == causes.described(settings)
