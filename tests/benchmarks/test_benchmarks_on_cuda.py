"""The benchmarks on CUDA: without a device, and the parts of a measurement on a pretended one."""

import contextlib
import importlib.machinery
import os
import sys
import types

import pytest
import torch
from benchmark_runs import importable, run
from torch._subclasses.fake_tensor import FakeTensorMode


@pytest.fixture
def benchmarks(monkeypatch):
    with importable(monkeypatch):
        yield


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
    """Clocks of a host and of a device that runs the enqueued work in order."""

    def __init__(self):
        self.host = self.device_done = 0.0

    def work(self, host: float, device: float):
        """Enqueues work that takes the host and the device the given times."""
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
                assert other.query()  # a real device raises as well
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
    assert timing.seconds == pytest.approx(20 * 2e-4)  # not the host's 20 ms
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
    assert on_cuda.host_column([True, timing.ahead]) == "in the way"


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
            contenders.published, name, watched(getattr(contenders.published, name))
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
        ("matmul + one top-k, bf16", (None, False)),
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
    monkeypatch.setattr("dgcl_ops._bank.rings.knn_density", contenders.knn_density)
    monkeypatch.setattr("published.published_density", contenders.published.published_density)
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
    for kind in ("TF32", "bf16"):
        assert f"{kind} needs float32 rows" in offered[f"authors' way, {kind}"].missing(
            contenders.Problem(wide, wide, wide, (2,), "cosine")
        )


@pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="tensors without values need a CUDA build of PyTorch"
)
@pytest.mark.parametrize("grouped", [False, True])
def test_contenders_stay_on_the_device_and_do_not_wait(benchmarks, grouped):
    """Tensors without values raise an error if a value is read or devices are mixed."""
    import contenders

    with FakeTensorMode(), torch.no_grad():
        rows = torch.zeros(90, 16, device="cuda")
        bank = torch.zeros(*((3,) if grouped else ()), 50, 16, device="cuda")
        offsets = torch.zeros(4, dtype=torch.int64, device="cuda") if grouped else None
        cuts = (0, 30, 50, 90) if grouped else ()
        problem = contenders.Problem(rows, bank, bank, (2, 5), "cosine", offsets, cuts)
        for name, contender in contenders.contenders_for(grouped, "cuda").items():
            if name == "pykeops" or contender.missing(problem):
                continue
            density = contender.run(problem)
            if density is not None:
                assert (density.device.type, density.shape) == ("cuda", (90,)), name
