"""The environments that .ci/check_wheel tests in each turn, and how it reads pytest's output."""

import re
from itertools import product

import pytest
from gpu_kit import CI, ROOT, command_of

from dgcl_ops import _extension

if not CI.exists():
    pytest.skip("needs .ci/", allow_module_level=True)


@pytest.fixture(scope="module")
def script():
    return command_of("check_wheel")


def test_without_a_turn_every_pair_is_tested(script):
    cells = script.cells_of(None, ["2.10.0", "2.13.0"], ["3.10", "3.12"])
    assert sorted(cells) == sorted(product(["2.10.0", "2.13.0"], ["3.10", "3.12"]))


@pytest.mark.parametrize("pythons", [("3.10", "3.11", "3.12", "3.13"), ("3.11",)])
def test_every_pair_has_its_turn(script, pythons):
    pairs = sorted(set(product(script.TORCHES, pythons)) - set(script.MISSING))
    for first in (0, 690):
        turns = [
            script.cells_of(first + n, list(script.TORCHES), list(pythons))
            for n in range(len(pairs))
        ]
        assert sorted(pair for (pair,) in turns) == pairs


@pytest.mark.parametrize("pairs", [4, 5, 15, 19])
def test_every_pair_has_each_third(script, pairs):
    met = {(turn % pairs, script.third_of(turn, pairs)) for turn in range(3 * pairs)}
    assert met == set(product(range(pairs), range(3)))
    assert {script.third_of(turn, pairs) for turn in range(1, 5)} == {0, 1, 2}


def test_counts_and_reasons(script):
    output = """
SKIPPED [1233] needs a GPU
SKIPPED [2] needs /proc: Linux only
2034 passed, 1235 skipped, 1 failed, 3 warnings in 63.10s (0:01:03)
"""
    counts, reasons = script.counts_of(output)
    assert (counts["passed"], counts["skipped"]) == (2034, 1235)
    assert counts["failed"] == 1
    assert reasons == {"needs a GPU": 1233, "needs /proc: Linux only": 2}


def test_the_range_of_releases_is_the_same_everywhere(script):
    """Compares setup.py (with the stable ABI's version), the metadata, the check at import, the tests and the pages."""
    root = ROOT
    setup = re.search(r"MINIMUM_TORCH = \((\d+), (\d+)\)", (root / "setup.py").read_text())
    assert tuple(map(int, setup.groups())) == _extension.MINIMUM_TORCH
    lowest = ".".join(setup.groups())
    assert f'"torch>={lowest}"' in (root / "pyproject.toml").read_text()
    assert script.TORCHES[0].startswith(f"{lowest}.")
    highest = script.TORCHES[-1].rsplit(".", 1)[0]
    page = (root / "docs" / "compatibility.md").read_text()
    assert f"PyTorch {lowest} to {highest}" in page
    for text in (page, (root / "README.md").read_text()):
        named = re.findall(r"PyTorch (\d+\.\d+)(?: to |-| – |–)(\d+\.\d+)", text)
        assert set(named) <= {(lowest, highest)}


def test_wheels_are_built_with_the_same_headers_everywhere():
    root = ROOT
    built = re.search(r"CUDA_TORCH:-torch==([\d.]+)", (CI / "check_cuda_builds").read_text())
    released = re.search(r"torch==([\d.]+) -r \.ci/nvcc", (root / "pyproject.toml").read_text())
    documented = re.search(
        r"headers of PyTorch ([\d.]+\d)", (root / "docs" / "compatibility.md").read_text()
    )
    assert built[1] == released[1] == documented[1]
