"""`.ci/check_cpu_sanitizers` covers everything. It takes minutes, so only its coverage is tested here."""

import itertools
from pathlib import Path

import pytest

if not (Path(__file__).resolve().parents[2] / "setup.py").exists():
    pytest.skip("needs .ci/ and csrc/, which are missing here", allow_module_level=True)

import dgcl_ops
from dgcl_ops.doctor.cases import all_cases
from dgcl_ops.doctor.compare import Target
from dgcl_ops.ops import _registry
from kernels.sanitizers import build, faults
from kernels.sanitizers.run import HARNESS, pairs_of


def test_each_sanitizer_has_faults_and_every_operator_cases():
    ops = set(_registry.FALLBACKS)
    assert set(all_cases()) == ops
    assert {op for op in ops if any(c.thread or c.parallel for c in all_cases()[op])} == ops
    assert {fault.mode for fault in faults.FAULTS} == set(build.MODES)
    reports = " ".join(fault.report for fault in faults.FAULTS)
    assert all(word in reports for word in ("heap-buffer-overflow", "runtime error", "data race"))


def test_instruction_sets_are_those_of_the_kernels():
    assert build.LEVELS[0] == "portable"
    assert dgcl_ops.backend_info()["cpu_capability"] in build.LEVELS


@pytest.mark.parametrize("levels", range(1, 6))
def test_a_part_has_every_operator_and_all_parts_have_every_pair(levels):
    used, ops = build.LEVELS[:levels], list(HARNESS.ops)
    every = pairs_of(used, ops, 0, 1)
    assert every == list(itertools.product(used, ops))
    parts = [pairs_of(used, ops, part, 3) for part in range(3)]
    assert set(itertools.chain(*parts)) == set(every)
    for pairs in parts:
        assert {level for level, _ in pairs} == set(used)
        assert {op for _, op in pairs} == set(ops)
    if levels >= 3:
        assert sum(map(len, parts)) == len(every)


def test_cases_pass_without_a_sanitizer():
    """The cases pass without a sanitizer, so any report comes from the sanitizer. On the level in use."""
    for cases in all_cases().values():
        for case in cases:
            Target("cpu").run(case)
