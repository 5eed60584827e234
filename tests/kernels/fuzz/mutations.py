"""Mutations of valid arguments. New layouts keep the values, so results must not change. Others may be refused."""

import random

import torch
from torch import Tensor

from dgcl_ops.doctor.cases.tensors import guarded

from .samples import schema

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
    *(torch.complex64, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    torch.uint64,
)
# 2^31 - 1 is not among them: the rules allow it, but memory does not.
INTEGERS = (0, 1, -1, 2, 7, 100, 4096, 2**31, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63))
NUMBERS = (0.0, -0.0, -1.0, 1e-300, 1e-30, 1e30, 1e300, torch.nan, torch.inf, -torch.inf)
STRANGE = (None, True, 3.5, "x", "", [], [[]], {}, 2**63, 1j)


class Subclass(Tensor):
    pass


def written(op: str) -> list[str]:
    return [a.name for a in schema(op).arguments if a.alias_info and a.alias_info.is_write]


def tensors(given: dict) -> list[str]:
    return [name for name, value in given.items() if isinstance(value, Tensor)]


# ---- layouts ------------------------------------------------------------------------------------------


def stepped(rng: random.Random, t: Tensor) -> Tensor:
    """Every second or third element of a larger tensor, along one dimension."""
    if t.dim() == 0:
        return t
    along, step = rng.randrange(t.dim()), rng.choice((2, 3))
    shape = [*t.shape]
    shape[along] = shape[along] * step + 1
    view = torch.zeros(shape, dtype=t.dtype).narrow(along, rng.choice((0, 1)), shape[along] - 1)
    view = view[(slice(None),) * along + (slice(None, None, step),)]
    view.copy_(t)
    return view


def transposed(rng: random.Random, t: Tensor) -> Tensor:
    if t.dim() < 2:
        return t
    a, b = rng.sample(range(t.dim()), 2)
    return t.transpose(a, b).contiguous().transpose(a, b)


def moved(rng: random.Random, t: Tensor) -> Tensor:
    """Puts a tensor into the middle of its storage."""
    before = rng.choice((1, 3, 16))
    base = torch.zeros(before + t.numel() + 5, dtype=t.dtype)
    view = base[before : before + t.numel()].view(t.shape)
    view.copy_(t)
    return view


def fenced(rng: random.Random, t: Tensor) -> Tensor:
    """Under AddressSanitizer, memory between the rows must not be accessed."""
    if t.dim() == 0 or t.numel() == 0:
        return t
    view = guarded(t)
    view.is_fenced = True
    return view


def learned(rng: random.Random, t: Tensor) -> Tensor:
    return t.requires_grad_() if t.is_floating_point() and t.is_leaf else t


def subclassed(rng: random.Random, t: Tensor) -> Tensor:
    return t.as_subclass(Subclass)


LAYOUTS = (stepped, transposed, moved, fenced, learned, subclassed)
RING_LAYOUTS = (moved, subclassed)  # they must be contiguous


def change_layout(rng: random.Random, op: str, given: dict) -> str:
    name = rng.choice(tensors(given))
    layout = rng.choice(RING_LAYOUTS if name in written(op) else LAYOUTS)
    given[name] = layout(rng, given[name])
    return f"{name} {layout.__name__}"


# ---- what may be refused ------------------------------------------------------------------------------


def other_dtype(rng: random.Random, t: Tensor) -> Tensor:
    return t.to(rng.choice(DTYPES))


