"""The programs of the GPU kit's steps: they report faults, and the pytest plugin records every test that ended."""

import csv
import os
import signal
import subprocess
import sys

import pytest
import torch
from gpu_kit import (  # noqa: F401
    KIT,
    PATIENCE,
    ROOT,
    command_of,
    good,
    kit_fixture,
    page,
    python,
    run_fixture,
    statuses,
)

from dgcl_ops.ops import _registry


def test_every_operator_is_among_the_small_ones(kit):
    import small_ops

    assert set(small_ops.CHECKS) == set(_registry.FALLBACKS)


@pytest.mark.parametrize("op", list(_registry.FALLBACKS))
def test_one_wrong_element_of_any_operator_is_found(kit, monkeypatch, capsys, op):
    import small_ops

    class Wrong(small_ops.Target):
        def __call__(self, function, *arguments, **options):
            result = super().__call__(function, *arguments, **options)
            part = result if isinstance(result, torch.Tensor) else result[0]
            part.view(-1)[-1] += 1
            return result

    monkeypatch.setattr(sys, "argv", ["small_ops.py", "--device", "cpu", "--quick", "--op", op])
    assert small_ops.main() == 0
    monkeypatch.setattr(small_ops, "Target", Wrong)
    assert small_ops.main() == 1
    assert f"WRONG: {op}" in capsys.readouterr().out


def test_a_sanitizer_s_count(kit, run):
    faults = kit.sanitize.faults
    assert faults("========= ERROR SUMMARY: 0 errors") == 0
    assert faults("========= ERROR SUMMARY: 1 error") == 1
    assert faults("========= RACECHECK SUMMARY: 12 hazards displayed (12 errors, 0 warnings)") == 12
    assert faults("Error: Device not supported") is None
    judged = kit.sanitize.judged
    of_pytorch = "========= Uninitialized read\n=========     at void at::native::fill()\n"
    of_ours = of_pytorch.replace("at::native::fill", "dgcl::knn_topk_kernel")
    one = "========= ERROR SUMMARY: 1 error"
    assert judged("initcheck", False, of_pytorch + one, 66) == (
        "initcheck: 1 FAULTS in all kernels. Uninitialized read (0 of those shown are in the library's)",
        False,
    )
    assert judged("initcheck", False, of_ours + one, 66)[1]
    assert judged("memcheck", False, of_pytorch + one, 66)[1]
    assert judged("memcheck", True, "========= ERROR SUMMARY: 0 errors", 0)[1] is False
    assert judged("memcheck", True, "========= ERROR SUMMARY: 0 errors", 1)[1] is True
    assert judged("memcheck", True, "Error: Device not supported", 255)[1] is True
    for count, status in (("0", "passed"), ("3", "failed")):
        env = {
            "PATH": f"{KIT / 'stand_ins' / 'bin'}:{os.environ['PATH']}",
            "STAND_IN_FAULTS": count,
        }
        command = [sys.executable, KIT / "sanitize.py", "racecheck", "--", "true"]
        run.go([kit.runner.Step(f"found{count}", "counts", command, PATIENCE, env=env)])
        assert run.result(f"found{count}").status == status
    assert "racecheck: 3 FAULTS in the library's kernels" in page(run)


def test_the_doctor_s_failures_are_named(kit):
    import run_doctor

    lines = [
        "  knn_topk, auto search        ok     0 of 9 unequal, max error 0.00 x tolerance  (0.10 s)",
        "  knn_density, exact search    WRONG  3 of 9 unequal, max error 0.00 x tolerance  (0.10 s)",
        "  density_contrast             FAILED: RuntimeError: out of luck",
        "    density_contrast             WRONG",
    ]
    assert run_doctor.failed_checks(lines) == ["knn_density", "density_contrast"]


