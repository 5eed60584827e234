"""The named cases of every operator against the reference in float64, with the table of tolerances."""

import oracles
import pytest

from dgcl_ops.doctor.cases import all_cases
from dgcl_ops.doctor.checks import compare_float64
from dgcl_ops.doctor.compare import Comparison, Target


def tolerance(result) -> float:
    return oracles.TOLERANCES[result.dtype]


@pytest.mark.parametrize("op", all_cases())
def test_values(op, device):
    target, comparison = Target(device), Comparison(exact=False)
    compared = 0
    for case in all_cases()[op]:
        if case.vast and device != "cpu":
            continue
        arguments = case.arguments()
        results = target.run(case, arguments)
        if results is None or case.anything or case.float32_only:
            continue
        given = case.repaired() if case.repaired else arguments
        compare_float64(comparison, case, given, results, tolerance)
        compared += 1
    assert comparison.good, "\n".join(comparison.notes)
    assert compared > len(all_cases()[op]) / 2
