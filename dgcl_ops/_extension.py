"""Loads the compiled operators and says which implementation serves which device.

The extension registers a kernel for each device it was built for. Every operator is registered a second
time, from `reference.py`, under a key that PyTorch consults only where a device has no kernel of its own:
so the library runs, slower, on any device. The first such call on a device type warns; with
DGCL_OPS_REQUIRE_COMPILED=1 it is an error.
"""

import functools
import os
import warnings

import torch

from dgcl_ops import _checks, reference, reference_backward

NAMESPACE = "dgcl_ops"
REQUIRE_COMPILED = "DGCL_OPS_REQUIRE_COMPILED"
DEVICE_KEYS = {"cpu": "CPU", "cuda": "CUDA", "mps": "MPS", "xpu": "XPU"}
FALLBACKS = {
    "knn_topk": reference.knn_topk,
    "knn_topk_backward": reference_backward.knn_topk_backward,
    "knn_density": reference.knn_density,
    "density_contrast": reference.density_contrast_with_lse,
    "density_contrast_backward": reference_backward.density_contrast_backward,
    "memory_push": reference.memory_push,
    "class_counts": reference.class_counts,
    "gather_rows": reference.gather_rows,
    "silhouette_sums": reference.silhouette_sums,
}


def _load():
    try:
        from dgcl_ops import _C
    except ImportError as error:
        raise ImportError(
            f"dgcl_ops: the compiled extension dgcl_ops._C could not be loaded ({error}); build it "
            "from the source tree with `pip install --no-build-isolation -e .`"
        ) from error
    return _C


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
        )
    if device not in _warned_devices:
        _warned_devices.add(device)
        warnings.warn(
            f"dgcl_ops: {op} has no compiled kernel for device type {device!r}; plain PyTorch runs "
            f"instead, slower and with class offsets copied to the host. Set {REQUIRE_COMPILED}=1 to "
            "make this an error. This is said once per device type.",
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


for _op, _function in FALLBACKS.items():
    _register_fallback(_op, _function)


def _serving(device: str, key: str) -> dict:
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
    if require_compiled():
        return {"implementation": "error", "reason": f"{reason}, and {REQUIRE_COMPILED} is set"}
    return {"implementation": "reference" if not compiled else "mixed", "reason": reason}


def backend_info() -> dict:
    """What is installed, and which implementation serves each device type, with the reason.

    Returns:
        dict with
            version: of dgcl_ops.
            torch: version of PyTorch in use.
            extension: path of the compiled extension.
            build: how the extension was built.
            cpu_capability: instruction set in use on this processor ("avx512_vnni", "avx512", "avx2",
                "portable").
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
        "extension": _C.__file__,
        "build": torch.ops.dgcl_ops.build_info(),
        "cpu_capability": torch.ops.dgcl_ops.cpu_capability(),
        "devices": {device: _serving(device, key) for device, key in DEVICE_KEYS.items()},
        "require_compiled": require_compiled(),
    }
