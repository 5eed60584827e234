"""Runs one case and says what is wrong with its outcome.

If a case may be refused, it may end in an error of a documented type that names operator and argument. Otherwise the
fallback's checks must accept the arguments, and the results must equal those of `dgcl_ops.reference`. Only arguments
that are written may change, and nothing may change if there is an error.
"""

import random
from dataclasses import dataclass

import torch
from oracles import TOLERANCES, assert_close
from torch import Tensor

from dgcl_ops.ops import _checks, _registry

from . import mutations, samples

KINDS = (RuntimeError, TypeError, ValueError)  # NotImplementedError is a RuntimeError
# PyTorch's own errors, before it calls the operator, or for a result that does not fit into memory.
PYTORCH = (
    "DefaultCPUAllocator: can't allocate memory",
    "Overflow when unpacking long",
    "Storage size calculation overflowed",
    "numel: integer multiplication overflow",
    "Inplace update to inference tensor",
    "Inference tensors",
)
DIFFERENTIABLE = (
    "knn_topk",
    "knn_density",
    "density_contrast",
    "gather_rows",
    "gather_rows_backward",
)
EXACT = (
    *("finite_rows", "leading_rows", "draw_negatives", "class_table"),
    *("gather_rows", "gather_rows_backward"),
)
LARGE = 1e12  # products of such numbers may overflow, so values are not compared


@dataclass
class Outcome:
    problem: str | None
    refused: bool
    changes: list[str]


def plain(value):
    """A copy with its own memory and ordinary strides."""
    if not isinstance(value, Tensor):
        return int(value) if isinstance(value, bool) else value  # as the dispatcher does
    if value.layout != torch.strided:
        return value
    return value.detach().as_subclass(Tensor).clone(memory_format=torch.contiguous_format)


def memory_of(t: Tensor) -> Tensor:
    """The whole storage, or only the rows if they are fenced."""
    if getattr(t, "is_fenced", False):
        return plain(t)
    t = t.detach().as_subclass(Tensor)
    return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage()).clone()


def same_bits(a: Tensor, b: Tensor) -> bool:
    raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return torch.equal(*raw)


class Watched:
    """The memory of all arguments before the call."""

    def __init__(self, given: dict):
        self.tensors = {
            name: t
            for name, t in given.items()
            if isinstance(t, Tensor) and t.layout == torch.strided and not t.is_meta
        }
        self.before = {name: memory_of(t) for name, t in self.tensors.items()}

    def changed(self, allowed: list[str]) -> list[str]:
        """Arguments with memory that changed outside the views that may change."""
        may = [self.tensors[name] for name in allowed if name in self.tensors]
        names = []
        for name, t in self.tensors.items():
            old, now = self.before[name], memory_of(t)
            for view in may:
                if view.untyped_storage().data_ptr() == t.untyped_storage().data_ptr():
                    for memory in (old, now):
                        place = torch.empty(0, dtype=view.dtype).set_(memory.untyped_storage())
                        place = place.as_strided(view.shape, view.stride(), view.storage_offset())
                        place.zero_()
            if not same_bits(old, now):
                names.append(name)
        return names


def reference_answer(op: str, given: dict):
    """The fallback's results, or the tensors that it wrote. Raises an error if it refuses the arguments."""
    _checks.check(op, given)
    result = _registry.FALLBACKS[op](**given)
    if op == "memory_push":
        result = tuple(given[name] for name in mutations.written(op))
    return result if isinstance(result, tuple) else (result,)


def largest(given: dict) -> float:
    """The largest finite magnitude among the floats."""
    sizes = [0.0]
    for value in given.values():
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            usual = value.detach().double()
            usual = usual[usual.isfinite()]
            sizes += [float(usual.abs().max())] if usual.numel() else []
        elif isinstance(value, float):
            sizes += [abs(value), 1 / abs(value) if value else 0.0]
    return max(sizes)


def check_neighbours(given: dict, values: Tensor, indices: Tensor, magnitude: float) -> None:
    """Each index belongs to a row with that score. No row occurs twice. Indices and scores are missing together."""
    everything = {**given, "k": max(1, given["bank"].shape[-2])}
    scores, ranked = _registry.FALLBACKS["knn_topk"](**everything)
    by_row = torch.full_like(scores, -torch.inf)
    held = ranked >= 0
    query = torch.arange(len(scores))[:, None].expand_as(ranked)
    by_row[query[held], ranked[held]] = scores[held]
    assert torch.equal(indices >= 0, values > -torch.inf), "an index without a score"
    present = indices >= 0
    chosen = by_row.gather(1, indices.clamp(min=0)).masked_fill(~present, -torch.inf)
    assert_close(chosen, values, magnitude)
    in_order = indices.masked_fill(~present, 2**40).sort(1).values
    twice = (in_order.diff(dim=1) == 0) & (in_order[:, 1:] < 2**40)
    assert not bool(twice.any()), "a row twice"