def other_shape(rng: random.Random, t: Tensor) -> Tensor:
    dim = rng.randrange(max(1, t.dim()))
    if t.dim() == 0:
        return t.expand(rng.choice((0, 1, 3)))
    size = t.shape[dim]
    kinds = {
        "one fewer": lambda: t.narrow(dim, 0, max(0, size - 1)),
        "one more": lambda: torch.cat([t, t.narrow(dim, 0, 1) if size else t], dim),
        "none": lambda: t.narrow(dim, 0, 0),
        "one more dimension": lambda: t.unsqueeze(dim),
        "one fewer dimension": lambda: t.select(dim, 0) if size else t.sum(dim).to(t.dtype),
        "flat": lambda: t.reshape(-1),
        "turned": lambda: t.mT if t.dim() > 1 else t,
        "repeated": lambda: (t.narrow(dim, 0, 1) if size else t).expand(
            *t.shape[:dim], rng.choice((0, 1, size, 50)) if size else -1, *t.shape[dim + 1 :]
        ),
        "empty and large": lambda: t.new_empty(
            [0 if i == dim else rng.choice((s, s, 500)) for i, s in enumerate(t.shape)]
        ),
    }
    return kinds[rng.choice(tuple(kinds))]()


def other_values(rng: random.Random, t: Tensor) -> Tensor:
    t = t.clone(memory_format=torch.contiguous_format)
    flat = t.view(-1)
    for _ in range(rng.choice((1, 1, 3)) if t.numel() else 0):
        at = rng.randrange(t.numel())
        if t.dtype.is_floating_point:
            flat[at] = torch.tensor(rng.choice(NUMBERS), dtype=torch.float64)
        elif t.dtype in (torch.int64, torch.int32):
            near = int(flat[at]) + rng.choice((-1, 1))
            kind = torch.iinfo(t.dtype)
            flat[at] = max(kind.min, min(kind.max, rng.choice((near, near, *INTEGERS))))
    return t


def elsewhere(rng: random.Random, t: Tensor) -> Tensor:
    return t.to("meta")


def sparse(rng: random.Random, t: Tensor) -> Tensor:
    return t.to_sparse() if t.dim() else t


def inference(rng: random.Random, t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t.clone()


HOSTILE = (
    *(other_dtype, other_shape, other_shape, other_values, other_values, other_values),
    *(elsewhere, sparse, inference, stepped, transposed),
)


def shared(rng: random.Random, given: dict, name: str) -> Tensor:
    """Another argument's tensor, or a view of its memory in this argument's shape."""
    other, t = given[rng.choice(tensors(given))], given[name]
    if rng.random() < 0.3 or other.layout != torch.strided or other.is_meta:
        return other
    flat = other.detach().reshape(-1)
    if flat.dtype != t.dtype and flat.element_size() == t.element_size():
        flat = flat.view(t.dtype)
    unused = flat.numel() - t.numel()
    if unused < 0 or flat.dtype != t.dtype:
        return other
    at = rng.randint(0, unused)
    return flat[at : at + t.numel()].view(t.shape)


def change_argument(rng: random.Random, op: str, given: dict) -> str:
    """Replaces one argument with another, which the operator may refuse."""
    name = rng.choice(tuple(given))
    value = given[name]
    if rng.random() < 0.05:
        given[name] = rng.choice(STRANGE)
        return f"{name} = {given[name]!r}"
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta:
        if rng.random() < 0.15:
            given[name] = shared(rng, given, name)
            return f"{name} shared"
        change = rng.choice(HOSTILE)
        try:
            given[name] = change(rng, value.detach().as_subclass(Tensor))
        except NotImplementedError:  # PyTorch has no such tensor
            return "nothing"
        shown = [*given[name].shape], given[name].dtype
        return f"{name} {change.__name__}: {shown[1]} {shown[0]}"
    if isinstance(value, bool):
        given[name] = not value
    elif isinstance(value, int):
        # 2^31 random words are allowed as well.
        given[name] = rng.choice([n for n in INTEGERS if (name, n) != ("count", 2**31)])
    elif isinstance(value, float):
        given[name] = rng.choice(NUMBERS)
    elif isinstance(value, str):
        given[name] = rng.choice(("", "l2", "Cosine", "dot\0", "é" * 300))
    elif isinstance(value, list):
        given[name] = rng.choice(([], [rng.choice(INTEGERS)], [*value, 0], [3] * 300))
    elif (
        value is None
    ):  # optional tensors, int64 vectors except for rows, other_maps and confidence
        number = rng.choice((0, 1, 3))
        given[name] = torch.randint(-1, 4, (number,))
    return f"{name} = {given[name]!r}"[:200]
