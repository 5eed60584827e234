"""Loads the compiled extension. It registers nothing itself, so it may be reloaded."""

import importlib
import os
import re
import sys
from importlib.machinery import PathFinder
from types import ModuleType

import torch

NAMESPACE = "dgcl_ops"
REQUIRE_COMPILED = "DGCL_OPS_REQUIRE_COMPILED"
MINIMUM_TORCH = (2, 10)


def _refuse_old_torch(version: str) -> None:
    if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < MINIMUM_TORCH:
        oldest = ".".join(map(str, MINIMUM_TORCH))
        raise ImportError(f"dgcl_ops needs PyTorch {oldest} or later, found {version}.")


def _has(module: str) -> bool:
    """Whether this package has the module. The finder of an editable install may also offer another tree's module."""
    name = f"{NAMESPACE}.{module}"
    if name in sys.modules:
        return sys.modules[name] is not None
    return PathFinder.find_spec(name, [os.path.dirname(__file__)]) is not None


def _load() -> ModuleType | None:
    """The compiled extension, or None if this build has none. An extension that does not load is an error."""
    if not _has("_C"):
        return None
    try:
        return importlib.import_module(f"{NAMESPACE}._C")
    except ImportError as error:
        raise ImportError(
            f"dgcl_ops: the compiled extension dgcl_ops._C is installed but failed to load ({error}); "
            "reinstall dgcl_ops, or build it from the source tree with "
            "`pip install --no-build-isolation -e .`"
        ) from error


def why_not_built() -> str:
    """Why there is no extension, as the build recorded it."""
    if not _has("_build"):
        return "these sources were not built; `pip install -e .` in the checkout builds them"
    return importlib.import_module(f"{NAMESPACE}._build").WITHOUT_EXTENSION


_refuse_old_torch(torch.__version__)
_C = _load()


def require_compiled() -> bool:
    """Whether the environment forbids the plain PyTorch implementation."""
    return os.environ.get(REQUIRE_COMPILED, "0") not in ("", "0")
