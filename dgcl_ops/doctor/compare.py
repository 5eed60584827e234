"""The device under test, and comparisons of its results."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from dgcl_ops import backend
from dgcl_ops.doctor.cases import Case

SEARCH = "DGCL_OPS_CUDA_SEARCH"
# Allowed difference from float64, relative to the largest number. Sums of a few hundred float32 products, each rounded
# to 6e-8, stay below a tenth of it.
TOLERANCE = 2e-5


@contextlib.contextmanager
def environment(name: str, value: str | None):
    """Sets the variable inside the context. None leaves it alone."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


@contextlib.contextmanager
def threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Target:
    """The device under test. A call runs a function there and returns the result on the CPU.

    Attributes:
        device: its name.
        compiled: whether compiled kernels serve it. Then selections equal the compiled CPU operators' exactly.
        checks_values: whether the operators reject bad values such as a stray label. CUDA kernels clamp or skip them.
        search_paths: values of DGCL_OPS_CUDA_SEARCH to run; (None,) if there is no choice.
        namespace: of the raw operators.
    """

    namespace = "dgcl_ops"

    def __init__(self, device: str):
        self.device = device
        kind = torch.device(device).type
        key = backend.DEVICE_KEYS.get(kind)
        self.compiled = (
            key is not None and backend._serving(kind, key)["implementation"] == "compiled"
        )
        on_cuda = kind == "cuda" and self.compiled
        self.checks_values = not on_cuda
        self.search_paths = ("auto", "exact") if on_cuda else (None,)

    def kernels(self):
        """A context in which the operators run the kernels under test."""
        return contextlib.nullcontext()

    def __call__(self, function: Callable, *arguments, **options):
        arguments, options = move((arguments, options), self.device)
        with self.kernels():
            return move(function(*arguments, **options), "cpu")

    def expected(self, function: Callable, *arguments, **options):
        """Runs a function on the CPU operators, with a different number of threads in case they are under test."""
        with threads(1 if torch.get_num_threads() > 1 else 3):
            return function(*arguments, **options)

    def run(self, case: Case, arguments: tuple | None = None) -> list[Tensor] | None:
        """A case's results, or None if it raised an error that is allowed."""
        arguments = case.arguments() if arguments is None else arguments
        name, value = case.environment or (SEARCH, None)
        with environment(name, value):
            try:
                return self(call, self.namespace, case.op, case.changes, arguments)
            except RuntimeError as error:
                allowed = case.anything or (self.checks_values and case.may_be_refused)
                if not allowed or not str(error).startswith(case.op):
                    raise
            if case.repaired is None:
                return None
            return self(call, self.namespace, case.op, case.changes, case.repaired())


def call(namespace: str, op: str, changes: int, arguments: tuple) -> list[Tensor]:
    """The raw operator's results, or the arguments that it changes."""
    arguments = [a.clone() if i < changes else a for i, a in enumerate(arguments)]
    outputs = getattr(getattr(torch.ops, namespace), op)(*arguments)
    if changes:
        return arguments[:changes]
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def move(values, device: str):
    """Moves nested tensors to another device. They keep their strides. Tensors already there keep their memory."""

    def one(value):
        if not isinstance(value, Tensor):
            return value
        value = value.detach()
        if value.is_contiguous() or value.device.type == torch.device(device).type:
            return value.to(device)
        # to() makes a view dense. Its whole memory moves instead.
        memory = torch.empty(0, dtype=value.dtype, device=value.device).set_(
            value.untyped_storage()
        )
        return memory.to(device).as_strided(value.shape, value.stride(), value.storage_offset())

    return tree_map(one, values)


def as_integers(t: Tensor) -> Tensor:
    """Reinterprets the elements as integers of the same size."""
    size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
    return t.contiguous().view(size)


def bits(t: Tensor) -> Tensor:
    """`as_integers` with all NaNs made equal."""
    if not t.is_floating_point():
        return t
    return as_integers(torch.where(t.isnan(), torch.full_like(t, torch.nan), t))


@dataclass
class Comparison:
    """What the comparisons of one check found."""

    exact: bool  # whether equal bits are promised
    elements: int = 0  # compared for equality
    unequal: int = 0
    worst: float = 0.0  # largest difference from float64, as a share of the allowed one
    notes: list[str] = field(default_factory=list)

    def same(self, what: str, ours, theirs) -> None:
        """Tensors, or tuples of them, must have the same bits. All NaNs count as equal."""
        if not self.exact:
            return
        if not isinstance(ours, Tensor):
            for part, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                self.same(f"{what}[{part}]", one, other)
            return
        self.elements += ours.numel()
        if not self._same_kind(what, ours, theirs):
            return
        if torch.equal(as_integers(ours), as_integers(theirs)):
            return
        wrong = bits(ours) != bits(theirs)
        if wrong.any():
            self.unequal += int(wrong.sum())
            at = tuple(wrong.nonzero()[0].tolist())
            self.notes.append(
                f"{what}: {int(wrong.sum())} of {ours.numel()} differ, first at {at}: "
                f"{ours[at].item()!r}, CPU {theirs[at].item()!r}"
            )

    def _same_kind(self, what: str, ours: Tensor, theirs: Tensor) -> bool:
        if (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype):
            return True
        self.unequal += 1
        self.notes.append(
            f"{what}: {ours.dtype} {list(ours.shape)}, not {theirs.dtype} {list(theirs.shape)}"
        )
        return False

    def near(
        self, what: str, ours, exact, tolerance: float = TOLERANCE, source: str = "float64"
    ) -> None:
        """Tensors, or tuples of them: within tolerance * largest magnitude; the same NaNs and infinities."""
        if not isinstance(ours, Tensor):
            for part, (one, other) in enumerate(zip(ours, exact, strict=True)):
                self.near(f"{what}[{part}]", one, other, tolerance, source)
            return
        if ours.shape != exact.shape:
            self.worst = torch.inf
            self.notes.append(f"{what}: shape {list(ours.shape)}, {source} {list(exact.shape)}")
            return
        if ours.numel() == 0:
            return
        got, want = ours.double(), exact.double()
        error, size = (got - want).abs().max().item(), want.abs().max().item()
        if error <= tolerance * size < torch.inf:  # false with a NaN or an infinity
            self.worst = max(self.worst, error / (tolerance * size) if error else 0.0)
            return
        finite = want.isfinite()
        special = torch.where(finite, 0.0, want)
        ours_special = torch.where(got.isfinite(), 0.0, got)
        alike = (special == ours_special) | (special.isnan() & ours_special.isnan())
        size = want[finite].abs().max().item() if finite.any() else 0.0
        error = torch.where(finite, (got - want).abs(), 0.0)
        share = torch.where(error > 0, error / (tolerance * size), 0.0)
        share = torch.where(alike, share, torch.inf)
        worst = share.max().item()
        self.worst = max(self.worst, worst)
        if worst > 1:
            at = tuple(share.eq(worst).nonzero()[0].tolist())
            self.notes.append(
                f"{what}: at {at} got {ours[at].item()!r}, expected {exact[at].item()!r} ({source}), "
                f"error {worst:.3g} x tolerance"
            )

    @property
    def good(self) -> bool:
        return self.unequal == 0 and self.worst <= 1

    def summary(self) -> str:
        equal = "bit equality not guaranteed" if not self.exact else "bits not compared"
        if self.elements:
            equal = f"{self.unequal:,} of {self.elements:,} unequal"
        return f"{equal}, max error {self.worst:.2f} x tolerance"
