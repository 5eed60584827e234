"""The two sides of the doctor's comparisons: the operators on the device under test, and what they must equal."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from dgcl_ops import _extension

SEARCH = "DGCL_OPS_CUDA_SEARCH"
# Largest difference allowed to the float64 reference, per size of what is compared: sums of at most a few hundred
# float32 products, each rounded to 6e-8, leave room of a factor of ten and more.
TOLERANCE = 2e-5


@contextlib.contextmanager
def environment(name: str, value: str | None):
    """The variable set to the value for a while; None leaves it alone."""
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


class Side:
    """The device under test. Called with a function and its arguments, runs it there and brings the result back.

    Attributes:
        device: its name.
        compiled: whether compiled kernels serve it: then selections equal the compiled CPU operators' exactly.
        search_paths: values of DGCL_OPS_CUDA_SEARCH to go through; (None,) where there is no choice.
    """

    def __init__(self, device: str):
        self.device = device
        kind = torch.device(device).type
        key = _extension.DEVICE_KEYS.get(kind)
        self.compiled = (
            key is not None and _extension._serving(kind, key)["implementation"] == "compiled"
        )
        self.search_paths = ("auto", "exact") if kind == "cuda" and self.compiled else (None,)

    def kernels(self):
        """A context in which the kernels under test are in force."""
        return contextlib.nullcontext()

    def __call__(self, function: Callable, *arguments, **options):
        arguments, options = move((arguments, options), self.device)
        with self.kernels():
            return move(function(*arguments, **options), "cpu")

    def twin(self, function: Callable, *arguments, **options):
        """By the compiled CPU operators: on another number of threads, should they themselves be under test."""
        with threads(1 if torch.get_num_threads() > 1 else 3):
            return function(*arguments, **options)


def move(values, device: str):
    """Nested tensors on another device; they keep their strides, and share their memory if they are there already."""

    def one(value):
        return value.detach().to(device) if isinstance(value, Tensor) else value

    return tree_map(one, values)


@dataclass
class Tally:
    """What one check has found."""

    exact: bool  # whether equal bits are promised
    elements: int = 0  # that were compared for equality
    unequal: int = 0
    worst: float = 0.0  # largest difference from float64, as a share of what is allowed
    notes: list[str] = field(default_factory=list)

    def same(self, what: str, ours, theirs) -> None:
        """Tensors, or tuples of them, must be equal in every element; NaN where the other is NaN."""
        if not self.exact:
            return
        if not isinstance(ours, Tensor):
            for part, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                self.same(f"{what}[{part}]", one, other)
            return
        self.elements += ours.numel()
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            self.unequal += 1
            self.notes.append(
                f"{what}: {ours.dtype} {list(ours.shape)}, not {theirs.dtype} {list(theirs.shape)}"
            )
            return
        wrong = (ours != theirs) & ~(ours.isnan() & theirs.isnan())
        if wrong.any():
            self.unequal += int(wrong.sum())
            at = tuple(wrong.nonzero()[0].tolist())
            self.notes.append(
                f"{what}: {int(wrong.sum())} of {ours.numel()} differ, first at {at}: "
                f"{ours[at].item()!r}, CPU {theirs[at].item()!r}"
            )

    def near(self, what: str, ours: Tensor, exact: Tensor, tolerance: float = TOLERANCE) -> None:
        """Within tolerance * largest magnitude of float64; the same NaN and infinities."""
        got, want = ours.double(), exact.double()
        finite = want.isfinite()
        special = torch.where(finite, 0.0, want)
        ours_special = torch.where(got.isfinite(), 0.0, got)
        alike = (special == ours_special) | (special.isnan() & ours_special.isnan())
        size = want[finite].abs().max().item() if finite.any() else 0.0
        error = torch.where(finite, (got - want).abs(), 0.0)
        share = torch.where(error > 0, error / (tolerance * size), 0.0)
        share = torch.where(alike, share, torch.inf)
        if share.numel() == 0:
            return
        worst = share.max().item()
        self.worst = max(self.worst, worst)
        if worst > 1:
            at = tuple(share.eq(worst).nonzero()[0].tolist())
            self.notes.append(f"{what}: at {at} {ours[at].item()!r}, float64 {exact[at].item()!r}")

    @property
    def good(self) -> bool:
        return self.unequal == 0 and self.worst <= 1

    def summary(self) -> str:
        equal = "equality not promised" if not self.exact else "not compared for equality"
        if self.elements:
            equal = f"{self.unequal:,} of {self.elements:,} unequal"
        return f"{equal}, error {self.worst:.2f} of allowed"
