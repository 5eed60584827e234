"""The doctor: right kernels pass, each planted fault is named, and a missing device gets a clear message.

Emulated CUDA kernels stand in for a GPU, and a recorder of operations stands in for CUDA graphs.
"""

import contextlib
import os
import subprocess
import sys
import types

import pytest
import torch
from recorded import pretend_graphs

import dgcl_ops
from dgcl_ops.doctor import __main__ as command
from dgcl_ops.doctor import reporting, step
from dgcl_ops.doctor.cases import all_cases
from dgcl_ops.doctor.checks import CHECKS, OPERATORS
from dgcl_ops.doctor.compare import Comparison, Target
from dgcl_ops.memory import MemoryBank

FEW = ("cosine", "l2 grouped", "k 300", "zero, NaN and extreme rows", "ties", "every pixel")


@pytest.fixture
def few_cases(monkeypatch):
    """Few cases are enough for a fault in every element."""
    few = {
        op: [c for c in cases if c.name in FEW] or cases[-9:] for op, cases in all_cases().items()
    }
    assert {case.name for case in few["knn_topk"]} == set(FEW[:4])
    monkeypatch.setattr("dgcl_ops.doctor.checks.all_cases", lambda: few)


def verdict(name: str, target: Target) -> tuple[str, bool]:
    lines, good = reporting.verdict(name, CHECKS[name], target)
    return "\n".join(lines), good


def in_a_process(*arguments, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "dgcl_ops.doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=1800,
        env={**os.environ, **environment},
    )


# ---- the CPU, and the emulated GPU --------------------------------------------------------------------


def test_the_cpu_passes_and_the_report_names_what_ran(capsys):
    assert command.main([]) == 0
    text = capsys.readouterr().out
    assert dgcl_ops.backend_info()["extension"] in text
    assert dgcl_ops.backend_info()["build"] in text
    assert "all checks passed" in text
    for name in CHECKS:
        assert f"  {name}" in text
    for name in step.CUDA_CHECKS:
        assert f"  {name:<28} not checked on cpu" in text


class Emulated(Target):
    """CUDA kernels on CPU tensors."""

    def __init__(self):
        super().__init__("cpu")
        self.checks_values = False

    def kernels(self):
        from kernels.emulator import replace

        return replace.emulated_kernels("doctor")


@pytest.mark.kernels
@pytest.mark.parametrize("name", list(CHECKS))
def test_emulated_cuda_kernels_pass(name, request):
    if name in OPERATORS:  # kernels/test_emulator.py runs all cases
        request.getfixturevalue("few_cases")
    text, good = verdict(name, Emulated())
    assert good, text
    assert " 0 of " in text  # compared for equality


def test_both_paths_of_the_search_run_on_cuda(monkeypatch):
    seen = []

    def check(target, comparison):
        seen.append(os.environ.get("DGCL_OPS_CUDA_SEARCH"))

    checks = {"knn_topk": check, "gather_rows": check}
    monkeypatch.setattr(reporting, "CHECKS", checks)
    monkeypatch.setattr(reporting, "CUDA_CHECKS", {})
    monkeypatch.setenv("DGCL_OPS_CUDA_SEARCH", "auto")
    monkeypatch.setattr("dgcl_ops.backend._serving", lambda *of: {"implementation": "compiled"})
    lines = [text[0] for text, _ in reporting.run_checks(Target("cuda"))]
    assert seen == ["auto", "exact", "auto"]
    assert os.environ["DGCL_OPS_CUDA_SEARCH"] == "auto"
    assert [line.split("  ")[1] for line in lines] == [
        "knn_topk, auto search",
        "knn_topk, exact search",
        "gather_rows",
    ]


# ---- planted faults -----------------------------------------------------------------------------------


class Faulty(Target):
    """The CPU, with corrupted results of one operator."""

    def __init__(self, op: str, spoil):
        super().__init__("cpu")
        self.op, self.spoil = op, spoil
        self.genuine = torch.library.get_kernel(f"dgcl_ops::{op}", "CPU")

    @contextlib.contextmanager
    def kernels(self):
        cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

        def spoilt(*arguments):
            result = self.genuine.call_boxed(cpu, *arguments)
            self.spoil(arguments if result is None else result)
            return result

        library = torch.library.Library("dgcl_ops", "IMPL")
        library.impl(self.op, spoilt, "CPU", allow_override=True)
        try:
            yield
        finally:
            library._destroy()


def one_ulp(part: int | None = None, element: int = -1):
    """Replaces the last (or another) finite number with the next number."""

    def spoil(result):
        flat = (result if part is None else result[part]).view(-1)
        at = flat.isfinite().nonzero().flatten()
        if len(at):
            at = at[element]
            flat[at] = torch.nextafter(flat[at], torch.full_like(flat[at], torch.inf))

    return spoil


def one_more(part: int | None = None):
    def spoil(result):
        (result if part is None else result[part]).view(-1)[-1] += 1

    return spoil


