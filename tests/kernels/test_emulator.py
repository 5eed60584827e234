"""The emulator tests itself, and then runs every CUDA kernel under the sanitizers.

A tool that reports nothing may simply not work. So small kernels (kernels/emulator/self_test_kernels.cuh) contain
faults, and the tests say which mode must find each.
"""

import contextlib
import functools
import math
import re
import subprocess

import pytest
import torch

from dgcl_ops.doctor.cases import all_cases
from kernels.emulator import build
from kernels.harness.worker import Worker

if not build.CSRC.exists():
    pytest.skip("the emulator needs csrc/, which is missing here", allow_module_level=True)

# The modes that find a fault of the self-test: plain under at least one schedule, the others under all.
CAUGHT = {
    "transpose/missing_barrier_before_read": {"plain", "address", "thread"},
    "transpose/missing_barrier_before_write": {"plain", "address", "thread"},
    "transpose/barrier_in_branch": {"plain", "address", "thread"},
    "transpose/shared_out_of_bounds": {"plain", "address", "thread"},
    "sum/mask_too_wide": {"plain", "address", "thread"},
    "sum/lane_exited": {"plain", "address", "thread"},
    "sum/uninitialised_shared": {"plain", "address", "thread"},
    # Blocks run one after another, so only their order shows it.
    "sum/race_between_blocks": {"thread"},
    # A vote synchronises all lanes, so the values are always right.
    "reverse/missing_syncwarp": {"thread"},
    "twice/misaligned_vector": {"plain", "address", "thread"},
    "twice/alignment_too_low": {"plain", "address", "thread"},
    "twice/global_out_of_bounds": {"address"},
    "product/copy_never_waited_for": {"plain", "address", "thread"},
    "product/copy_waited_for_too_late": {"plain"},  # where copies land late
    "product/copy_overwrites_what_is_read": {"plain", "address", "thread"},
}
REPORTS = {  # the mode that reports it, and its text
    "transpose/barrier_in_branch": ("plain", "divergent __syncthreads at self_test_kernels.cuh"),
    "transpose/shared_out_of_bounds": ("address", "use-after-poison"),
    "sum/mask_too_wide": ("plain", "deadlock in block"),
    "sum/lane_exited": ("plain", "which has exited or does not exist|waits for it"),
    "sum/race_between_blocks": ("thread", "data race .*sum_kernel"),
    "reverse/missing_syncwarp": ("thread", "data race .*reverse_kernel"),
    "twice/misaligned_vector": ("plain", "misaligned address, 4 bytes beyond a multiple of 16"),
    "twice/alignment_too_low": ("plain", "misaligned address, 4 bytes beyond a multiple of 16"),
    "twice/global_out_of_bounds": ("address", "heap-buffer-overflow"),
    "product/copy_never_waited_for": ("plain", "cp.async copies never waited for"),
}
SCHEDULES = {"plain": build.SCHEDULES, "address": ("reverse",), "thread": ("reverse",)}


@pytest.fixture(scope="module")
def workers():
    """One process per mode, which forks for every run."""
    with contextlib.ExitStack() as stack:
        started = {}

        def start(mode):
            if mode not in started:
                build.build(mode)
                started[mode] = stack.enter_context(Worker("emulator", mode, seconds=1200))
            return functools.partial(started[mode].run, file=build.module(mode).file)

        yield start


def self_test(workers, mode, name):
    return [
        workers(mode)("self_test", name=name, schedule=schedule, seed=seed)
        for seed, schedule in enumerate(SCHEDULES[mode])
    ]


def names():
    return build.load("plain").self_tests()


def test_every_planted_fault_has_its_line():
    assert {name for name in names() if "/" in name} == set(CAUGHT)
    kernels = {name.partition("/")[0] for name in CAUGHT}
    assert kernels == {name for name in names() if "/" not in name}


@pytest.mark.parametrize("mode", build.MODES)
def test_kernels_without_faults_are_clean(workers, mode):
    for name in {name.partition("/")[0] for name in CAUGHT}:
        for schedule in build.SCHEDULES:
            result = workers(mode)("self_test", name=name, schedule=schedule, seed=7)
            assert result.clean, f"{name}, {schedule}:\n{result.output}"


@pytest.mark.parametrize(
    ("name", "mode"), [(name, mode) for name, modes in CAUGHT.items() for mode in sorted(modes)]
)
def test_planted_faults_are_found(workers, name, mode):
    results = self_test(workers, mode, name)
    assert any(not result.clean for result in results)
    mode_that_reports, text = REPORTS.get(name, (None, ""))
    if mode_that_reports == mode:
        outputs = "\n".join(result.output for result in results)
        assert re.search(text, outputs), outputs


def test_two_faults_give_right_values_without_the_race_detector():
    emulator = build.load("plain")
    emulator.configure("sequential", 1)
    assert emulator.self_test("sum/race_between_blocks")
    assert emulator.self_test("reverse/missing_syncwarp")


# ---- the tool's own arithmetic --------------------------------------------------------------------


