"""What `.ci/check_cpu_sanitizers` runs is complete; it runs there, for minutes."""

from pathlib import Path

import pytest

if not (Path(__file__).resolve().parent.parent / "setup.py").exists():
    pytest.skip("this needs .ci/ and csrc/, and these tests stand alone", allow_module_level=True)

from cpu_sanitizers import build, cases, faults
from emulator.worker import TIMED_OUT, Result

import dgcl_ops
from dgcl_ops.ops import _registry


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.what)
def test_a_fault_changes_one_place(fault, tmp_path):
    csrc = faults.plant(fault, tmp_path)
    text = (build.CSRC / fault.file).read_text()
    assert (csrc / fault.file).read_text() == text.replace(fault.old, fault.new) != text


def test_each_sanitizer_has_faults_and_every_operator_cases():
    ops = set(_registry.FALLBACKS)
    assert set(cases.all_cases()) == ops
    assert {op for op in ops if any(c.thread for c in cases.all_cases()[op])} == ops
    assert {fault.mode for fault in faults.FAULTS} == set(build.MODES)
    says = " ".join(fault.says for fault in faults.FAULTS)
    assert all(word in says for word in ("heap-buffer-overflow", "runtime error", "data race"))


def test_instruction_sets_are_those_of_the_kernels():
    assert build.LEVELS[0] == "portable"
    assert dgcl_ops.backend_info()["cpu_capability"] in build.LEVELS


def test_cases_pass_without_a_sanitizer():
    """So that a report is the sanitizer's; on the level in use."""
    for op in cases.all_cases():
        cases.check(op)


def test_another_report_is_not_the_fault_found():
    race = next(fault for fault in faults.FAULTS if fault.mode == "thread")
    assert faults.is_found(race, Result(66, "WARNING: ThreadSanitizer: data race (pid=1)", 0.1))
    assert not faults.is_found(race, Result(66, "ERROR: AddressSanitizer: SEGV", 0.1))
    assert not faults.is_found(race, Result(0, "", 0.1))
    with pytest.raises(RuntimeError, match="timed out"):
        faults.is_found(race, Result(TIMED_OUT, "", 120.0))


def test_a_change_that_does_not_fit_is_an_error(tmp_path):
    stray = faults.Fault("stray", "knn_topk", "cpu/knn_topk_kernel.cpp", "no()", "", "")
    with pytest.raises(LookupError, match="has 0 times, not once"):
        faults.plant(stray, tmp_path)
