"""Registers the operators: schema, fallback, fake kernel, autograd, vmap.

`define()` gives PyTorch an operator's schema. It also registers the implementation in `reference` under a key that
PyTorch uses only for devices without a kernel. The compiled extension adds kernels for the devices that it was built
for. Without the extension, every device uses plain PyTorch, which is slower. The first such call on a device type
warns. With DGCL_OPS_REQUIRE_COMPILED=1 it is an error.

torch.library registers derivatives for `torch.autograd` only. Without the checks here, torch.func's grad, vjp and
jacrev fail with an error about `setup_context` (PyTorch 2.13), and forward-mode derivatives are silently 0.
"""

import functools
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dgcl_ops import _extension
from dgcl_ops._extension import NAMESPACE, REQUIRE_COMPILED
from dgcl_ops.ops import _checks

Function = Callable[..., Any]

FALLBACKS: dict[str, Function] = {}  # by operator
SCHEMAS: dict[str, str] = {}
library = torch.library.Library(NAMESPACE, "FRAGMENT")
_warned_devices: set[str] = set()
_INTERNAL = tuple(os.path.dirname(path) + os.sep for path in (torch.__file__, _extension.__file__))


def define(schema: str, fallback: Function) -> None:
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


def _register_fallback(op: str, function: Function) -> None:
    @functools.wraps(function)
    def fallback(*args: Any, **kwargs: Any) -> Any:
        given = _by_name(op, args, kwargs)
        _checks.check(op, given)
        tensor = next(value for value in given.values() if isinstance(value, torch.Tensor))
        _announce_fallback(op, tensor.device.type)
        return function(**given)

    library.impl(op, fallback, "CompositeExplicitAutograd")


def _announce_fallback(op: str, device: str) -> None:
    why_not = _extension.why_not_built() if _extension._C is None else None
    if _extension.require_compiled():
        raise RuntimeError(
            f"{op}: no compiled kernel for device type {device!r}, and {REQUIRE_COMPILED} is set"
            + (f" (built without the extension: {why_not})" if why_not else "")
        )
    if device in _warned_devices:
        return
    _warned_devices.add(device)
    why, remedy = f"{op} has no compiled kernel for device type {device!r}", ""
    if why_not:
        why = f"this build has no compiled extension ({why_not})"
        remedy = "Reinstall with DGCL_OPS_EXTENSION=1 to build the extension; if that fails, the error says why. "
    warnings.warn(
        f"dgcl_ops: {why}; plain PyTorch runs on device type {device!r}, which is slower and copies class offsets to "
        f"the host. {remedy}Set {REQUIRE_COMPILED}=1 to make this an error. This warning appears once per device "
        "type.",
        UserWarning,
        stacklevel=_caller_level(),
    )


def _caller_level() -> int:
    """The `stacklevel` at which a warning of the calling function shows the first line outside dgcl_ops and PyTorch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INTERNAL):
        level, frame = level + 1, frame.f_back
    return level


def argument_names(op: str) -> list[str]:
    return [a.name for a in getattr(torch.ops.dgcl_ops, op).default._schema.arguments]


def _by_name(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name. PyTorch accepts None for a tensor that is not optional. Here it is an error."""
    given = dict(zip(argument_names(op), args, strict=False)) | kwargs
    for argument in getattr(torch.ops.dgcl_ops, op).default._schema.arguments:
        if str(argument.type) == "Tensor" and given.get(argument.name) is None:
            raise RuntimeError(f"{op}: {argument.name} must be a tensor, got None")
    return given


def register_fake(name: str) -> Callable[[Function], Function]:
    """`torch.library.register_fake`, with the checks of `check_basics` first.

    PyTorch runs the fake kernel as soon as one tensor is on the meta device.
    """
    op = name.removeprefix(f"{NAMESPACE}::")

    def register(function: Function) -> Function:
        @functools.wraps(function)
        def fake(*args: Any, **kwargs: Any) -> Any:
            _checks.check_basics(op, _by_name(op, args, kwargs))
            return function(*args, **kwargs)

        return torch.library.register_fake(name, fake)

    return register


# ---- autograd and torch.func ------------------------------------------------------------------------

_INSTEAD = "use backward() or torch.autograd.grad"


class _Refusing:
    """Stands in for a Library: registers a kernel that first refuses the derivatives which do not exist."""

    @staticmethod
    def impl(op: str, kernel: Function, key: str, **options: Any) -> None:
        names = argument_names(op)

        def refusing(keyset: Any, *args: Any) -> Any:
            given = [pair for pair in zip(names, args, strict=False) if isinstance(pair[1], Tensor)]
            if torch._C._are_functorch_transforms_active() and torch.is_grad_enabled():
                for name, tensor in given:
                    if tensor.requires_grad:
                        raise RuntimeError(
                            f"{op}: torch.func (grad, vjp, jacrev) cannot differentiate {name}, got a tensor of "
                            f"shape {list(tensor.shape)} that requires it; {_INSTEAD}"
                        )
            for name, tensor in given:
                if forward_ad.unpack_dual(tensor).tangent is not None:
                    raise RuntimeError(
                        f"{op}: forward-mode derivatives are not supported (torch.func.jvp, jacfwd, dual tensors), "
                        f"got {name} of shape {list(tensor.shape)} with a tangent; {_INSTEAD}"
                    )
            return kernel(keyset, *args)

        library.impl(op, refusing, key, **options)


def register_autograd(op: str, backward: Function, setup_context: Function | None = None) -> None:
    """`torch.library.register_autograd`, with errors for the derivatives that it does not give."""
    torch.library.register_autograd(op, backward, setup_context=setup_context, lib=_Refusing)


# ---- vmap -------------------------------------------------------------------------------------------


def leading(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor | None) -> list[Any]:
    """Each tensor, or None, with the mapped dimension in front: [V, ...]. Unmapped ones are expanded."""
    return [
        tensor
        if tensor is None
        else tensor.expand(info.batch_size, *tensor.shape)
        if dim is None
        else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, in_dims, strict=False)
    ]


def knn_batch(
    op: str,
    info: Any,
    in_dims: tuple[int | None, ...],
    queries: Tensor,
    bank: Tensor,
    query_offsets: Tensor | None,
    bank_counts: Tensor | None,
    exclude_self: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """V searches as one: queries [V * M, D], bank [V, N, D] and offsets [V + 1]; or one bank [N, D] for all."""
    if query_offsets is not None:
        raise RuntimeError(
            f"{op}: query_offsets is not supported under vmap; pass all groups in one call instead"
        )
    if bank_counts is not None:  # refused here, because the call below omits it
        raise RuntimeError(f"{op}: bank_counts is not supported under vmap")
    shared = in_dims[1] is None and not exclude_self
    queries, groups = leading(info, in_dims, queries, bank)
    offsets = torch.arange(info.batch_size + 1, device=queries.device) * queries.shape[1]
    rows = queries.flatten(0, 1)
    return (rows, bank, None) if shared else (rows, groups, offsets)


def refuse_vmap(op: str, instead: str) -> None:
    """Makes vmap over the operator raise an error that says what to do instead."""
    names = argument_names(op)

    def refuse(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> None:
        mapped = [name for name, dim in zip(names, in_dims, strict=False) if dim is not None]
        raise RuntimeError(
            f"{op}: vmap over {', '.join(mapped)} is not supported (batch size {info.batch_size}); {instead}"
        )

    torch.library.register_vmap(f"dgcl_ops::{op}", refuse, lib=library)
