"""Defines the operators and says which implementation serves which device.

`define()` gives PyTorch an operator's schema and registers `reference.py`'s version of it under a key that PyTorch
consults only where a device has no kernel of its own. The compiled extension adds such kernels, for each device it
was built for. Without the extension plain PyTorch serves every device, slower. The first such call on a device type
warns; with DGCL_OPS_REQUIRE_COMPILED=1 it is an error.
"""

import functools
import os
import re
import sys
import warnings
from collections.abc import Callable
from importlib.machinery import PathFinder

import torch

from dgcl_ops import _checks

NAMESPACE = "dgcl_ops"
REQUIRE_COMPILED = "DGCL_OPS_REQUIRE_COMPILED"
DEVICE_KEYS = {"cpu": "CPU", "cuda": "CUDA", "mps": "MPS", "xpu": "XPU"}
MINIMUM_TORCH = (2, 10)
FALLBACKS: dict[str, Callable] = {}  # by operator
SCHEMAS: dict[str, str] = {}


def _refuse_old_torch(version: str) -> None:
    if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < MINIMUM_TORCH:
        oldest = ".".join(map(str, MINIMUM_TORCH))
        raise ImportError(f"dgcl_ops needs PyTorch {oldest} or later, found {version}.")


def _has(module: str) -> bool:
    """Whether this very package has it. An editable install's finder would add what another source tree has."""
    name = f"{NAMESPACE}.{module}"
    if name in sys.modules:
        return sys.modules[name] is not None
    return PathFinder.find_spec(name, [os.path.dirname(__file__)]) is not None


def _load():
    """The compiled extension, or None if this build has none. One that does not load is an error."""
    if not _has("_C"):
        return None
    try:
        from dgcl_ops import _C
    except ImportError as error:
        raise ImportError(
            f"dgcl_ops: the compiled extension dgcl_ops._C is installed but does not load ({error}); "
            "reinstall dgcl_ops, or build it from the source tree with "
            "`pip install --no-build-isolation -e .`"
        ) from error
    return _C


def why_not_built() -> str:
    """Why there is no extension, as the build recorded it."""
    if not _has("_build"):
        return "this source tree was not installed"
    from dgcl_ops import _build

    return _build.WITHOUT_EXTENSION


_refuse_old_torch(torch.__version__)
_C = _load()
library = torch.library.Library(NAMESPACE, "FRAGMENT")
_warned_devices: set[str] = set()


def require_compiled() -> bool:
    """Whether the environment forbids the plain PyTorch implementation."""
    return os.environ.get(REQUIRE_COMPILED, "0") not in ("", "0")


def _announce_fallback(op: str, device: str) -> None:
    if require_compiled():
        raise RuntimeError(
            f"{op}: device must have a compiled kernel because {REQUIRE_COMPILED} is set, got {device}"
            + ("" if _C else f" (built without the extension: {why_not_built()})")
        )
    if device in _warned_devices:
        return
    _warned_devices.add(device)
    if _C:
        why = f"{op} has no compiled kernel for device type {device!r}"
        remedy = ""
    else:
        why = f"this build has no compiled extension ({why_not_built()}) for device type {device!r}"
        remedy = (
            "With a C++20 compiler, reinstall dgcl_ops from source with DGCL_OPS_EXTENSION=1; the error then says "
            "what is missing. "
        )
    warnings.warn(
        f"dgcl_ops: {why}; plain PyTorch runs instead, slower and with class offsets copied to the host. "
        f"{remedy}Set {REQUIRE_COMPILED}=1 to make this an error. This warning appears once per device type.",
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


def _register_fallback(op: str, function) -> None:
    @functools.wraps(function)
    def fallback(*args, **kwargs):
        given = _by_name(op, args, kwargs)
        _checks.check(op, given)
        tensor = next(value for value in given.values() if isinstance(value, torch.Tensor))
        _announce_fallback(op, tensor.device.type)
        return function(**given)

    library.impl(op, fallback, "CompositeExplicitAutograd")


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


def _serving(device: str, key: str) -> dict:
    """Implementation and reason, for a device type and its dispatch key."""
    compiled = [
        op
        for op in FALLBACKS
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{op}", key)
    ]
    if len(compiled) == len(FALLBACKS):
        reason = "the extension was built with kernels for this device type"
        if device == "cuda" and not torch.cuda.is_available():
            reason += (
                "; this PyTorch was built without CUDA"
                if torch.version.cuda is None
                else "; this machine shows PyTorch no such device"
            )
        return {"implementation": "compiled", "reason": reason}
    missing = ", ".join(sorted(set(FALLBACKS) - set(compiled))) if compiled else "any operator"
    reason = f"the extension has no kernel for {missing} on this device type"
    if _C is None:
        reason = f"built without the extension: {why_not_built()}"
    if require_compiled():
        return {"implementation": "error", "reason": f"{reason}, and {REQUIRE_COMPILED} is set"}
    return {"implementation": "reference" if not compiled else "mixed", "reason": reason}


def backend_info() -> dict:
    """What is installed, and which implementation serves each device type, with the reason.

    Returns:
        dict with
            version: of dgcl_ops.
            torch: version of PyTorch in use.
            extension: path of the compiled extension; None without one.
            build: how the extension was built, or why it was not.
            cpu_capability: instruction set in use on this processor ("avx512_vnni", "avx512", "avx2",
                "portable"); None without the extension.
            devices: per device type, {"implementation": "compiled" | "mixed" | "reference" | "error",
                "reason": why}.
            require_compiled: whether DGCL_OPS_REQUIRE_COMPILED forbids the plain PyTorch path.

    Example:
        >>> dgcl_ops.backend_info()["devices"]["cpu"]["implementation"]
        'compiled'
    """
    from dgcl_ops import __version__

    return {
        "version": __version__,
        "torch": torch.__version__,
        "extension": _C.__file__ if _C else None,
        "build": _C.build_info() if _C else f"without the extension: {why_not_built()}",
        "cpu_capability": _C.cpu_capability() if _C else None,
        "devices": {device: _serving(device, key) for device, key in DEVICE_KEYS.items()},
        "require_compiled": require_compiled(),
    }
