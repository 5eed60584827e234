"""The estimate's arithmetic agrees with hand calculations, and its output is marked as an estimate."""

import csv
import math
from types import SimpleNamespace

import pytest
from benchmark_runs import BENCHMARKS, importable, run

if not (BENCHMARKS.parent / "csrc").exists():
    pytest.skip("the estimate needs csrc/, which is missing here", allow_module_level=True)


@pytest.fixture
def estimate(monkeypatch):
    with importable(monkeypatch):
        import gpu_devices
        import gpu_model
        import gpu_occupancy

        modules = (gpu_devices, gpu_occupancy, gpu_model)
        yield SimpleNamespace(**{n: v for module in modules for n, v in vars(module).items()})


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
def test_occupancy(monkeypatch, registers, threads, shared, blocks, limit):
    with importable(monkeypatch):
        from gpu_devices import A100
        from gpu_occupancy import occupancy
    assert occupancy(A100, registers, threads, shared) == {
        "blocks": blocks,
        "warps": blocks * threads // 32,
        "limit": limit,
    }


def test_every_kernel_of_the_table_of_occupancy_exists(estimate):
    from gpu_estimate import OTHERS

    fits = {
        (kernel, device.name): estimate.kernel_occupancy(device, kernel)["blocks"] > 0
        for kernel in (*estimate.DYNAMIC, *OTHERS)
        for device in estimate.DEVICES
    }
    wide = "knn_filter_kernel<float, 64>"
    assert {key for key in fits if not fits[key]} == {(wide, "RTX 3090"), (wide, "RTX 4090")}


def test_the_columns_of_a_step(estimate):
    """float32 rows take 64 where that costs no block: 2 x (110,432 + 32 + 1,024) B fit into 228 KB, not into 164."""
    steps = {device.arch: estimate.filter_step(device, 4) for device in estimate.DEVICES}
    assert steps == {"sm_80": 32, "sm_86": 32, "sm_89": 32, "sm_90": 64}
    assert all(estimate.filter_step(device, 2) == 64 for device in estimate.DEVICES)
    narrow, wide = (
        sum(
            phase.seconds
            for phase in estimate.filter_phases(estimate.A100, estimate.PROBLEMS[1], 38, 4, step)
        )
        for step in (32, 64)
    )
    assert wide > narrow  # half as many warps wait for twice as long


def test_float64_in_a_step(estimate):
    """2.15 million logits, 46.25 instructions each, 2 per clock on each of 82 multiprocessors."""
    import gpu_step

    *_, float64 = gpu_step.phases(estimate.DEVICES[1])
    clocks = 21 * 200 * 512 * 46.25 / (82 * 2)
    assert float64.seconds == pytest.approx(clocks / 1.695e9, rel=0.01)


def test_predictions_are_those_of_the_estimate(estimate):
    import gpu_step

    with (BENCHMARKS / "gpu_predictions.csv").open(newline="") as file:
        predicted = {row["figure"]: float(row["predicted"]) for row in csv.DictReader(file)}
    search = [
        sum(phase.seconds for phase in estimate.filter_phases(estimate.H100, problem, 38))
        for problem in estimate.PROBLEMS
    ]
    step = sum(phase.seconds for phase in gpu_step.phases(estimate.H100))
    for figure, seconds in (
        ("10,000 x 10,000 x 256, ours, filter", search[0]),
        ("VOC step's search, 21 x 6,339 x 10,000, ours, filter", search[1]),
        ("VOC step, ours, forward + backward + push", step),
    ):
        assert predicted[figure] == pytest.approx(1e3 * seconds, rel=0.03), figure
    assert predicted["VOC step, ours, device events"] == gpu_step.STEP_LAUNCHES


def test_the_least_that_a_matrix_costs(estimate):
    problem = estimate.Problem("", 1, 10_000, 10_000, 256)
    products, counting, gathering = estimate.matrix_phases(
        estimate.A100, problem, estimate.A100.fp32
    )
    assert products.needs["products"].amount == 2 * 10_000 * 10_000 * 256
    assert products.needs["products"].seconds == products.needs["products"].amount / 19.5e12
    # the matrix is written once and read five times, both inputs are read once
    assert products.needs["device memory"].amount == 4 * (10_000 * 10_000 + 2 * 10_000 * 256)
    assert counting.needs["device memory"].amount == 4 * 4 * 10_000 * 10_000
    assert gathering.needs["device memory"].amount == 4 * 10_000 * 10_000
    assert gathering.bound == "instruction issue"


def test_our_kernels_do_the_same_products(estimate):
    """Tiles add at most a row of queries and a tile of bank rows."""
    for problem in estimate.PROBLEMS:
        least = 2 * problem.classes * problem.queries * problem.bank * problem.dim
        for need in (
            estimate.filter_needs(estimate.H100, problem, 4, 64)["tensor cores"],
            estimate.exact_needs(estimate.H100, problem)["FMA"],
        ):
            assert least <= need.amount <= 1.05 * least


def test_the_phases_of_a_search(estimate):
    """A phase takes as long as its slowest resource, and longer if not every block has work."""
    needs = {"a": estimate.Need(6, "B", 2), "b": estimate.Need(8, "B", 4)}
    assert estimate.Phase("", needs).bound == "a"
    assert estimate.Phase("", needs).seconds == 3
    assert estimate.Phase("", needs, 0.5).seconds == 6
    problem = estimate.PROBLEMS[0]
    few, many = (
        {phase.name: phase for phase in estimate.filter_phases(estimate.H100, problem, survivors)}
        for survivors in (30, 60)
    )
    grown = {name for name in few if few[name] != many[name]}
    assert grown == {"score survivors"}
    name = grown.pop()
    assert many[name].seconds == pytest.approx(2 * few[name].seconds)
    # 16 warps wait for 8 loads of 128 bytes each
    rate = few[name].needs["latency"].rate / (132 * 1.83e9)
    assert rate == pytest.approx(16 * 8 * 128 / 400)
    # 157 tiles of 79 steps: 263 cuts after every 47 steps, 3 of them between two tiles; 30 rows of 1 KB for each list
    assert few[name].needs["latency"].amount == pytest.approx(417 / 157 * 10_000 * 30 * 1024)
    assert few["products, selection"].balance == 12403 / (47 * 264)


def test_sizes_are_those_of_the_kernels(estimate):
    """Compares shared memory with hand calculations."""
    queries_and_mean = 64 * 264 * 2 + 1024
    for kernel, bank in (("float, 32", 40 * 4), ("float, 64", 72 * 4), ("__half, 64", 72 * 2)):
        shared = queries_and_mean + 2 * 128 * bank
        assert estimate.DYNAMIC[f"knn_filter_kernel<{kernel}>"] == shared
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
        assert math.isfinite(float(row["ms"]))
        assert float(row["ms"]) > 0
    methods = {(row["problem"], row["device"], row["method"]) for row in rows}
    phases = {(row["problem"], row["device"], row["method"], row["phase"]) for row in rows}
    assert len(methods) == 3 * 4 * 4
    assert sum(int(row["is_bound"]) for row in rows) == len(phases)
    committed = (BENCHMARKS / "results" / "gpu_estimate.csv").read_text()
    assert committed == written, "the kernels have changed: run benchmarks/gpu_estimate.py"
