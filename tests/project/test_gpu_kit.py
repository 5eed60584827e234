"""The kit for a first run on a GPU: a failing step never loses the summary or the results of other steps.

The steps here are small programs that crash, hang or lie. The kit's own runner runs them.
"""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from gpu_kit import (  # noqa: F401
    CI,
    KIT,
    PATIENCE,
    ROOT,
    good,
    is_alive,
    kit_fixture,
    new_run,
    page,
    python,
    run_fixture,
    statuses,
)

# ---- each way to fail ---------------------------------------------------------------------------------


def check_neighbours(run, status: str, *words: str):
    """Runs a step between two good ones. Checks its status, their results, and that the summary is complete."""
    assert statuses(run) == {"before": "passed", "bad": status, "after": "passed"}
    assert run.figure("after", "value") == 7
    lines = [json.loads(t) for t in (run.out / "results.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["passed", status, "passed"]
    text = page(run)
    for word in ("before is fine", "after is fine", *words):
        assert word in text
    if status in ("failed", "crashed", "over its limit"):
        assert "WENT WRONG: bad" in text


def between(kit, run, bad):
    run.go([good(kit, "before"), bad, good(kit, "after")])


def test_a_crash(kit, run):
    code = "import os; print('so far', flush=True); os.kill(os.getpid(), 11)"
    between(kit, run, python(kit, "bad", code))
    check_neighbours(run, "crashed", "SIGSEGV", "so far")


def test_a_failure_shows_its_last_lines(kit, run):
    code = "print('one'); raise SystemExit('WRONG: 3 of 7 differ')"
    between(kit, run, python(kit, "bad", code))
    check_neighbours(run, "failed", "exit status 1", "WRONG: 3 of 7 differ")


HANGS = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
ours = subprocess.Popen([sys.executable, "-c", deaf])
away = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
print('RESULT {"pids": [%d, %d, %d], "note": "got this far"}' % (os.getpid(), ours.pid, away.pid), flush=True)
time.sleep(600)
"""


@pytest.fixture
def impatient(run, monkeypatch):
    """Lets a limit expire as soon as the step has printed a result, so that no test depends on time."""

    def ends_within(process, seconds: float) -> bool:
        end = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < end:
            if "pids" in run.printed:
                return False
            time.sleep(0.02)
        return True

    read = run._read

    def watched(name, stream, result, tail):
        run.printed = result.figures
        read(name, stream, result, tail)

    run.printed = {}
    monkeypatch.setattr(run, "_read", watched)
    monkeypatch.setattr(run, "ends_within", ends_within)


def test_a_hang_with_children_that_ignore_sigterm(kit, run, impatient):
    """One child is in the step's group, one in its own session. Both end with the step."""
    between(kit, run, python(kit, "bad", HANGS, limit=15))
    check_neighbours(run, "over its limit", "killed after 15 s", "got this far")
    pids = run.figure("bad", "pids")
    assert len(pids) == 3
    assert not any(map(is_alive, pids))


def test_children_that_a_step_left_behind(kit, run):
    code = HANGS.replace("time.sleep(600)\n", "").strip()
    between(kit, run, python(kit, "bad", code))
    assert statuses(run) == {"before": "passed", "bad": "passed", "after": "passed"}
    assert not any(map(is_alive, run.figure("bad", "pids")))


def test_a_program_that_is_not_there(kit, run):
    between(kit, run, kit.runner.Step("bad", "does bad", ["/nowhere/ncu"], 10))
    check_neighbours(run, "failed", "could not be started")


@pytest.mark.parametrize("tool", ["sanitize.py", "run_ncu.py"])
def test_a_missing_tool_is_a_skip_with_its_reason(kit, run, tool):
    command = [sys.executable, KIT / tool, "memcheck", "--", "true"]
    step = kit.runner.Step("bad", "does bad", command, PATIENCE, env={"PATH": "/nowhere"})
    between(kit, run, step)
    check_neighbours(run, "skipped", "is not on PATH")


def test_gvisor_is_a_skip_with_its_reason(kit):
    import environment
    import run_ncu

    assert environment.is_gvisor("4.4.0")
    assert not environment.is_gvisor("6.18.44-fc-v236-gpu")
    for module in (kit.sanitize, run_ncu):
        assert "gVisor" in module.why_not("4.4.0", "/usr/bin/tool")
        assert module.why_not("6.8.0", "/usr/bin/tool") is None


def test_a_full_deadline(kit, run):
    """The last steps get less time, then none. The summary says both."""
    run.go([good(kit, "before")])
    run.began -= run.budget - 300
    run.go([good(kit, "cut", limit=500)])
    run.began -= 300
    run.go([good(kit, "after")])
    assert statuses(run) == {"before": "passed", "cut": "passed", "after": "not run"}
    assert "limit cut from 500 to" in page(run)
    cut = float(re.search(r"limit cut from 500 to (\d+) s", page(run))[1])
    assert cut <= 300 - kit.runner.RESERVE, "no time is kept for the summary"
    assert f"no time left of the run's {run.budget:.0f} s" in page(run)


def test_an_unreadable_wheel(kit, run, tmp_path):
    (tmp_path / "wheel").mkdir()
    (tmp_path / "wheel" / "dgcl_ops-0.1.0-cp310-abi3-linux_x86_64.whl").write_bytes(b"not a zip")
    command = [sys.executable, KIT / "install.py", tmp_path, tmp_path / "site"]
    between(kit, run, kit.runner.Step("bad", "does bad", command, PATIENCE))
    check_neighbours(run, "failed", "BadZipFile")


def test_a_wheel_that_does_not_load(kit, run, tmp_path):
    (tmp_path / "wheel").mkdir()
    name = "dgcl_ops-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(tmp_path / "wheel" / name, "w") as archive:
        archive.writestr("dgcl_ops/__init__.py", "raise ImportError('GLIBC_2.99 not found')")
    command = [sys.executable, KIT / "install.py", tmp_path, tmp_path / "site"]
    between(kit, run, kit.runner.Step("bad", "does bad", command, PATIENCE))
    check_neighbours(run, "failed", "the library does not load", "GLIBC_2.99 not found")


def test_more_output_than_the_log_takes(kit, run):
    code = "for n in range(40_000): print('x' * 100)\nprint('the end')"
    between(kit, run, python(kit, "bad", code))
    assert run.result("bad").tail[-1] == "the end"
    assert (run.out / "steps.log").stat().st_size < 1_000_000
    assert "left out" in (run.out / "steps.log").read_text()


def test_steps_that_run_together_have_results_of_their_own(kit, run):
    crash = python(kit, "bad", "import os; os.kill(os.getpid(), 6)", together="group")
    run.go([good(kit, "before", together="group"), crash, good(kit, "after", together="group")])
    assert statuses(run) == {"before": "passed", "bad": "crashed", "after": "passed"}


# ---- whole runs -----------------------------------------------------------------------------------------


def test_no_device(tmp_path):
    """The command itself on an empty folder, without a wheel. Every step says why it was skipped."""
    command = [sys.executable, CI / "gpu_run", tmp_path, "--out", tmp_path / "out"]
    command += ["--slower", "30"]  # the machine may be busy
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, env=env, check=False
    )
    assert done.returncode == 1, done.stderr
    text = (tmp_path / "out" / "summary.txt").read_text()
    assert text in done.stdout
    assert "NO CUDA DEVICE" in text
    assert "skipped        tests" in text
    assert text.count("no CUDA device: PyTorch sees none") > 10
    assert "must hold one *.whl from .ci/gpu_pack, got 0" in text
    assert "WENT WRONG: environment, install" in text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_from_outside(kit, tmp_path, number):
    """Earlier results are on disk. SIGTERM is reported, and ends the running step as well."""
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import importlib.machinery, sys
sys.path.insert(0, {str(KIT)!r})
sys.argv = ["gpu_run", {str(tmp_path)!r}, "--out", {str(tmp_path / "out")!r}]
loader = importlib.machinery.SourceFileLoader("gpu_run", {str(CI / "gpu_run")!r})
import types; command = types.ModuleType("gpu_run"); command.__file__ = loader.path
exec(compile(loader.get_data(loader.path), loader.path, "exec"), command.__dict__)
from runner import Step
def go(plan):
    code = 'import os, time; print("RESULT {{\\\\"pid\\\\": %d}}" % os.getpid(), flush=True)'
    plan.run.go([Step("first", "does first", [sys.executable, "-c", code], 100)])
    code = 'import os, time; open("pid", "w").write(str(os.getpid())); '
    code += 'os.rename("pid", "pid_of_second"); time.sleep(600)'
    plan.run.go([Step("second", "does second", [sys.executable, "-c", code], 500)])
command.go = go
raise SystemExit(command.main())
"""
    )
    process = subprocess.Popen([sys.executable, program], stdout=subprocess.DEVNULL, cwd=tmp_path)
    started = tmp_path / "pid_of_second"
    end = time.monotonic() + PATIENCE
    while not started.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(number)
    process.wait(timeout=PATIENCE)
    pid = int(started.read_text())
    text = (tmp_path / "out" / "summary.txt").read_text()
    assert "passed         first" in text
    if number == signal.SIGTERM:
        assert "THE RUN ENDED EARLY: by SIGTERM, during second" in text
        assert not is_alive(pid)
    else:
        os.kill(pid, signal.SIGKILL)


def test_the_steps_of_a_run_are_in_order(kit, tmp_path):
    """Checks run before benchmarks. Only the commands of a rehearsal have stand-ins."""
    for rehearsal in (False, True):
        run = new_run(kit, tmp_path)
        sizes = kit.steps.REHEARSAL if rehearsal else kit.steps.ON_GPU
        plan = kit.steps.Plan(ROOT, run, sys.executable, sizes, rehearsal, tmp_path)
        every = [*plan.environment(), *plan.install(), *plan.checks(), *plan.sanitizers()]
        every += plan.benchmarks()
        names = [step.name for step in every]
        first = ["environment", "install", "small_ops", "doctor", "tests", "memcheck"]
        assert names[:6] == first
        assert len(set(names)) == len(names)
        text = " ".join(str(part) for step in every for part in step.command)
        assert ("pretend" in text) == rehearsal
        for step in every:
            assert [
                part for part in step.command if str(part).endswith(".py")
            ] or "pytest" in step.command
            assert all(Path(p).exists() for p in step.command if str(p).endswith(".py"))


def test_what_failed_is_repeated_alone(kit, run, tmp_path):
    plan = kit.steps.Plan(ROOT, run, sys.executable, kit.steps.ON_GPU, False, tmp_path)
    assert plan.repeats() == []
    run.add(kit.runner.Result("doctor", "", "failed", figures={"failed": ["knn_topk backward"]}))
    rows = [["failed", "1.0", f"tests/test_a.py::test_{n}[cuda-x]", "wrong"] for n in range(9)]
    with (run.out / "tests.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    steps = {step.name: step for step in plan.repeats()}
    assert set(steps) == {
        "again_knn_topk_backward",
        "memcheck_knn_topk_backward",
        "again_tests",
        "memcheck_test",
    }
    assert steps["again_tests"].env["DGCL_OPS_CUDA_SEARCH"] == "exact"
    assert rows[0][2] in steps["again_tests"].command
    assert "memcheck" in steps["memcheck_test"].command
    run.summarise()
    assert "tests that ended: 9 failed" in page(run)


def test_the_summary_is_one_page(kit, run):
    for n in range(40):
        run.add(
            kit.runner.Result(
                f"step{n}", "does it", "failed", tail=["x" * 500] * 40, note="y" * 400
            )
        )
    assert len(page(run)) <= kit.summary.MOST
    assert "step39" in page(run).splitlines()[-1]
