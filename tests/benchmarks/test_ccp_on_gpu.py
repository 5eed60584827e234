"""benchmarks/evidence/ccp_on_gpu.py, on the CPU: timed processes, rows, and runs that continue."""

import csv
import json
import math
import threading
from dataclasses import asdict

import pytest
import torch

pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra `evidence`")

from ccp_tiny import ALL, FEW, TINY, draw_folder
from evidence import ccp, ccp_jobs
from evidence import ccp_on_gpu as study
from evidence.ccp_settings import ARMS, FROZEN, TUNED, Case
from evidence.ccp_timing import SPARE, Times, steps_within
from evidence.compare import CONTROL, METHOD, RANDOM, SUPERVISED
from evidence.run import described

STEPS = 5
CHANGING = ("seconds", "date", "others", "commit")


@pytest.fixture(scope="module")
def tiny():
    """A setting that trains in seconds. Worker processes get it with the options."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "REHEARSAL", TINY)
        for name, value in (("FEW", FEW), ("ALL", ALL)):
            patch.setattr(ccp, name, value)
        yield


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A study of two seeds in two processes."""
    folder = tmp_path_factory.mktemp("study")
    draw_folder(folder / "data")
    assert study.main(command(folder)) == 0
    return folder


def command(folder, *more):
    fixed = ["--data", folder / "data", "--out", folder / "out", "--work", folder / "work"]
    fixed += ["--rehearse", "--seeds", 0, 1, "--workers", 2, "--steps", STEPS, "--timing", 0]
    return [str(each) for each in (*fixed, *more)]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def case_of(row):
    return Case(row["variant"], int(row["labelled"]), int(row["seed"]))


def copied(folder, to):
    """Copies the results of a study."""
    for part in ("out", "work"):
        (to / part).mkdir()
    for name in ("runs.csv", "test.csv", "plan.json"):
        (to / "out" / name).write_bytes((folder / "out" / name).read_bytes())
    (to / "data").symlink_to(folder / "data")
    return to


# ---- the whole study ----------------------------------------------------------------------------------


def test_every_run_has_its_rows(finished):
    expected = {Case(arm, FEW, seed) for arm in ARMS for seed in (0, 1)}
    expected |= {Case(SUPERVISED, ALL, seed) for seed in (0, 1)}
    runs, tests = (rows_of(finished / "out" / f"{name}.csv") for name in ("runs", "test"))
    for rows in (runs, tests):
        assert len(rows) == len(expected)
        assert {case_of(row) for row in rows} == expected
    assert tuple(runs[0]) == ccp.COLUMNS
    assert all(0 <= float(row["val_miou"]) <= 100 for row in runs)
    assert all(0 <= float(row["miou"]) <= 100 for row in tests)
    pixels = [int(each) for each in tests[0]["class_pixels"].split()]
    assert pixels == [2 * 40 * 12] * 3 + [0] * (len(ccp.CLASSES) - 3)
    settings = {row["settings"] for row in runs}
    assert all(json.loads(text)["network"] == TINY.network for text in settings)
    assert all(json.loads(text)["steps"] == STEPS for text in settings)


def test_runs_of_a_seed_are_matched(finished):
    rows = [r for r in rows_of(finished / "out" / "runs.csv") if r["labelled"] == str(FEW)]
    for seed in "01":
        ours = {row["variant"]: row for row in rows if row["seed"] == seed}
        assert len({row["start"] for row in ours.values()}) == 1
        assert len({ours[arm]["inputs"] for arm in (CONTROL, METHOD, RANDOM)}) == 1
    assert len({row["start"] for row in rows}) == 2, "seeds must differ"


def test_the_plan_has_the_times_of_all_processes(finished):
    plan = json.loads((finished / "out" / "plan.json").read_text())
    assert plan["steps"] == STEPS
    assert plan["processes"] == 2
    assert plan["setting"] == TINY.described(TINY.base)
    assert all(0 < plan["seconds"][name] < math.inf for name in Times._fields)
    assert plan == json.loads((finished / "work" / "plan.json").read_text())
    assert not list((finished / "work").glob("timing*"))


