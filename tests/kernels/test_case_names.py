"""The emulator and the sanitizers run the cases of `case_names.txt`: all that there are.

A case that is added, removed or no longer walked changes the file:

    python -m kernels.test_case_names     # from tests/; look at the difference before you commit it
"""

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
HEAD = """\
# Cases that the emulator and the sanitizers walk: operator, marks, name.
# Marks: e the emulator, t the emulator under ThreadSanitizer, s the sanitizers, p ThreadSanitizer of the CPU kernels.
"""


def walked() -> list[str]:
    lines = []
    for op, cases in all_cases().items():
        for case in cases:
            marks = "".join(mark for mark, walks in WALKED.items() if walks(case))
            lines.append(f"{op}\t{marks}\t{case.name}")
    return lines


def test_the_list_has_every_case_and_who_walks_it():
    said = NAMES.read_text().removeprefix(HEAD).splitlines()
    assert said == walked(), "python -m kernels.test_case_names, from tests/"


def test_every_case_has_a_name_of_its_own():
    names = [line.split("\t")[::2] for line in walked()]
    assert len({tuple(name) for name in names}) == len(names) > 1500


def test_the_emulator_walks_all_cases_under_one_schedule():
    assert all(WALKED["e"](case) for cases in all_cases().values() for case in cases)


if __name__ == "__main__":
    NAMES.write_text(HEAD + "".join(f"{line}\n" for line in walked()))
