"""For hooks on a user's module: detects which pass calls them, and removes them for torch.jit.script."""

from __future__ import annotations

import sys
import warnings
import weakref
from typing import Any

import torch
from torch import nn
from torch.autograd.function import FunctionCtx

PREPARE = "__prepare_scriptable__"  # torch.jit.script calls it on every module that has it


def is_extra_pass() -> bool:
    """Whether this pass is an export, a trace, or a checkpoint's second forward inside the backward."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return torch._C._get_tracing_state() is not None or torch._C._current_graph_task_id() != -1


def graph_is_hidden() -> bool:
    """Whether the caller runs inside an autograd function that builds no graph for it: a reentrant checkpoint.

    Without a gradient in the function's inputs, there is no graph to hide.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        code = frame.f_code
        if code.co_name == "forward" and code.co_varnames[:1] == ("ctx",):
            context = frame.f_locals.get("ctx")
            if isinstance(context, FunctionCtx) and any(getattr(context, "needs_input_grad", ())):
                return True
    return False


def of_owner(module: nn.Module, owner: type) -> dict[int, Any]:
    """The forward pre-hooks of a module that are methods of an `owner`, by hook id."""
    hooks = module._forward_pre_hooks.items()
    return {key: hook for key, hook in hooks if isinstance(getattr(hook, "__self__", None), owner)}


class Unhook:
    """Removes an owner's hooks from a module when torch.jit.script asks for a scriptable module.

    It is the module's `__prepare_scriptable__`. TorchScript cannot compile such a hook, and its error does not say so.
    """

    def __init__(self, module: nn.Module | None, owner: type):
        self._module = None if module is None else weakref.ref(module)
        self._owner = owner

    def _target(self) -> nn.Module | None:
        return None if self._module is None else self._module()

    def __call__(self) -> Any:
        module = self._target()
        if module is None:
            raise RuntimeError(
                f"{self._owner.__name__}: torch.jit.script cannot compile a hook; close the tap before you copy the "
                "model"
            )
        module.__dict__.pop(PREPARE, None)
        for key, hook in of_owner(module, self._owner).items():
            if hook.__self__._open:
                warnings.warn(
                    f"{self._owner.__name__}: torch.jit.script cannot compile a hook, so {hook.__self__!r} is closed",
                    stacklevel=2,
                )
            hook.__self__.close()
            module._forward_pre_hooks.pop(key, None)  # a copy has hooks without a handle
            module._forward_pre_hooks_with_kwargs.pop(key, None)
        own = getattr(module, PREPARE, None)  # of the module's class
        return module if own is None else own()

    def __deepcopy__(self, memo: dict[int, Any]) -> Unhook:
        return Unhook(memo.get(id(self._target())), self._owner)

    def __reduce__(self) -> tuple[Any, ...]:
        warnings.warn(
            f"{self._owner.__name__}: loading this pickled model needs dgcl_ops; close the tap before you copy or "
            "pickle the model, or save its state_dict",
            stacklevel=2,
        )
        return Unhook, (self._target(), self._owner)
