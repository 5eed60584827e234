"""The benchmarks run, write what they promise, and refuse to time contenders that disagree.

What they do on CUDA is tried on a pretended device: its clocks are counted, its tensors are the CPU's, its kernels
the emulator's.
"""

import contextlib
import csv
import importlib.machinery
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dgcl_ops import backend_info

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
KNN = ("--sizes", "200x150x16", "--scales", "2", "5", "--threads", "1", "--repeats", "2")


def run(script: str, *arguments, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, BENCHMARKS / script, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


def read(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def benchmarks(monkeypatch):
    """Makes the benchmarks' modules importable for one test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def test_knn_bench_writes_a_dated_row_per_contender(tmp_path):
    result = run("knn_bench.py", *KNN, "--no-memory", "--data", "tight", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    rows = {row["contender"]: row for row in read(tmp_path / "knn_bench.csv")}
    for name in ("dgcl_ops", "dgcl_ops, unit bank", "authors' way", "matmul + one top-k"):
        assert rows[name]["status"] == "measured"
        assert float(rows[name]["median_ms"]) > 0
        assert float(rows[name]["max_error"]) < 1e-5
        assert name in result.stdout
    assert rows["fp32 matmul alone"]["max_error"] == ""  # selects nothing
    assert float(rows["dgcl_ops"]["time_over_ours"]) == 1
    assert {"faiss IndexFlat", "scikit-learn brute", "pykeops"} <= set(rows)
    for row in rows.values():
        assert row["date"]
        assert row["cpu"]
        assert row["torch"] == torch.__version__
        assert (row["cpu_capability"], row["threads"]) == (backend_info()["cpu_capability"], "1")
        assert (row["queries"], row["bank"], row["dim"], row["scales"]) == (
            "200",
            "150",
            "16",
            "2 5",
        )
        if row["status"] != "measured":
            assert f"absent: {row['contender']}: {row['status']}" in result.stdout
    assert "median ms" in result.stdout
    assert "we lose to: " in result.stdout
    assert "repeat 2/2" in result.stderr


def test_knn_bench_grouped(tmp_path):
    result = run("knn_bench.py", *KNN, "--classes", 3, "--no-memory", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    rows = {row["contender"]: row for row in read(tmp_path / "knn_bench.csv")}
    assert rows["dgcl_ops, call per class"]["status"] == "measured"
    assert rows["dgcl_ops"]["classes"] == "3"


def test_knn_bench_sweep_plots_and_appends(tmp_path, benchmarks):
    pytest.importorskip("matplotlib")
    import knn_bench

    arguments = [*KNN, "--no-memory", "--sweep", "d", "--values", "4", "8", "--out", str(tmp_path)]
    assert knn_bench.main(arguments) == 0
    assert (tmp_path / "knn_clusters_over_d.png").stat().st_size > 0
    assert [
        row["dim"] for row in read(tmp_path / "knn_bench.csv") if row["contender"] == "dgcl_ops"
    ] == [
        "4",
        "8",
    ]


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_other_metrics_agree(tmp_path, benchmarks, metric):
    import knn_bench

    arguments = [*KNN, "--no-memory", "--metric", metric, "--out", str(tmp_path)]
    assert knn_bench.main(arguments) == 0
    rows = {row["contender"]: row for row in read(tmp_path / "knn_bench.csv")}
    assert rows["reference.py"]["status"] == "measured"
    assert rows["authors' way"]["status"] == "told for cosine only"


def test_wrong_densities_are_not_timed(tmp_path, benchmarks, monkeypatch, capsys):
    import contenders
    import knn_bench

    right = contenders.knn_density
    monkeypatch.setattr(contenders, "knn_density", lambda *a, **k: right(*a, **k) + 1e-3)
    assert knn_bench.main([*KNN, "--no-memory", "--out", str(tmp_path)]) == 1
    assert "DISAGREEMENT" in capsys.readouterr().err
    assert not (tmp_path / "knn_bench.csv").exists()


def test_nan_is_a_disagreement(benchmarks):
    import contenders
    import workloads

    rows = torch.ones(4, 2)
    problem = contenders.Problem(rows, rows, rows, (2,), "cosine")
    chosen, expected = workloads.exact_densities(problem)
    wrong = torch.full((4,), torch.nan)
    with pytest.raises(workloads.Disagreement, match="dgcl_ops: densities must be within"):
        workloads.check_agreement("dgcl_ops", wrong, problem, chosen, expected, "float32")


def test_peak_memory_is_that_of_the_call(benchmarks):
    import peak_memory

    if peak_memory.memory_method(torch.device("cpu")).startswith("not"):
        pytest.skip("needs Linux's /proc/self/clear_refs")
    inputs = torch.ones(4_000_000)  # 16 MB

    def call():
        temporary = inputs + inputs
        return temporary + inputs

    peak = peak_memory.peak_beyond_inputs(call, torch.device("cpu"))
    assert 31e6 < peak < 36e6  # temporary and result; the inputs are not counted


def test_rows_of_another_format_are_not_mixed_in(tmp_path, benchmarks):
    import common

    path = tmp_path / "rows.csv"
    common.append_rows(path, ("a", "b"), [{"a": 1, "b": 2}])
    common.append_rows(path, ("a", "b"), [{"a": 3, "b": 4}])
    assert [row["a"] for row in read(path)] == ["1", "3"]
    with pytest.raises(RuntimeError, match="choose another --out"):
        common.append_rows(path, ("a", "c"), [{"a": 1, "c": 2}])


def test_loss_bench_writes_both_steps(tmp_path):
    small = ("--small", "--present", 3, "--threads", 1, "--repeats", 1)
    result = run("loss_bench.py", *small, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    ours, published = read(tmp_path / "loss_bench.csv")
    assert (ours["contender"], published["contender"]) == ("dgcl_ops", "published step")
    assert float(ours["loss"]) == pytest.approx(float(published["loss"]), rel=0.03)
    assert float(ours["shared_anchors"]) > 0.97
    for row in (ours, published):
        parts = [float(row[f"{part}_ms"]) for part in ("forward", "backward", "push")]
        assert float(row["total_ms"]) == pytest.approx(sum(parts), abs=0.1)
        assert row["memory_method"]
        assert (row["size"], row["present"]) == ("small", "3")
    assert "time / ours" in result.stdout


def test_a_loss_that_differs_is_not_timed(tmp_path, benchmarks, monkeypatch, capsys):
    import loss_bench
    import loss_steps

    right = loss_steps.OurStep.forward
    monkeypatch.setattr(loss_steps.OurStep, "forward", lambda *arguments: right(*arguments) * 1.1)
    small = [
        "--small",
        "--present",
        "3",
        "--threads",
        "1",
        "--repeats",
        "1",
        "--out",
        str(tmp_path),
    ]
    assert loss_bench.main(small) == 1
    assert "DISAGREEMENT" in capsys.readouterr().err
    assert not (tmp_path / "loss_bench.csv").exists()


def test_disturbed_repeats_are_done_again(benchmarks, monkeypatch):
    import common

    shares = iter([0.5, 0.01, 0.3, 0.02])
    monkeypatch.setattr(common.OtherLoad, "share", lambda self: next(shares))
    monkeypatch.setattr(common, "wait_for_calm", lambda limit, deadline: None)
    calls = []
    runs = {"a": lambda: calls.append("a") or {"total": len(calls)}}
    measured, others = common.alternate(runs, 2, calm=0.05)
    assert [result["total"] for result in measured["a"]] == [2, 4]
    assert others == 0.02


def test_other_load_counts_other_processes_only(benchmarks):
    import common

    others = common.OtherLoad()
    if not others.known:
        pytest.skip("needs Linux's /proc/stat")
    begin, own = time.perf_counter(), time.process_time()
    while time.process_time() < own + 0.3:
        pass  # busy here is not busy elsewhere
    left = 1 - 0.3 / ((time.perf_counter() - begin) * os.cpu_count())
    assert 0 <= others.share() <= left + 0.1


# ---- CUDA: without one, and pretended ---------------------------------------------------------------


@pytest.mark.parametrize("script", ["knn_bench.py", "loss_bench.py"])
def test_without_a_gpu_it_is_said_in_one_line(tmp_path, script):
    done = run(script, "--device", "cuda", "--out", tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "device 'cuda' cannot be used: " in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_build_without_cuda_kernels_is_not_measured(benchmarks, monkeypatch):
    import on_cuda

    monkeypatch.setattr(on_cuda, "unusable", lambda device: None)
    serving = {"implementation": "reference", "reason": "the extension has no kernel"}
    monkeypatch.setattr(on_cuda, "backend_info", lambda: {"devices": {"cuda": serving}})
    assert "the extension has no kernel" in on_cuda.why_not("cuda:0")
    assert on_cuda.why_not("cpu") is None


class PretendedGpu:
    """The clocks of a host and of a device that works through what it was given, in order."""

    def __init__(self):
        self.host = self.device_done = 0.0

    def work(self, host: float, device: float):
        """The host takes so long to enqueue what takes the device so long."""
        self.host += host
        self.device_done = max(self.device_done, self.host) + device

    def synchronize(self, device=None):
        self.host = max(self.host, self.device_done)

    def event(self, enable_timing: bool):
        gpu = self

        class Event:
            def record(self):
                self.at = max(gpu.host, gpu.device_done)

            def query(self):
                return gpu.host >= self.at

            def elapsed_time(self, other):
                assert other.query()  # an error on a device as well
                return 1e3 * (other.at - self.at)

        return Event()

    def install(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
        monkeypatch.setattr(torch.cuda, "Event", self.event)
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)
        monkeypatch.setattr(
            torch.cuda, "_sleep", lambda cycles: self.work(0, cycles / 2e9), raising=False
        )


@pytest.fixture
def gpu(monkeypatch):
    pretended = PretendedGpu()
    pretended.install(monkeypatch)
    return pretended


def test_the_device_s_time_is_taken_without_the_host_s(benchmarks, gpu):
    import common

    def step():
        for _ in range(20):
            gpu.work(host=1e-3, device=2e-4)
        return "result"

    timing = common.seconds(step, torch.device("cuda"))
    assert timing.seconds == pytest.approx(20 * 2e-4)  # not 20 ms, which the host takes
    assert timing.result == "result"
    assert timing.ahead


def test_work_that_was_enqueued_before_is_not_counted(benchmarks, gpu):
    import common

    gpu.work(host=1e-3, device=5.0)
    timing = common.seconds(lambda: gpu.work(1e-3, 2e-3), torch.device("cuda"))
    assert timing.seconds == pytest.approx(2e-3)


@pytest.mark.parametrize("waiting", [True, False])
def test_who_makes_the_host_wait_or_is_slow_to_enqueue_is_named(benchmarks, gpu, waiting):
    import common
    import on_cuda

    def step():
        gpu.work(1e-4, 1e-3)
        if waiting:
            gpu.synchronize()
        gpu.work(1e-4 if waiting else 1.0, 1e-3)

    timing = common.seconds(step, torch.device("cuda"))
    assert timing.ahead is False
    assert timing.seconds > 2e-3
    assert on_cuda.host_told([True, timing.ahead]) == "in the way"


@pytest.mark.parametrize("size", [1_000, 3_000_000, 10_000_000, 500_000_000])
def test_inputs_come_round_again_when_the_cache_has_forgotten_them(benchmarks, monkeypatch, size):
    import on_cuda

    properties = types.SimpleNamespace(L2_cache_size=50_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    count = on_cuda.input_sets(size, torch.device("cuda"))
    assert (count - 1) * size >= 100_000_000
    assert (count - 2) * size < 100_000_000
    assert on_cuda.input_sets(size, torch.device("cpu")) == 1


def test_rotated_inputs_are_equal_and_apart(benchmarks):
    import loss_steps
    import on_cuda

    batch = loss_steps.make_batch(loss_steps.SIZES["small"], 3, None, torch.device("cpu"))
    batches = on_cuda.rotation(batch, loss_steps.copy_batch, 3)
    met = [next(batches) for _ in range(4)]
    assert met[3] is met[0]
    for others in met[1:3]:
        assert others[0].requires_grad
        for one, other in zip(batch, others, strict=True):
            assert torch.equal(one, other)
            assert one.data_ptr() != other.data_ptr()


def test_settings_hold_while_their_contender_runs(benchmarks, monkeypatch):
    import contenders
    import loss_steps
    import workloads

    seen = []

    def watched(function):
        def call(*arguments, **options):
            search = os.environ.get("DGCL_OPS_CUDA_SEARCH")
            seen.append((search, torch.backends.cuda.matmul.allow_tf32))
            return function(*arguments, **options)

        return call

    monkeypatch.delenv("DGCL_OPS_CUDA_SEARCH", raising=False)
    monkeypatch.setattr(contenders, "knn_density", watched(contenders.knn_density))
    for name in ("published_density", "matmul_topk_density"):
        monkeypatch.setattr(
            contenders.reference, name, watched(getattr(contenders.reference, name))
        )
    case = {"queries": 20, "bank": 30, "dim": 8, "classes": 2, "scales": [2, 5], "metric": "cosine"}
    problem = workloads.build({**case, "data": "tight", "device": "cpu", "dtype": "float32"})
    plain, offered = (contenders.contenders_for(True, kind) for kind in ("cpu", "cuda"))
    assert set(plain) < set(offered)
    assert next(iter(offered)) == contenders.OURS
    for name, expected in (
        ("dgcl_ops", ("auto", False)),
        ("dgcl_ops, exact search", ("exact", False)),
        ("authors' way", (None, False)),
        ("authors' way, TF32", (None, True)),
        ("matmul + one top-k, TF32", (None, True)),
    ):
        seen.clear()
        assert offered[name].missing(problem) == ""
        offered[name].run(problem)
        assert set(seen) == {expected}, name
    assert not torch.backends.cuda.matmul.allow_tf32
    assert "DGCL_OPS_CUDA_SEARCH" not in os.environ

    steps = loss_steps.builders("cuda")
    assert next(iter(steps)) == loss_steps.OURS
    small, cpu = loss_steps.SIZES["small"], torch.device("cpu")
    monkeypatch.setattr("dgcl_ops.memory.knn_density", contenders.knn_density)
    monkeypatch.setattr(
        "dgcl_ops.published.published_density", contenders.reference.published_density
    )
    for name, expected in (
        ("dgcl_ops", ("auto", False)),
        ("dgcl_ops, exact search", ("exact", False)),
        ("published step", (None, False)),
        ("published step, TF32", (None, True)),
    ):
        seen.clear()
        step = steps[name](small, cpu)
        batch = loss_steps.make_batch(small, 3, None, cpu)
        step.forward(batch)
        step.whole(batch)
        step.timed(iter([batch, batch]), cpu)
        assert set(seen) == {expected}, name


def test_what_runs_on_the_cpu_only_is_absent_and_says_so(benchmarks, monkeypatch):
    import contenders

    for name in ("faiss", "sklearn"):
        installed = types.ModuleType(name)
        installed.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, installed)
    with FakeTensorMode():
        rows = torch.zeros(9, 4, device="cuda")
        wide = torch.zeros(9, 4, device="cuda", dtype=torch.float64)
    problem = contenders.Problem(rows, rows, rows, (2,), "cosine")
    offered = contenders.contenders_for(False, "cuda")
    for name in ("faiss IndexFlat", "scikit-learn brute"):
        assert "CPU" in offered[name].missing(problem)
    assert "TF32 is for float32" in offered["authors' way, TF32"].missing(
        contenders.Problem(wide, wide, wide, (2,), "cosine")
    )


@pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="tensors without values need a CUDA build of PyTorch"
)
@pytest.mark.parametrize("grouped", [False, True])
def test_contenders_stay_on_the_device_and_do_not_wait(benchmarks, grouped):
    """Without values, whoever reads one raises, and so does an operation on two devices."""
    import contenders

    with FakeTensorMode(), torch.no_grad():
        rows = torch.zeros(90, 16, device="cuda")
        bank = torch.zeros(*((3,) if grouped else ()), 50, 16, device="cuda")
        offsets = torch.zeros(4, dtype=torch.int64, device="cuda") if grouped else None
        cuts = (0, 30, 50, 90) if grouped else ()
        problem = contenders.Problem(rows, bank, bank, (2, 5), "cosine", offsets, cuts)
        for name, contender in contenders.contenders_for(grouped, "cuda").items():
            if name in ("pykeops", "reference.py") or contender.missing(problem):
                continue
            density = contender.run(problem)
            if density is not None:
                assert (density.device.type, density.shape) == ("cuda", (90,)), name


@pytest.fixture
def everything_pretended(benchmarks, monkeypatch):
    """A device whose tensors are the CPU's and whose events read this process's clock."""
    from emulator import replace

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            self.at = time.perf_counter()

        def query(self):
            return False

        def elapsed_time(self, other):
            return 1e3 * (other.at - self.at)

    properties = types.SimpleNamespace(major=9, minor=0, L2_cache_size=30_000)
    for name, stand_in in {
        "device": contextlib.nullcontext,
        "Event": Event,
        "synchronize": lambda device=None: None,
        "_sleep": lambda cycles: None,
        "get_device_properties": lambda device: properties,
        "get_device_name": lambda device: "NVIDIA X1",
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device: None,
        "memory_allocated": lambda device: 1_000_000,
        "max_memory_allocated": lambda device: 3_500_000,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in, raising=False)
    import on_cuda

    monkeypatch.setattr(on_cuda, "why_not", lambda device: None)
    monkeypatch.setattr(on_cuda, "driver_version", lambda: "580.1")
    with replace.emulated_kernels("benchmarks"):
        yield


def test_knn_bench_on_a_pretended_gpu(everything_pretended, tmp_path, monkeypatch, capsys):
    import knn_bench

    build, placed = knn_bench.build, []

    def on_the_cpu(case):
        placed.append(case["device"])
        return build({**case, "device": "cpu"})

    monkeypatch.setattr(knn_bench, "build", on_the_cpu)
    arguments = ["--sizes", "70x150x16", "--scales", "2", "5", "--repeats", "2", "--threads", "1"]
    assert knn_bench.main([*arguments, "--device", "cuda", "--out", str(tmp_path)]) == 0
    assert set(placed) == {"cuda"}
    assert [path.name for path in tmp_path.iterdir()] == ["knn_bench_cuda.csv"]
    rows = {row["contender"]: row for row in read(tmp_path / "knn_bench_cuda.csv")}
    for name in ("dgcl_ops", "dgcl_ops, exact search", "authors' way, TF32", "TF32 matmul alone"):
        row = rows[name]
        assert row["status"] == "measured"
        assert float(row["median_ms"]) > 0
        assert (row["extra_mb"], row["memory_method"]) == (
            "2.5",
            "torch.cuda.max_memory_allocated",
        )
        assert (row["device"], row["capability"], row["host"]) == ("NVIDIA X1", "9.0", "ahead")
        assert (row["allow_tf32"], row["driver"], row["input_sets"]) == ("False", "580.1", "6")
    assert float(rows["dgcl_ops"]["time_over_ours"]) == 1
    printed = capsys.readouterr().out
    assert "NVIDIA X1 (compute capability 9.0" in printed
    assert "TF32 off but where a name says so" in printed


def test_loss_bench_on_a_pretended_gpu(everything_pretended, tmp_path, monkeypatch, capsys):
    import loss_bench
    import loss_steps

    cpu, make_batch, builders = torch.device("cpu"), loss_bench.make_batch, loss_bench.builders
    monkeypatch.setattr(loss_bench, "make_batch", lambda *which: make_batch(*which[:-1], cpu))
    monkeypatch.setattr(
        loss_bench,
        "builders",
        lambda kind: {
            name: lambda size, device, build=build: build(size, cpu)
            for name, build in builders(kind).items()
        },
    )
    tiny = loss_steps.Size("small", 1, 15, 3, 8, 60, 20, 300, 10, 5, 512, (3,))
    monkeypatch.setitem(loss_bench.SIZES, "small", tiny)
    arguments = ["--small", "--present", "3", "--threads", "1", "--repeats", "1"]
    assert loss_bench.main([*arguments, "--device", "cuda", "--out", str(tmp_path)]) == 0
    rows = {row["contender"]: row for row in read(tmp_path / "loss_bench_cuda.csv")}
    assert set(rows) == {
        "dgcl_ops",
        "dgcl_ops, exact search",
        "published step",
        "published step, TF32",
    }
    for row in rows.values():
        parts = [float(row[f"{part}_ms"]) for part in ("forward", "backward", "push")]
        assert float(row["total_ms"]) == pytest.approx(sum(parts), abs=0.1)
        assert (row["extra_mb"], row["host"], row["allow_tf32"]) == ("2.5", "ahead", "False")
        assert int(row["input_sets"]) > 1
    assert "NVIDIA X1" in capsys.readouterr().out
