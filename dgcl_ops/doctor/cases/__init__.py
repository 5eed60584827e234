"""Small inputs for every operator, on which the emulated CUDA kernels must equal the CPU's.

They are made to reach every branch and every edge of the kernels: sizes one below, at and one above a warp or
a tile, odd lengths, empty and unequal classes, NaNs, ties, views. The sanitizers run them as well; those marked
`thread` also under ThreadSanitizer, which takes a hundred times as long.
"""

import contextlib
import functools
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

NAN, INF = float("nan"), float("inf")
LONG_UNDER = "random"


@dataclass(frozen=True)
class Case:
    op: str
    name: str
    arguments: Callable[[], tuple]  # of the raw operator
    thread: bool = False
    # What the CPU's operator gets instead, where it would refuse a value that CUDA clamps or skips.
    repaired: Callable[[], tuple] | None = None
    # The answer itself, where there is no such thing.
    answer: Callable[[], list[Tensor]] | None = None
    anything: bool = (
        False  # the answer has no meaning; that there is one says that no memory was hurt
    )
    # Relative to the largest number of a result; 0: the same bits.
    tolerance: float = 0.0
    environment: tuple[str, str] | None = None  # a variable that is set meanwhile
    changes: int = 0  # so many leading arguments are changed in place, and are the results
    long: bool = False  # many blocks: under the schedule LONG_UNDER only


def rows(*shape: int, dtype=torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers."""
    generator = torch.Generator().manual_seed(seed + zlib.crc32(repr(shape).encode()))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def whole_rows(*shape: int, dtype=torch.float32, seed: int = 0) -> Tensor:
    """Few different numbers: many ties."""
    return rows(*shape, seed=seed).clamp(-1, 1).round().to(dtype)


def subnormal(t: Tensor) -> Tensor:
    """The same rows, so short that every element is a subnormal number."""
    return t * 2.0 ** (-1060 if t.dtype == torch.float64 else -138)


def integers(values) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


@functools.cache
def all_cases() -> dict[str, list[Case]]:
    from . import cases_contrast, cases_copies, cases_gradient, cases_search

    found: dict[str, list[Case]] = {}
    for module in (cases_copies, cases_search, cases_gradient, cases_contrast):
        for case in module.cases():
            found.setdefault(case.op, []).append(case)
    for op, cases in found.items():
        assert len({case.name for case in cases}) == len(cases), f"{op}: two cases of one name"
    return found


def prepare() -> None:
    """Loads the CPU's operators."""
    from dgcl_ops import _extension  # noqa: F401

    all_cases()
    with no_memory_is_zero():  # the first time loads much
        pass


@contextlib.contextmanager
def no_memory_is_zero():
    """PyTorch fills what it allocates with NaNs: a kernel that leaves an output or reads what nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def run(namespace: str, case: Case, arguments: tuple) -> list[Tensor]:
    arguments = [a.clone() if i < case.changes else a for i, a in enumerate(arguments)]
    outputs = getattr(getattr(torch.ops, namespace), case.op)(*arguments)
    if case.changes:
        return arguments[: case.changes]
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def bits(t: Tensor) -> Tensor:
    """As integers; all NaNs alike."""
    if not t.is_floating_point():
        return t
    size = {2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
    return torch.where(t.isnan(), torch.full_like(t, NAN), t).contiguous().view(size)


def difference(got: Tensor, want: Tensor, tolerance: float) -> str | None:
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{list(got.shape)} {got.dtype} instead of {list(want.shape)} {want.dtype}"
    if tolerance == 0:
        wrong = bits(got) != bits(want)
    else:
        usual = want.isfinite()
        largest = want[usual].abs().max().item() if usual.any() else 0.0
        near = (got.double() - want.double()).abs() <= tolerance * largest
        wrong = ~torch.where(usual, near, bits(got) == bits(want))
    if not wrong.any():
        return None
    at = tuple(wrong.nonzero()[0].tolist())
    return (
        f"{int(wrong.sum())} of {wrong.numel()} values differ, first at {at}: "
        f"{got[at].item()!r} instead of {want[at].item()!r}"
    )


def check_case(case: Case) -> None:
    arguments = case.arguments()
    want = None
    if case.answer:
        want = case.answer()
    elif not case.anything:
        want = run("dgcl_ops", case, case.repaired() if case.repaired else arguments)
    variables = [case.environment] if case.environment else []
    with no_memory_is_zero(), mock.patch.dict(os.environ, variables):
        got = run("dgcl_emulated", case, arguments)
    for i, (g, w) in enumerate(zip(got, want or got, strict=True)):
        wrong = difference(g, w, case.tolerance)
        assert wrong is None, f"{case.op} {case.name}: result {i}: {wrong}"


def check_refused_launch(emulator, case: Case) -> None:
    """A launch that CUDA refuses is the operator's error. Where driver and build do not fit, it names the doctor."""
    for code, misfit in ((719, False), (35, True), (209, True), (222, True)):
        emulator.configure(refuse_launch=code)
        said = ""
        try:
            run("dgcl_emulated", case, case.arguments())
        except RuntimeError as error:
            said = str(error)
        named = f"the CUDA launch must succeed, got error {code}: "
        assert named in said, f"{case.op}: refused, but: {said}"
        assert ("python -m dgcl_ops.doctor" in said) == misfit, f"{case.op}: {said}"


def chosen(case: Case, schedule: str, thread: bool, names: list[str] | None) -> bool:
    if names is not None:
        return case.name in names
    return case.thread if thread else not case.long or schedule == LONG_UNDER


def check(
    emulator, op: str, schedule: str, thread: bool = False, names: list[str] | None = None
) -> None:
    """The cases named, or those that ThreadSanitizer can do, or all: the long ones under one schedule only."""
    for case in all_cases()[op]:
        if chosen(case, schedule, thread, names):
            emulator.reset()  # each sets up its kernels anew
            print(f"{op} {case.name}", flush=True)  # what runs when a sanitizer stops the process
            check_case(case)
    check_refused_launch(emulator, all_cases()[op][-1])
