"""benchmarks/evidence/ccp_attempts.py: the committed runs have the settings of their attempt, and no contrast."""

import csv
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]

from evidence import ccp_attempts as attempts  # noqa: E402
from evidence.compare import SUPERVISED  # noqa: E402
from evidence.run import described  # noqa: E402
from small_photos import write_photos  # noqa: E402

COMMITTED = ROOT / "benchmarks" / "evidence" / "results" / "ccp" / "attempts.csv"
SMALL = attempts.replace(attempts.ccp.FROZEN, crop=(32, 32))


def test_committed_runs_are_of_these_settings():
    rows = list(csv.DictReader(COMMITTED.open()))
    assert {row["variant"] for row in rows} == set(attempts.ATTEMPTS)
    for row in rows:
        attempt = attempts.ATTEMPTS[row["variant"]]
        assert row["settings"] == described(attempt.settings_of(int(row["seed"])))
        assert (int(row["labelled"]), int(row["steps"])) == (attempt.labelled, attempt.steps)


def test_no_attempt_has_a_contrast():
    for name, attempt in attempts.ATTEMPTS.items():
        settings = attempt.settings_of(3)
        assert settings.contrast_weight == 0
        assert (settings.warm_up == settings.steps) == name.startswith(SUPERVISED)
        assert json.loads(described(settings))["seed"] == 3


def test_an_attempt_is_trained_once(tmp_path, monkeypatch, capsys):
    small = attempts.Attempt({"method": {"name": "fixmatch"}}, labelled=6, steps=5)
    monkeypatch.setattr(attempts, "ATTEMPTS", {"FixMatch": small})
    kept = attempts.ccp.load
    monkeypatch.setattr(
        attempts.ccp, "load", lambda case, folder, setting: kept(case, folder, SMALL)
    )
    given = ["--data", str(write_photos(tmp_path)), "--workers", "1", "--out"]
    given.append(str(tmp_path / "attempts.csv"))
    for _ in range(2):
        attempts.main(given)
    assert capsys.readouterr().err.count("FixMatch, seed 0: validation mIoU") == 1
    [row] = csv.DictReader((tmp_path / "attempts.csv").open())
    assert 0 <= float(row["val_miou"]) <= 100