def test_sixteen_bit_conversions_are_those_of_pytorch():
    """Every half and bfloat16, and numbers between two of them, including ties."""
    emulator = build.load("plain")
    for dtype, name in ((torch.float16, "half"), (torch.bfloat16, "bfloat16")):
        words = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
        values = words.view(dtype).float()
        widened = torch.tensor(emulator.widen(name, words.tolist()), dtype=torch.float32)
        assert torch.equal(widened.nan_to_num(7.0), values.nan_to_num(7.0))
        near = values[values.isfinite()].view(torch.int32)
        steps = torch.tensor([-(1 << 12), -1, 0, 1, 1 << 12, (1 << 12) + 1, 1 << 15])
        around = (near[:, None] + steps.to(torch.int32)).view(torch.float32).reshape(-1)
        around = torch.cat([around, torch.tensor([math.inf, -math.inf, 1e38, -1e38, 1e-45])])
        around = around[~around.isnan()]
        rounded = torch.tensor(emulator.narrow(name, around.tolist()), dtype=torch.int32)
        assert torch.equal(rounded.to(torch.int16), around.to(dtype).view(torch.int16))
        assert emulator.narrow(name, [math.nan]) == [0x7FFF]


@pytest.mark.parametrize("schedule", build.SCHEDULES)
def test_matrix_products_stay_within_what_hardware_may_do(schedule):
    """Sixteen products and a start value, in any order, with low bits cut off at any step."""
    emulator = build.load("plain")
    generator = torch.Generator().manual_seed(3)
    seen = set()
    for seed in range(20):
        emulator.configure(schedule, seed)
        a = torch.randn(16, 16, generator=generator).half()
        b = torch.randn(8, 16, generator=generator).half()
        c = torch.randn(16, 8, generator=generator)
        words = [t.view(torch.int16).flatten().tolist() for t in (a, b)]
        got = torch.tensor(emulator.matrix_product(*words, c.flatten().tolist())).view(16, 8)
        exact = a.double() @ b.double().T + c
        size = a.double().abs() @ b.double().abs().T + c.abs()
        # each of 16 additions may lose one bit of the largest partial sum
        assert ((got - exact).abs() <= 17 * 2.0**-23 * size).all()
        seen.add(bool((got == exact.float()).all()))
    assert False in seen  # rounding did happen


def test_limits_of_a_launch():
    emulator = build.load("plain")
    emulator.configure("sequential", shared_kilobytes=100)
    emulator.reset()
    with pytest.raises(RuntimeError, match="a block may have 1 to 1024 threads"):
        emulator.try_launch(1, 1025, 0, 0)
    with pytest.raises(RuntimeError, match="a grid may have"):
        emulator.try_launch(0, 32, 0, 0)
    kib = 1024
    emulator.try_launch(2, 32, 47 * kib, 0)
    with pytest.raises(RuntimeError, match="is cudaFuncSetAttribute missing"):
        emulator.try_launch(1, 32, 50 * kib, 0)
    with pytest.raises(RuntimeError, match="was not called"):  # with 1 KiB of static memory
        emulator.try_launch(1, 32, 47 * kib + 1, 0)
    emulator.try_launch(1, 32, 98 * kib, 98 * kib)
    with pytest.raises(RuntimeError, match="more than 101376"):
        emulator.try_launch(1, 32, 98 * kib + 16, 99 * kib)
    with pytest.raises(RuntimeError, match="invalid argument"):
        emulator.try_launch(1, 32, 0, 100 * kib)
    emulator.reset()
    with pytest.raises(RuntimeError, match="is cudaFuncSetAttribute missing"):
        emulator.try_launch(1, 32, 50 * kib, 0)


@pytest.mark.parametrize(
    "text",
    [
        "__global__ void k(unsigned* p) { *p = __activemask(); }",
        "__global__ void k(float* p) { *p = __expf(*p); }",
        "__global__ void k(float* p) { *p = __fdividef(*p, 3.0f); }",
        "__global__ void k(float* p) { atomicMax(p, 1.0f); }",
        "__global__ void k(unsigned long* p) { atomicAdd(p, 1ul); }",
        "struct S { int a, b; }; __global__ void k(S* p) { *p = __shfl_sync(~0u, *p, 0); }",
        "__global__ void k(int* p, unsigned q) { *p = max(*p, q); }",
    ],
)
def test_what_must_not_compile(text, tmp_path):
    """Features that CUDA lacks, or that these kernels must not use."""
    source = tmp_path / "k.cu"
    begin = '#include "cuda_emulator.h"\n'
    command = [*build.kernel_command("plain").split(), "-x", "c++", "-fsyntax-only", str(source)]
    source.write_text(begin + "__global__ void k(int* p) { *p = max(*p, 1); }\n")
    subprocess.run(command, check=True, capture_output=True)
    source.write_text(begin + text + "\n")
    assert subprocess.run(command, capture_output=True).returncode != 0


# ---- the kernels ----------------------------------------------------------------------------------

OPERATORS = sorted(all_cases())


def test_every_operator_has_cases():
    from dgcl_ops.ops import _registry

    assert set(OPERATORS) == set(_registry.FALLBACKS)


@pytest.mark.parametrize("schedule", build.SCHEDULES)
@pytest.mark.parametrize("op", OPERATORS)
def test_values(workers, op, schedule):
    result = workers("plain")("cases", op=op, schedule=schedule, seed=2)
    assert result.clean, result.output


@pytest.mark.parametrize("op", OPERATORS)
def test_under_address_sanitizer(workers, op):
    """Bounds of global and shared memory, and undefined behaviour.

    Skips the cases marked `bulk`, which take minutes here. `python -m kernels emulator --mode address --schedule
    random` runs them.
    """
    result = workers("address")("cases", op=op, schedule="random", seed=3, bulk=False)
    assert result.clean, result.output


@pytest.mark.parametrize("op", OPERATORS)
def test_under_thread_sanitizer(workers, op):
    """Barriers. Two accesses that no barrier orders are a race under any schedule."""
    result = workers("thread")("cases", op=op, thread=True, schedule="random", seed=4)
    assert result.clean, result.output