def slightly_larger(part: int | None, share: float):
    """Changes the largest number by a fraction of itself."""

    def spoil(result):
        flat = (result if part is None else result[part]).view(-1)
        if flat.numel():
            at = flat.nan_to_num(0.0, 0.0, 0.0).abs().argmax()
            flat[at] *= 1 + share

    return spoil


def every_second_time(spoil):
    """A result that varies between calls, as with additions in no fixed order."""
    calls = []

    def sometimes(result):
        calls.append(1)
        if len(calls) % 2:
            spoil(result)

    return sometimes


FAULTS = {
    ("knn_topk", "knn_topk", "value"): one_ulp(0),
    ("knn_topk", "knn_topk", "index"): one_more(1),
    ("knn_density", "knn_density", "one ulp"): one_ulp(),
    ("knn_topk_backward", "knn_topk_backward", "of queries"): slightly_larger(0, 1e-2),
    ("knn_topk_backward", "knn_topk_backward", "of the bank"): slightly_larger(1, 1e-2),
    ("knn_topk_backward", "knn_topk_backward", "order"): every_second_time(one_ulp(1, 0)),
    ("knn_density gradients", "knn_topk_backward", "of the bank"): slightly_larger(1, 1e-2),
    ("density_contrast", "density_contrast", "loss"): slightly_larger(0, 1e-4),
    ("density_contrast", "density_contrast", "order"): every_second_time(one_ulp(0)),
    ("density_contrast_backward", "density_contrast_backward", "of anchors"): slightly_larger(
        0, 1e-2
    ),
    ("density_contrast_backward", "density_contrast_backward", "of keys"): slightly_larger(1, 1e-2),
    ("density_contrast_backward", "density_contrast_backward", "of negatives"): slightly_larger(
        2, 1e-2
    ),
    ("knn_topk gradients", "knn_topk_backward", "of queries"): slightly_larger(0, 1e-2),
    ("density_contrast gradients", "density_contrast_backward", "of keys"): slightly_larger(
        1, 1e-2
    ),
    ("memory_push", "memory_push", "feature"): one_ulp(0, 0),
    ("memory_push", "memory_push", "head"): one_more(4),
    ("random_bits", "random_bits", "one more"): one_more(),
    ("partition_keys", "partition_keys", "one more"): one_more(1),
    ("gather_rows", "gather_rows", "one ulp"): one_ulp(),
    ("gather_rows_backward", "gather_rows_backward", "one ulp"): one_ulp(),
    ("gather_rows gradients", "gather_rows_backward", "one ulp"): one_ulp(),
    ("silhouette_sums", "silhouette_sums", "sum"): slightly_larger(None, 1e-9),
    ("DensityContrastLoss", "knn_density", "one ulp"): one_ulp(),
    ("DensityContrastLoss", "memory_push", "feature"): one_ulp(0, 0),
    ("DensityContrastLoss", "density_contrast_backward", "of anchors"): slightly_larger(0, 1e-2),
}


@pytest.mark.parametrize("fault", list(FAULTS), ids=" ".join)
def test_a_planted_fault_is_named(fault, few_cases):
    check, op, _ = fault
    text, good = verdict(check, Faulty(op, FAULTS[fault]))
    assert not good
    assert "WRONG" in text.splitlines()[0]
    assert len(text.splitlines()) > 1  # says where


def test_the_faults_are_what_fails(few_cases):
    """Without a fault, the same construction passes."""
    for check, op, _ in FAULTS:
        text, good = verdict(check, Faulty(op, lambda result: None))
        assert good, text


def test_one_wrong_element_is_reported_with_both_values():
    comparison = Comparison(exact=True)
    comparison.same("selection", torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 5]]))
    assert not comparison.good
    assert comparison.notes == ["selection: 1 of 4 differ, first at (1, 1): 4, CPU 5"]


@pytest.mark.parametrize(
    ("ours", "good"),
    [
        ([1.0, 2.0, torch.nan, torch.inf], True),
        ([1.0, 2.00003, torch.nan, torch.inf], True),
        ([1.0, 2.00005, torch.nan, torch.inf], False),
        ([1.0, torch.nan, torch.nan, torch.inf], False),
        ([1.0, 2.0, 3.0, torch.inf], False),
        ([1.0, 2.0, torch.nan, -torch.inf], False),
        ([1.0, 2.0, torch.inf, torch.inf], False),
    ],
)
def test_nearness(ours, good):
    comparison = Comparison(exact=True)
    comparison.near(
        "x", torch.tensor(ours), torch.tensor([1.0, 2.0, torch.nan, torch.inf]).double()
    )
    assert comparison.good == good


def test_other_dtypes_and_shapes_are_unequal():
    for other in (torch.ones(3, dtype=torch.float64), torch.ones(1, 3)):
        comparison = Comparison(exact=True)
        comparison.same("x", other, torch.ones(3))
        assert not comparison.good


def test_a_failure_is_reported_as_text_and_the_others_go_on(monkeypatch):
    def broken(target, comparison):
        raise RuntimeError("no such\nluck")

    monkeypatch.setattr(
        reporting, "CHECKS", {"first": broken, "partition_keys": CHECKS["partition_keys"]}
    )
    text, passed = reporting.report()
    assert not passed
    assert "FAILED: RuntimeError: no such luck" in text
    assert "partition_keys               ok" in text
    assert "some checks FAILED" in text


