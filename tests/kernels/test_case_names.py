"""The emulator and the sanitizers run every case of `case_names.txt`. To remove a case, remove its line there."""

from pathlib import Path

import pytest

from dgcl_ops.doctor.cases import all_cases
from kernels.emulator import jobs
from kernels.sanitizers import jobs as sanitizer_jobs

NAMES = Path(__file__).with_name("case_names.txt")
if not NAMES.exists():
    pytest.skip("needs case_names.txt, which is missing here", allow_module_level=True)

WALKED = {
    "e": lambda case: jobs.chosen(case, jobs.LONG_UNDER, thread=False),
    "t": lambda case: jobs.chosen(case, jobs.LONG_UNDER, thread=True),
    "s": lambda case: sanitizer_jobs.chosen(case, thread=False),
    "p": lambda case: sanitizer_jobs.chosen(case, thread=True),
}


def test_every_case_is_walked():
    lines = [line for line in NAMES.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 1494
    cases = {(op, case.name): case for op, cases in all_cases().items() for case in cases}
    for line in lines:
        op, marks, name = line.split("\t")
        assert (op, name) in cases, line
        for mark in marks:
            assert WALKED[mark](cases[op, name]), line


def test_the_emulator_walks_all_cases_under_one_schedule():
    assert all(WALKED["e"](case) for cases in all_cases().values() for case in cases)
