"""Tensors on the second GPU while the first one is current: kernels, streams and scratch memory follow the tensors."""

import pytest
import torch

from dgcl_ops.doctor.cases import all_cases
from dgcl_ops.doctor.checks import check_cases
from dgcl_ops.doctor.compare import Comparison, Target

CASES_PER_OPERATOR = 3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a GPU, and a second one")
@pytest.mark.parametrize("op", sorted(all_cases()))
def test_tensors_on_another_device_than_the_current_one(op):
    cases = [case for case in all_cases()[op] if not (case.vast or case.long or case.bulk)]
    comparison = Comparison(exact=True)
    with torch.cuda.device(0):
        check_cases(Target("cuda:1"), comparison, cases[:CASES_PER_OPERATOR])
        assert torch.cuda.current_device() == 0
    assert comparison.good, comparison.notes