def test_exit_status_of_a_failed_check(monkeypatch, capsys):
    def checks(target):
        # each line is there as soon as it is known
        assert "self-check on cpu" in capsys.readouterr().out
        yield ["  a line"], False

    monkeypatch.setattr(reporting, "run_checks", checks)
    assert command.main([]) == 1
    assert (
        capsys.readouterr().out
        == "  a line\nsome checks FAILED: please include this report in a bug report\n"
    )


def test_a_reader_that_stops_early_sees_no_traceback():
    """As `python -m dgcl_ops.doctor | head -1`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dgcl_ops.doctor"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith("dgcl_ops ")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


# ---- devices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cuda", "meta", "no-such-thing"])
def test_a_device_that_is_not_there(device):
    done = in_a_process("--device", device, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "extension  " in done.stdout
    assert "self-check" not in done.stdout
    assert done.stderr.count("\n") == 1
    assert f"device {device!r} cannot be used: " in done.stderr
    assert "nothing was checked" in done.stderr


def test_the_report_describes_the_gpu(monkeypatch):
    properties = types.SimpleNamespace(
        name="NVIDIA X1",
        major=9,
        minor=0,
        multi_processor_count=132,
        total_memory=139 * 2**30,
        L2_cache_size=50 * 2**20,
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])
    monkeypatch.setattr("torch.utils.collect_env.get_nvidia_driver_version", lambda run: "580.1")
    text = "\n".join(reporting.gpu("cuda"))
    for fact in ("NVIDIA X1", "capability 9.0", "132", "139.0 GiB", "50 MiB", "580.1"):
        assert fact in text
    assert f"runtime {torch.version.cuda}" in text


def test_plain_pytorch_is_not_held_to_equal_bits_and_may_wait(monkeypatch):
    monkeypatch.setattr(reporting, "CHECKS", {})
    monkeypatch.setattr("dgcl_ops.backend._serving", lambda *of: {"implementation": "reference"})
    target = Target("cuda")
    assert not target.compiled
    assert target.search_paths == (None,)
    lines = [(text[0], good) for text, good in reporting.run_checks(target)]
    assert len(lines) == 2
    for line, good in lines:
        assert "not checked: this device uses the PyTorch fallback" in line
        assert good is None
    comparison = Comparison(exact=target.compiled)
    comparison.same("x", torch.zeros(2), torch.ones(2))
    assert comparison.good
    assert "bit equality not guaranteed" in comparison.summary()


# ---- steps that do not wait -----------------------------------------------------------------------------


@pytest.fixture
def sync_debug(monkeypatch):
    """torch.cuda's sync debug mode without a device. Records the modes in which the bank was read."""
    state = types.SimpleNamespace(mode=0, seen=[], fault=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: state.mode)
    monkeypatch.setattr(
        torch.cuda, "set_sync_debug_mode", lambda mode: setattr(state, "mode", mode)
    )
    ready = MemoryBank.ready

    def watched(bank, *arguments):
        state.seen.append(state.mode)
        if state.fault and state.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return ready(bank, *arguments)

    monkeypatch.setattr(MemoryBank, "ready", watched)
    return state


def test_a_step_is_looked_at_for_waiting(sync_debug):
    _, good = reporting.verdict("waiting", step.check_no_waiting, Target("cpu"))
    assert good
    assert sync_debug.seen[0] == 0
    assert sync_debug.seen[-1] == "error"
    assert sync_debug.mode == 0


def test_a_step_that_waits_fails(sync_debug):
    sync_debug.fault = True
    lines, good = reporting.verdict("waiting", step.check_no_waiting, Target("cpu"))
    assert not good
    assert "FAILED: RuntimeError: called a synchronizing CUDA operation" in lines[0]
    assert sync_debug.mode == 0


@pytest.fixture
def cuda_graphs(monkeypatch):
    pretend_graphs(monkeypatch)


def test_a_recorded_step_does_what_eager_steps_do(cuda_graphs):
    lines, good = reporting.verdict("graph", step.check_graph, Target("cpu"))
    assert good, lines
    assert " 0 of " in lines[0]


FROZEN = {  # read by the host, so fixed when the step is recorded
    "a number": lambda bank, ready: ready | (int(bank.num_pushes) > 1),
    "a new tensor": lambda bank, ready: torch.tensor(ready.tolist()),
}


@pytest.mark.parametrize("fault", FROZEN)
def test_a_step_that_freezes_what_it_read_is_wrong(cuda_graphs, monkeypatch, fault):
    ready = MemoryBank.ready
    monkeypatch.setattr(
        MemoryBank, "ready", lambda bank, *more: FROZEN[fault](bank, ready(bank, *more))
    )
    lines, good = reporting.verdict("graph", step.check_graph, Target("cpu"))
    assert not good, lines
    assert "WRONG" in lines[0]
