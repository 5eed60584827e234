"""What .ci/run leaves to other commits, these run."""

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TESTS, files_left, leaves_schedule
from kernels.emulator import build

RUN = TESTS.parent / ".ci" / "run"
if not RUN.exists():
    pytest.skip("needs .ci/, which is missing here", allow_module_level=True)


def config(part: int, parts: int) -> SimpleNamespace:
    return SimpleNamespace(getoption=lambda *_, **__: (part, parts))


def left(part: int, parts: int) -> set[Path]:
    return files_left(config(part, parts))


def test_every_file_outside_of_kernels_is_in_one_part():
    assert left(0, 1) == set()
    every = {file for file in TESTS.rglob("test_*.py") if file.parent != TESTS / "kernels"}
    run = [every - left(part, 3) for part in range(3)]
    assert set.union(*run) == every
    assert sum(map(len, run)) == len(every)


def test_every_schedule_is_in_one_part_and_random_in_all():
    def run(schedule: str | None, part: int, parts: int) -> bool:
        callspec = schedule and SimpleNamespace(params={"schedule": schedule})
        return not leaves_schedule(config(part, parts), SimpleNamespace(callspec=callspec))

    assert build.SCHEDULES == ("sequential", "reverse", "random")
    assert [run(each, 0, 3) for each in build.SCHEDULES] == [True, False, True]
    assert [run(each, 1, 3) for each in build.SCHEDULES] == [False, True, True]
    assert [run(each, 2, 3) for each in build.SCHEDULES] == [False, False, True]
    assert all(run(each, 0, 1) for each in build.SCHEDULES)
    assert run(None, 0, 3)


def turns(text: str) -> list[tuple[int, int, str]]:
    """The calls of part(): number, parts, what it says."""
    return [(int(n), int(of), what) for n, of, what in re.findall(r'part (\d) (\d) "(.+?)"', text)]


def decided(turn: int, option: str = "") -> tuple[dict[str, bool], str]:
    """What the script's own part() decides in a turn, and the option for thirds."""
    text = RUN.read_text()
    functions = text[text.index("part() {") : text.index("exec 3>&1")]
    calls = turns(text)
    asked = "".join(
        f'part {n} {of} "{what}" >/dev/null && echo yes || echo no\n' for n, of, what in calls
    )
    code = f"set -euo pipefail; turn={turn} all={option}\n{functions}\n{asked}echo ${{third[*]-}}"
    *answers, third = subprocess.run(
        ["bash", "-c", code], capture_output=True, text=True, check=True
    ).stdout.split("\n")[:-1]
    return {what: answer == "yes" for (*_, what), answer in zip(calls, answers, strict=True)}, third


def test_six_commits_run_everything_and_all_does_at_once():
    calls = turns(RUN.read_text())
    assert len(calls) >= 10
    assert len({what for *_, what in calls}) == len(calls)
    seen = {what: 0 for *_, what in calls}
    thirds = set()
    for turn in range(600, 606):
        chosen, third = decided(turn)
        thirds.add(third)
        for what, now in chosen.items():
            seen[what] += now
    assert thirds == {f"--part {n} 3" for n in range(3)}
    assert seen == {what: 6 // of for _, of, what in calls}
    assert decided(600, "1") == (dict.fromkeys(seen, True), "")


def test_it_says_what_is_left():
    text = RUN.read_text()
    functions = text[text.index("part() {") : text.index("third=()")]
    code = f'turn=4 all=\n{functions}\nif part 0 3 "sm_80"; then echo ran; fi'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "not this time: sm_80\n"
