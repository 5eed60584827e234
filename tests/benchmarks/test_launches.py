"""The count of a step's CUDA launches has an upper bound, and sees an operation that is added."""

import json

import pytest
import torch
from benchmark_runs import importable, run

from dgcl_ops._step.report import Record

MOST = {"paper": 128, "default": 141}


@pytest.fixture
def launches(monkeypatch):
    with importable(monkeypatch):
        import launches

        yield launches


def total(launches, setting: str) -> int:
    return sum(launch.launches for launch in launches.count(setting))


@pytest.mark.parametrize("setting", MOST)
def test_a_step_launches_no_more_than_it_did(launches, setting):
    assert total(launches, setting) <= MOST[setting]


def test_an_added_operation_is_counted(launches, monkeypatch):
    before, update = total(launches, "paper"), Record.update

    def slower(record, class_loss, summary):
        update(record, class_loss + 1, summary)

    monkeypatch.setattr(Record, "update", slower)
    assert total(launches, "paper") == before + 1


def test_sorts_by_hand(launches):
    # 8 digits of 8 bits: a fill of indices; two clears, a histogram and its sum; a clear and a kernel for each digit.
    assert launches.sort_launches(torch.zeros(133_128, dtype=torch.int64)) == 1 + 4 + 8 * 2
    assert launches.sort_launches(torch.zeros(133_128)) == 1 + 4 + 4 * 2
    # 2 digits of 5 bits, with an upsweep, a scan and a downsweep each
    assert launches.sort_launches(torch.zeros(133_128, dtype=torch.uint8)) == 1 + 2 * 3
    # All rows together by value, then by row number: 21 rows are one digit.
    assert launches.sort_launches(torch.zeros(21, 10_000)) == 2 + (4 + 4 * 2) + (4 + 2)
    assert launches.sort_launches(torch.zeros(21, 100)) == 4


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: x + 1, 1),
        (lambda x: x.view(-1)[1:], 0),
        (lambda x: torch.where(x > 0, x, 0), 3),  # >, the scalar, where
        (lambda x: torch.nn.functional.pad(x, (1, 0)), 2),
        (lambda x: x.cumsum(0), 2),
        (lambda x: torch.empty_like(x), 0),
        (lambda x: x.sum(), 1),
        (lambda x: x.expand(10_000, 4).sum(), 2),
    ],
)
def test_operations_by_hand(launches, call, expected):
    x = torch.randn(4)
    with launches.Launches() as mode:
        call(x)
    assert sum(launch.launches for launch in mode.seen) == expected


def test_the_program_prints_the_sum():
    outcome = run("launches.py", "--json")
    assert outcome.returncode == 0, outcome.stderr
    printed = json.loads(outcome.stdout)
    assert printed["setting"] == "paper"
    assert printed["launches"] == sum(printed["parts"].values()) <= MOST["paper"]
    assert "counted from sources, not measured" in run("launches.py").stdout