def compare(op: str, given: dict, results: tuple, expected: tuple) -> None:
    for got, want in zip(results, expected, strict=True):
        assert got.shape == want.shape, f"shape {list(got.shape)}, not {list(want.shape)}"
        assert got.dtype == want.dtype, f"{got.dtype}, not {want.dtype}"
    results = tuple(plain(t) for t in results)
    size = largest(given)
    if size > LARGE and op not in EXACT:
        return
    columns = next(t.shape[-1] for t in given.values() if isinstance(t, Tensor)) if size else 1
    magnitude = max(1.0, size * size * max(1, columns))
    if op == "knn_topk":
        assert_close(results[0], expected[0], magnitude)
        check_neighbours(given, *results, magnitude)
        return
    for got, want in zip(results, expected, strict=True):
        if op in EXACT or not got.is_floating_point():
            assert torch.equal(got.nan_to_num(7.0), want.nan_to_num(7.0)), "other values"
            continue
        usual = want[want.isfinite()]
        scale = max(magnitude, float(usual.abs().max()) if usual.numel() else 0.0)
        if scale * TOLERANCES[got.dtype] < 1e30 and not near_overflow(usual):
            assert_close(got, want, scale)


def near_overflow(t: Tensor) -> bool:
    return bool((t.double().abs() > torch.finfo(t.dtype).max / 4).any())


def error_problem(op: str, given: dict, error: Exception) -> str | None:
    message = str(error)
    if not isinstance(error, KINDS):
        return f"{type(error).__name__}: {message}"
    if any(text in message for text in PYTORCH):
        return None
    if op not in message or not any(name in message for name in given):
        return f"the error names no operator or no argument: {message[:500]}"
    return None


def gradients(results, given: dict) -> None:
    """Runs the backward if the results have one."""
    learned = [t for t in given.values() if isinstance(t, Tensor) and t.requires_grad]
    reached = [t.sum() for t in results if isinstance(t, Tensor) and t.grad_fn is not None]
    if learned and reached:
        computed = torch.autograd.grad(sum(reached), learned, allow_unused=True)
        for t, gradient in zip(learned, computed, strict=True):
            assert gradient is None or gradient.shape == t.shape, "a gradient of another shape"


def make(op: str, seed: int, number: int) -> tuple[dict, list[str], bool]:
    """Arguments, how they were mutated, and whether they may be refused."""
    rng = random.Random(f"{op}/{seed}/{number}")
    torch.manual_seed(rng.getrandbits(40))
    torch.set_num_threads(rng.choice((1, 3)))
    given = samples.sample(op, rng)
    changes = [
        mutations.change_layout(rng, op, given) for _ in range(rng.choice((0, 0, 1, 1, 2, 4)))
    ]
    hostile = rng.choice((0, 0, 1, 1, 1, 2))
    changes += [mutations.change_argument(rng, op, given) for _ in range(hostile)]
    return given, changes, hostile > 0


def judge(op: str, seed: int, number: int) -> Outcome:
    given, changes, may_refuse = make(op, seed, number)
    watched, written = Watched(given), mutations.written(op)
    copies = {name: plain(value) for name, value in given.items()}
    unmade = any(
        isinstance(t, Tensor) and (t.is_meta or t.layout != torch.strided) for t in given.values()
    )
    try:
        results = getattr(torch.ops.dgcl_ops, op)(*given.values())
    except Exception as error:
        problem = error_problem(op, given, error)
        if problem is None and not may_refuse:
            problem = f"refused: {error}"
        if changed := watched.changed([]):
            problem = f"an error, and changed: {', '.join(changed)}"
        return Outcome(problem, True, changes)
    if changed := watched.changed(written):
        return Outcome(f"changed: {', '.join(changed)}", False, changes)
    results = tuple(given[name] for name in written) if written else results
    results = results if isinstance(results, tuple) else (results,)
    if unmade:
        wrong = [t.device for t in results if not t.is_meta]
        problem = f"a result on {wrong[0]} of a tensor without values" if wrong else None
        return Outcome(problem, False, changes)
    try:
        compare(op, copies, results, reference_answer(op, copies))
        if op in DIFFERENTIABLE:
            gradients(results, given)
    except Exception as error:
        return Outcome(f"{type(error).__name__}: {error}", False, changes)
    return Outcome(None, False, changes)