def test_a_run_that_was_stopped_continues_with_the_same_result(finished, tmp_path, monkeypatch):
    case = Case(METHOD, FEW, 1)
    options = study.parse(command(finished, "--work", tmp_path))
    options.setting = TINY
    monkeypatch.setattr(ccp_jobs, "_images", {})
    kept = ccp.Trainer.train_step

    def stopped(trainer):
        if trainer.step == 4:  # after a checkpoint and one more step, which is lost
            raise KeyboardInterrupt
        return kept(trainer)

    monkeypatch.setattr(ccp.Trainer, "train_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        ccp_jobs.train(case, options)
    done = []
    monkeypatch.setattr(ccp.Trainer, "train_step", lambda t: done.append(t.step) or kept(t))
    found = ccp_jobs.train(case, options)
    assert done == [3, 4]
    for name, row in zip(("runs", "test"), found, strict=True):
        [before] = [r for r in rows_of(finished / "out" / f"{name}.csv") if case_of(r) == case]
        for column in row.keys() - set(CHANGING):
            assert ("" if row[column] is None else str(row[column])) == before[column], column


def test_the_end_of_the_time_keeps_rows_and_a_second_call_trains_the_rest(
    finished, tmp_path, capsys
):
    folder = copied(finished, tmp_path)
    runs = folder / "out" / "runs.csv"
    whole = runs.read_text().splitlines(keepends=True)
    runs.write_text("".join(whole[:-1]))
    assert study.main(command(folder, "--seconds", 1)) == 1
    assert "the time ran out; 1 of 10 runs are missing" in capsys.readouterr().err
    assert runs.read_text() == "".join(whole[:-1])

    assert study.main(command(folder)) == 0
    assert "1 of 10 runs to do" in capsys.readouterr().err
    before, after = rows_of(finished / "out" / "runs.csv"), rows_of(runs)
    for one, two in zip(before, after, strict=True):
        assert one | dict.fromkeys(CHANGING) == two | dict.fromkeys(CHANGING)
    assert len(rows_of(folder / "out" / "test.csv")) == len(after), "no run is tested twice"

    assert study.main(command(folder)) == 0  # nothing is left, so no process starts
    assert "runs to do" not in capsys.readouterr().err


# ---- what is refused ----------------------------------------------------------------------------------


def test_rows_with_other_settings_are_refused(finished, tmp_path):
    folder = copied(finished, tmp_path)
    runs = folder / "out" / "runs.csv"
    runs.write_text(runs.read_text().replace('""temperature"":0.5', '""temperature"":0.4', 1))
    with pytest.raises(SystemExit, match=r"runs\.csv holds '.*' with other settings"):
        study.main(command(folder))


def test_a_plan_of_another_setting_is_refused(finished, tmp_path):
    folder = copied(finished, tmp_path)
    path = folder / "out" / "plan.json"
    path.write_text(path.read_text().replace("[32, 32]", "[48, 32]").replace("[32,32]", "[48,32]"))
    with pytest.raises(SystemExit, match=r"plan\.json has another setting"):
        study.main(command(folder))


def test_plans_that_differ_are_refused(finished, tmp_path):
    folder = copied(finished, tmp_path)
    plan = json.loads((folder / "out" / "plan.json").read_text())
    (folder / "work" / "plan.json").write_text(json.dumps(plan | {"steps": STEPS + 1}))
    with pytest.raises(SystemExit, match="differ; choose another --work"):
        study.main(command(folder))


def test_runs_without_a_plan_are_refused(finished, tmp_path):
    folder = copied(finished, tmp_path)
    (folder / "out" / "plan.json").unlink()
    with pytest.raises(SystemExit, match=r"no plan\.json with their steps"):
        study.main(command(folder))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
def test_a_missing_gpu_is_reported(finished, capsys):
    with pytest.raises(SystemExit):
        study.main(command(finished, "--device", "cuda"))
    assert "--device: " in capsys.readouterr().err


def test_an_error_while_timing_frees_the_other_processes(tiny, monkeypatch):
    barrier = threading.Barrier(2)
    monkeypatch.setattr(ccp_jobs, "_together", barrier)
    monkeypatch.setattr(ccp_jobs, "times_of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ccp_jobs.measure_times(0, None)
    assert barrier.broken


# ---- the plan -----------------------------------------------------------------------------------------


def test_the_slowest_queue_decides_how_many_steps_fit():
    queue, times = study.queue_of(2), Times(warm_up=0.01, step=0.05, ends=4.0)
    assert [case.arm for case in queue] == [CONTROL, METHOD, RANDOM, SUPERVISED]
    long = [*queue, Case(SUPERVISED, ccp.ALL, 2)]
    for most, seconds in ((3000, 400.0), (3000, 90.0)):
        steps = steps_within(seconds, [queue, long], times, TUNED, most)
        # In 3 arms a fifth of the steps are warm-up. In 2 arms all steps are.
        cost = lambda n: 3 * (n // 5 * 0.01 + (n - n // 5) * 0.05) + 2 * n * 0.01 + 5 * 4.0
        assert SPARE * cost(steps) <= seconds < SPARE * cost(steps + 11)
        assert steps % 10 == 0
    assert steps_within(1e6, [queue], times, TUNED, 3000) == 3000
    assert steps_within(10.0, [queue], times, TUNED, 3000) == 0


def test_the_first_two_seeds_also_train_with_all_labels():
    for seed, last in ((0, Case(SUPERVISED, ccp.ALL, 0)), (1, Case(SUPERVISED, ccp.ALL, 1))):
        assert study.queue_of(seed)[-1] == last
        assert len(study.queue_of(seed)) == 5


# ---- the settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [FROZEN, TUNED], ids=lambda setting: setting.name)
def test_arms_differ_in_nothing_but_their_part(setting):
    arms = {arm: asdict(setting.settings(arm, 3, setting.base.steps)) for arm in ARMS}
    method = arms[METHOD]
    assert arms[CONTROL] == method | {"contrast_weight": 0.0}
    changed = method["contrast"] | {"anchors": "random", "keys": "average"}
    assert arms[RANDOM] == method | {"contrast": changed}
    supervised = method | {"warm_up": setting.base.steps, "contrast_weight": 0.0}
    assert arms[SUPERVISED] == supervised
    assert setting.settings(SUPERVISED, 3, 20).warm_up == 20
    assert setting.settings(METHOD, 3, 20).warm_up == 4


def test_rows_of_the_frozen_setting_describe_only_what_they_did_before():
    settings = FROZEN.settings(METHOD, 0, 2000)
    assert FROZEN.described(settings) == described(settings)
    tuned = json.loads(TUNED.described(TUNED.settings(METHOD, 0, 3000)))
    assert (tuned["crop"], tuned["network"]) == ([224, 160], {"size": 2})
    assert (tuned["learning_rate"], tuned["head_factor"], tuned["batch"]) == (2e-4, 10.0, 16)
