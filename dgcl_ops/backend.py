"""Reports what is installed, which implementation each device type uses, and why."""

from typing import Any

import torch

from dgcl_ops import _extension
from dgcl_ops._extension import NAMESPACE, REQUIRE_COMPILED
from dgcl_ops.ops._registry import FALLBACKS

DEVICE_KEYS = {"cpu": "CPU", "cuda": "CUDA", "mps": "MPS", "xpu": "XPU"}


def _serving(device: str, key: str) -> dict[str, str]:
    """The implementation for a device type and its dispatch key, with the reason."""
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
                else "; PyTorch finds no such device on this machine"
            )
        return {"implementation": "compiled", "reason": reason}
    missing = ", ".join(sorted(set(FALLBACKS) - set(compiled))) if compiled else "any operator"
    reason = f"the extension has no kernel for {missing} on this device type"
    if _extension._C is None:
        reason = f"built without the extension: {_extension.why_not_built()}"
    if _extension.require_compiled():
        return {"implementation": "error", "reason": f"{reason}, and {REQUIRE_COMPILED} is set"}
    return {"implementation": "reference" if not compiled else "mixed", "reason": reason}


def backend_info() -> dict[str, Any]:
    """Reports what is installed, which implementation each device type uses, and why.

    Returns:
        A dict with these keys.

        - `version`: the version of dgcl_ops.
        - `torch`: the version of PyTorch in use.
        - `extension`: the path of the compiled extension, or None.
        - `build`: how the extension was built, or why it was not.
        - `cpu_capability`: the instruction set in use ("avx512_amx", "avx512_vnni", "avx512", "avx2", "portable"), or
          None without the extension.
        - `devices`: per device type, a dict with "implementation" ("compiled", "mixed", "reference" or "error") and
          "reason".
        - `require_compiled`: whether DGCL_OPS_REQUIRE_COMPILED forbids the plain PyTorch implementation.

    Example:
        >>> dgcl_ops.backend_info()["devices"]["cpu"]["implementation"]
        'compiled'
    """
    from dgcl_ops import __version__

    extension = _extension._C
    return {
        "version": __version__,
        "torch": torch.__version__,
        "extension": extension.__file__ if extension else None,
        "build": extension.build_info()
        if extension
        else f"without the extension: {_extension.why_not_built()}",
        "cpu_capability": extension.cpu_capability() if extension else None,
        "devices": {device: _serving(device, key) for device, key in DEVICE_KEYS.items()},
        "require_compiled": _extension.require_compiled(),
    }
