"""What the emulator's workers do."""

import contextlib
import re
from pathlib import Path

import torch

from dgcl_ops.doctor.cases import Case, all_cases, tensors
from dgcl_ops.doctor.checks import check_cases
from dgcl_ops.doctor.compare import Comparison, Target
from kernels.harness.worker import poison_function

from . import build

LONG_UNDER = "random"


class Emulated(Target):
    """The CUDA kernels on CPU tensors."""

    namespace = build.NAMESPACE

    def __init__(self):
        super().__init__("cpu")
        self.checks_values = False

    def kernels(self):
        return no_memory_is_zero()

    def expected(self, function, *arguments):
        """On this thread, because ThreadSanitizer does not know the threads of the CPU operators."""
        return function(*arguments)


@contextlib.contextmanager
def no_memory_is_zero():
    """PyTorch fills new memory with NaNs, which exposes a kernel that skips an output or reads unwritten memory."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def prepare() -> None:
    tensors.poison = poison_function()
    all_cases()
    with no_memory_is_zero():  # the first time loads much
        pass


def run(job: str, file: str, schedule: str, seed: int, **arguments) -> None:
    emulator = build.load(file=Path(file))
    emulator.configure(schedule, seed, shared_kilobytes=build.SHARED_KILOBYTES[schedule])
    {"self_test": self_test, "cases": cases}[job](emulator, schedule=schedule, **arguments)


def self_test(emulator, name: str, schedule: str) -> None:
    assert emulator.self_test(name), f"{name}: wrong values"


def chosen(
    case: Case, schedule: str, thread: bool, names: list[str] | None = None, bulk: bool = True
) -> bool:
    if names is not None:
        return case.name in names
    if thread:
        return case.thread
    return (schedule == LONG_UNDER and (bulk or not case.bulk)) or not (case.long or case.bulk)


def cases(emulator, op: str, schedule: str, thread: bool = False, **choice) -> None:
    """Runs the named cases, or those for ThreadSanitizer, or all. Long ones run under one schedule only."""
    for case in all_cases()[op]:
        if chosen(case, schedule, thread, **choice):
            emulator.reset()  # forgets what earlier cases allowed the kernels
            print(f"{op} {case.name}", flush=True)  # named in a sanitizer's report
            comparison = Comparison(exact=True)
            check_cases(Emulated(), comparison, [case], float64=False)
            assert comparison.good, f"{op} {comparison.notes[0]}"
    launched = [case for case in all_cases()[op] if not case.may_be_refused]
    check_refused_launch(emulator, launched[-1])


def check_refused_launch(emulator, case: Case) -> None:
    """If CUDA refuses a launch, the operator raises. If driver and build do not fit, the error names the doctor."""
    for code, misfit in ((719, False), (35, True), (209, True), (222, True)):
        emulator.configure(refuse_launch=code)
        message = ""
        try:
            Emulated().run(case)
        except RuntimeError as error:
            message = str(error)
        named = re.search(rf"CUDA launch failed: .+ \(error {code}\)", message)
        assert named, f"{case.op}: a refused launch gave: {message!r}"
        assert ("python -m dgcl_ops.doctor" in message) == misfit, f"{case.op}: {message}"
        assert ("an earlier CUDA call may" in message) != misfit, f"{case.op}: {message}"
