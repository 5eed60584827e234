"""The estimate's arithmetic agrees with hand calculations, and its output is marked as an estimate."""

import csv
import math

import pytest
from benchmark_runs import BENCHMARKS, importable, run

if not (BENCHMARKS.parent / "csrc").exists():
    pytest.skip("the estimate needs csrc/, which is missing here", allow_module_level=True)


@pytest.fixture
def estimate(monkeypatch):
    with importable(monkeypatch):
        import gpu_estimate

        yield gpu_estimate


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "blocks", "limit"),
    [
        (32, 256, 0, 8, "threads"),  # 64 warps / 8
        (128, 256, 0, 2, "registers"),  # 65536 / (128 x 256)
        (129, 256, 0, 1, "registers"),  # 129 x 32 is rounded up to 17 x 256: 3 warps per scheduler
        (32, 32, 0, 32, "blocks"),
        (32, 128, 40 * 1024, 4, "shared memory"),  # 164 KB / (40 + 1)
        (32, 128, 164 * 1024, 0, "shared memory"),  # more than a block may have
    ],
)
def test_occupancy(estimate, registers, threads, shared, blocks, limit):
    occupancy = estimate.occupancy(estimate.A100, registers, threads, shared)
    assert occupancy == {"blocks": blocks, "warps": blocks * threads // 32, "limit": limit}


def test_every_kernel_of_the_table_of_occupancy_exists(estimate):
    for kernel in (*estimate.DYNAMIC, *estimate.OTHERS):
        for device in (estimate.A100, estimate.H100):
            assert estimate.kernel_occupancy(device, kernel)["blocks"] > 0


def test_the_least_that_a_matrix_costs(estimate):
    problem = estimate.Problem("", 1, 10_000, 10_000, 256)
    needs = estimate.matrix_needs(estimate.A100, problem, estimate.A100.fp32)
    assert needs["products"].amount == 2 * 10_000 * 10_000 * 256
    assert needs["products"].seconds == needs["products"].amount / 19.5e12
    # the matrix twice, both inputs once
    assert needs["device memory"].amount == 4 * (2 * 10_000 * 10_000 + 2 * 10_000 * 256)


def test_our_kernels_do_the_same_products(estimate):
    """Tiles add at most a row of queries and a tile of bank rows."""
    for problem in estimate.PROBLEMS:
        least = 2 * problem.classes * problem.queries * problem.bank * problem.dim
        for need in (
            estimate.filter_needs(estimate.H100, problem, 60)["tensor cores"],
            estimate.exact_needs(estimate.H100, problem)["FMA"],
        ):
            assert least <= need.amount <= 1.05 * least


def test_sizes_are_those_of_the_kernels(estimate):
    """Compares shared memory with hand calculations."""
    assert estimate.DYNAMIC["knn_filter_kernel<float>"] == 64 * 264 * 2 + 2 * 128 * 40 * 4 + 1024
    assert estimate.DYNAMIC["knn_exact_kernel<float, false>"] == (32 + 32) * 1024
    with pytest.raises(LookupError, match=r"filter_tile\.cuh has no kNothing"):
        estimate.constant("knn/filter_tile.cuh", "kNothing")


def test_what_it_writes_says_that_it_is_an_estimate(tmp_path):
    done = run("gpu_estimate.py", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ESTIMATE: nothing here has run on a GPU") == 2
    written = (tmp_path / "gpu_estimate.csv").read_text()
    lines = written.splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert lines[0] == "# ESTIMATE: nothing here has run on a GPU"
    assert {row["kind"] for row in rows} == {"ESTIMATE: nothing here has run on a GPU"}
    for row in rows:
        assert math.isfinite(float(row["least_ms"]))
        assert float(row["least_ms"]) > 0
    methods = {(row["problem"], row["device"], row["method"]) for row in rows}
    assert sum(int(row["is_bound"]) for row in rows) == len(methods) == 3 * 2 * 4
    committed = (BENCHMARKS / "results" / "gpu_estimate.csv").read_text()
    assert committed == written, "the kernels have changed: run benchmarks/gpu_estimate.py"