SOME_TESTS = """
import os, time
import pytest

@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    return request.param

def test_right(device): pass
def test_wrong(device): assert device == "cpu", "the device is wrong"
def test_hangs(device):
    if device == "cuda": time.sleep(600)
def test_crashes(device):
    if device == "cuda": os.kill(os.getpid(), 11)
def test_loses_the_device(device):
    if device == "cuda": raise RuntimeError("CUDA error: an illegal memory access was encountered")
@pytest.mark.skipif(False, reason="needs a GPU")
def test_of_cuda_alone(): pass
def test_asks(): "torch.cuda.is_available()"
def test_of_the_cpu(): raise AssertionError("not to be run")
@pytest.mark.parametrize("n", range(6))
def test_afterwards(device, n): pass
"""


def test_tests_that_hang_crash_or_lose_the_device_leave_the_others(tmp_path):
    """Every test that ended is recorded with its outcome. Tests of the CPU do not run."""
    (tmp_path / "test_some.py").write_text(SOME_TESTS)
    (tmp_path / "test_other.py").write_text("import a_package_that_is_not_there")
    env = {
        **os.environ,
        "PYTHONPATH": str(KIT / "plugins"),
        "DGCL_OPS_GPU_TESTS": str(tmp_path / "tests.csv"),
        "DGCL_OPS_GPU_SECONDS": "30",  # only the hanging test takes that long
    }
    options = ["-p", "gpu_tests", "-p", "no:cacheprovider", "-q", "-n", "2"]
    options += ["--continue-on-collection-errors", "--rootdir", tmp_path, "-c", os.devnull]
    command = [sys.executable, "-m", "pytest", *options, tmp_path]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=env,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    with (tmp_path / "tests.csv").open(newline="") as file:
        ended = {row[2].split("::")[-1]: (row[0], row[3]) for row in csv.reader(file)}
    assert ended.pop("test_right[cuda]") == ("passed", "")
    assert ended.pop("test_of_cuda_alone") == ("passed", "")
    assert ended.pop("test_asks") == ("passed", "")
    outcome, error = ended.pop("test_other.py")
    assert (outcome, "No module named" in error) == ("not collected", True)
    assert ended.pop("test_wrong[cuda]")[0] == "failed"
    for name in ("test_hangs[cuda]", "test_crashes[cuda]"):
        outcome, error = ended.pop(name)
        assert (outcome, "crashed" in error) == ("failed", True)
    assert ended.pop("test_loses_the_device[cuda]")[0] == "failed"
    assert {name: outcome for name, (outcome, _) in ended.items()} == {
        f"test_afterwards[cuda-{n}]": "passed" for n in range(6)
    }


# ---- the run itself -----------------------------------------------------------------------------------


def test_steps_that_run_together_overlap(kit, run):
    """Each step waits for the other one's file."""
    code = (
        "import os, time; open('{}', 'w').close()\nwhile not os.path.exists('{}'): time.sleep(0.02)"
    )
    pairs = (("one", "other"), ("other", "one"))
    run.go([python(kit, names[0], code.format(*names), together="group") for names in pairs])
    assert statuses(run) == {"one": "passed", "other": "passed"}


def test_a_library_built_here_counts_and_one_that_was_not_does_not(kit, run, tmp_path):
    plan = kit.steps.Plan(ROOT, run, sys.executable, kit.steps.ON_GPU, False, tmp_path)
    assert "not installed" in plan.why_not()
    run.add(kit.runner.Result("install", "", "failed"))
    assert "not installed" in plan.why_not()
    run.add(kit.runner.Result("build_here", "", "passed"))
    assert plan.why_not() is None


def test_a_mistake_of_the_kit_ends_the_run_with_a_summary(kit, tmp_path, monkeypatch):
    command = command_of("gpu_run")

    def go(plan):
        plan.run.go([good(kit, "first")])
        raise KeyError("no such step")

    monkeypatch.setattr(command, "go", go)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest's stay
    monkeypatch.setattr(sys, "argv", ["gpu_run", str(tmp_path), "--out", str(tmp_path / "out")])
    assert command.main() == 1
    text = (tmp_path / "out" / "summary.txt").read_text()
    assert "THE RUN ENDED EARLY: KeyError: 'no such step'" in text
    assert "passed         first" in text
