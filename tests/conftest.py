"""Fixtures shared by all tests: both implementations, every device there is, the same random numbers each run."""

import os
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=int(os.environ.get("DGCL_OPS_EXAMPLES", "25")),
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def repeatable():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The samples are small; that threads change nothing is a test of its own (test_relations.py)."""
    torch.set_num_threads(1)


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    return request.param


@pytest.fixture(params=["compiled", "reference"])
def implementation(request):
    """The module under test: both tellings answer to the same oracle."""
    if request.param == "reference":
        from dgcl_ops import reference

        return reference
    from dgcl_ops import ops

    return ops
