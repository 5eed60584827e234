"""Registers the operators: schema, fallback, fake kernel, autograd, vmap.

`define()` gives PyTorch an operator's schema and registers `reference`'s version of it under a key that PyTorch
consults only where a device has no kernel of its own. The compiled extension adds such kernels, for each device it
was built for. Without the extension plain PyTorch serves every device, slower. The first such call on a device type
warns; with DGCL_OPS_REQUIRE_COMPILED=1 it is an error.

A derivative that torch.library registers is for `torch.autograd` alone. Of torch.func's grad, vjp and jacrev PyTorch
(2.13) says only that a class lacks `setup_context`, and a forward-mode derivative it takes for 0.
"""

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dgcl_ops import _extension
from dgcl_ops._extension import NAMESPACE, REQUIRE_COMPILED
from dgcl_ops.ops import _checks

FALLBACKS: dict[str, Callable] = {}  # by operator
SCHEMAS: dict[str, str] = {}
library = torch.library.Library(NAMESPACE, "FRAGMENT")
_warned_devices: set[str] = set()


def define(schema: str, fallback: Callable) -> None:
    """Defines an operator. `fallback` runs it on devices without a compiled kernel."""
    op = schema.partition("(")[0]
    SCHEMAS[op], FALLBACKS[op] = schema, fallback
    library.define(schema)
    _register_fallback(op, fallback)


def define_in(namespace: str) -> torch.library.Library:
    """Defines the same operators in another namespace, for kernels built for it. They live as long as the result."""
    other = torch.library.Library(namespace, "FRAGMENT")
    for schema in SCHEMAS.values():
        other.define(schema)
    return other


def _register_fallback(op: str, function) -> None:
    @functools.wraps(function)
    def fallback(*args, **kwargs):
        given = _by_name(op, args, kwargs)
        _checks.check(op, given)
        tensor = next(value for value in given.values() if isinstance(value, torch.Tensor))
        _announce_fallback(op, tensor.device.type)
        return function(**given)

    library.impl(op, fallback, "CompositeExplicitAutograd")


def _announce_fallback(op: str, device: str) -> None:
    if _extension.require_compiled():
        raise RuntimeError(
            f"{op}: device must have a compiled kernel because {REQUIRE_COMPILED} is set, got {device}"
            + (
                ""
                if _extension._C
                else f" (built without the extension: {_extension.why_not_built()})"
            )
        )
    if device in _warned_devices:
        return
    _warned_devices.add(device)
    why, remedy = f"{op} has no compiled kernel for device type {device!r}", ""
    if _extension._C is None:
        why = f"this build has no compiled extension ({_extension.why_not_built()})"
        remedy = "DGCL_OPS_EXTENSION=1 makes a build with the extension, or says what is missing. "
    warnings.warn(
        f"dgcl_ops: {why}; plain PyTorch runs on device type {device!r}, slower and with class offsets copied to the "
        f"host. {remedy}Set {REQUIRE_COMPILED}=1 to make this an error. This warning appears once per device type.",
        UserWarning,
        stacklevel=3,
    )


def argument_names(op: str) -> list[str]:
    return [a.name for a in getattr(torch.ops.dgcl_ops, op).default._schema.arguments]


def _by_name(op: str, args: tuple, kwargs: dict) -> dict:
    """The arguments by name. PyTorch lets None pass for a tensor that is not optional: here it is an error."""
    given = dict(zip(argument_names(op), args, strict=False)) | kwargs
    for argument in getattr(torch.ops.dgcl_ops, op).default._schema.arguments:
        if str(argument.type) == "Tensor" and given.get(argument.name) is None:
            raise RuntimeError(f"{op}: {argument.name} must be a tensor, got None")
    return given


def register_fake(name: str):
    """As torch.library.register_fake, but what `check_basics` refuses is an error here, too: PyTorch runs the fake
    kernel as soon as one tensor is on the meta device."""
    op = name.removeprefix(f"{NAMESPACE}::")

    def register(function):
        @functools.wraps(function)
        def fake(*args, **kwargs):
            _checks.check_basics(op, _by_name(op, args, kwargs))
            return function(*args, **kwargs)

        return torch.library.register_fake(name, fake)

    return register


# ---- autograd and torch.func ------------------------------------------------------------------------

_INSTEAD = "use backward() or torch.autograd.grad"


class _Refusing:
    """Takes a kernel's registration, and registers one that refuses derivatives which the kernel does not have."""

    @staticmethod
    def impl(op: str, kernel, key: str, **options) -> None:
        names = argument_names(op)

        def refusing(keyset, *args):
            given = [pair for pair in zip(names, args, strict=False) if isinstance(pair[1], Tensor)]
            if torch._C._are_functorch_transforms_active() and torch.is_grad_enabled():
                for name, tensor in given:
                    if tensor.requires_grad:
                        raise RuntimeError(
                            f"{op}: {name} must not be differentiated by torch.func (grad, vjp, jacrev); {_INSTEAD}, "
                            f"got a tensor of shape {list(tensor.shape)} that is"
                        )
            for name, tensor in given:
                if forward_ad.unpack_dual(tensor).tangent is not None:
                    raise RuntimeError(
                        f"{op}: {name} must not have a tangent (torch.func.jvp, jacfwd, dual tensors), since there are "
                        f"no forward-mode derivatives; {_INSTEAD}, got one of shape {list(tensor.shape)}"
                    )
            return kernel(keyset, *args)

        library.impl(op, refusing, key, **options)


def register_autograd(op: str, backward, setup_context=None) -> None:
    """`torch.library.register_autograd`, with errors for the derivatives it does not give."""
    torch.library.register_autograd(op, backward, setup_context=setup_context, lib=_Refusing)


# ---- vmap -------------------------------------------------------------------------------------------


def leading(info, in_dims, *tensors: Tensor | None) -> list[Tensor | None]:
    """Each tensor with the mapped dimension in front: [V, ...]. Those that are not mapped over are expanded."""
    return [
        tensor
        if tensor is None
        else tensor.expand(info.batch_size, *tensor.shape)
        if dim is None
        else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, in_dims, strict=False)
    ]


def knn_batch(op, info, in_dims, queries, bank, query_offsets, bank_counts, exclude_self):
    """V searches as one: queries [V * M, D], bank [V, N, D] with offsets [V + 1], or the same bank [N, D] for all."""
    if query_offsets is not None:
        raise RuntimeError(
            f"{op}: query_offsets must be None under vmap, which makes the groups itself, got groups; write all of "
            "them into one call"
        )
    if (
        bank_counts is not None
    ):  # which without groups is an error of the operator's, and would be dropped here
        raise RuntimeError(
            f"{op}: bank_counts must be None under vmap, as there are no groups, got counts"
        )
    shared = in_dims[1] is None and not exclude_self
    queries, groups = leading(info, in_dims, queries, bank)
    offsets = torch.arange(info.batch_size + 1, device=queries.device) * queries.shape[1]
    rows = queries.flatten(0, 1)
    return (rows, bank, None) if shared else (rows, groups, offsets)


def refuse_vmap(op: str, instead: str) -> None:
    """Makes vmap over the operator an error that says what to do instead."""
    names = argument_names(op)

    def refuse(info, in_dims, *args):
        mapped = [name for name, dim in zip(names, in_dims, strict=False) if dim is not None]
        raise RuntimeError(
            f"{op}: {', '.join(mapped)} must not be mapped over by vmap, got {info.batch_size} of them; {instead}"
        )

    torch.library.register_vmap(f"dgcl_ops::{op}", refuse, lib=library)
