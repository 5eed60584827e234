"""A tap on the features of any model: the input of its last classifier."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dgcl_ops import _hooks
from dgcl_ops._classifiers import CLASSIFIERS as CLASSIFIERS
from dgcl_ops._classifiers import classifier_path, find_module
from dgcl_ops._inputs import plain
from dgcl_ops.ops import _arguments

# Average pooling by the number of spatial dimensions.
POOLINGS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE_POOLINGS: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


class FeatureTap:
    """Captures the input of a module inside a model, without changing the model.

    A forward pre-hook on the classifier (the last convolution) stores its input, the feature map that the classifier
    sees. The tensor keeps its autograd graph and is not copied. Call `pop` after each forward; otherwise the tap keeps
    the step's graph alive. If the model runs several times before a `pop`, the last run counts.

    - `torch.compile(fullgraph=True)`: create the tap before the model's first compiled call, since compiled code
      ignores hooks added later.
    - Gradient checkpointing needs `use_reentrant=False`. The recomputed forward pass is not captured.
    - Exports and traces are not captured. `torch.jit.script` closes the tap, with a warning.
    - Copies of the model (`copy.deepcopy` for an EMA teacher, `AveragedModel`, pickles) carry a closed tap that stores
      nothing.
    - Inside DDP, prefix the path with "module.", or pass DDP's `.module`.
    - `torch.nn.DataParallel` is refused: its replicas run in threads that would overwrite each other's features.

    Args:
        model: the model, or any part of it that contains the module.
        module_path: dotted name of the module in `model.named_modules()`. None finds the last classifier of the
            segmentation models of torchvision, segmentation_models.pytorch, Hugging Face (SegFormer, UperNet, BEiT),
            mmsegmentation and MONAI, including inside DDP and `torch.compile`. `CLASSIFIERS` lists them.
        feature_stride: `pop` averages windows of this many pixels along each of one to three spatial dimensions.
            Windows are truncated at the far border, so a side n becomes ceil(n / feature_stride). If the classifier
            works at the full image size (U-Net), 4 gives the usual quarter size. None does not pool.
        pool_to: `pop` averages adaptively to this size instead: (n,), (h, w) or (depth, h, w).

    Attributes:
        module_path: the path that is tapped.
        channels: D, the module's `in_channels`; None if it has none.

    Raises:
        TypeError: If `model` is not a module, or is a DataParallel.
        ValueError: If there is no such module (the text lists similar names), if `module_path` is None and the model's
            structure is unknown (the text lists its last convolutions), if a size is not positive, or if both
            `feature_stride` and `pool_to` are given.

    Example:
        >>> with FeatureTap(model) as tap:  # or FeatureTap(model, "decoder.final")
        ...     logits = model(images)
        ...     features = tap.pop()
    """

    def __init__(
        self,
        model: nn.Module,
        module_path: str | None = None,
        *,
        feature_stride: int | None = None,
        pool_to: Sequence[int] | None = None,
    ):
        if not isinstance(model, nn.Module):
            raise TypeError(f"FeatureTap: model must be a Module, got {type(model).__name__}")
        if isinstance(model, nn.DataParallel):
            raise TypeError(
                "FeatureTap: model must not be a DataParallel, since its replicas overwrite each other's features; use "
                "DistributedDataParallel and pass its .module"
            )
        if feature_stride is not None:
            if pool_to is not None:
                raise ValueError(
                    "FeatureTap: feature_stride and pool_to are mutually exclusive, got feature_stride="
                    f"{feature_stride} and pool_to={tuple(pool_to)}"
                )
            feature_stride = _arguments.positive_integer(
                "FeatureTap", "feature_stride", feature_stride
            )
        if pool_to is not None:
            if len(pool_to) not in ADAPTIVE_POOLINGS:
                raise ValueError(
                    "FeatureTap: pool_to must have one to three sizes, such as (h, w) or (depth, h, w), got "
                    f"{tuple(pool_to)}"
                )
            pool_to = tuple(
                _arguments.positive_integer("FeatureTap", "pool_to", n) for n in pool_to
            )
        if module_path is None:
            module_path = classifier_path(model)
        module = find_module(model, module_path)
        self.module_path = module_path
        self.channels: int | None = getattr(module, "in_channels", None)
        self.feature_stride = feature_stride
        self.pool_to = pool_to
        self._model = weakref.ref(model)
        self._features: Tensor | None = None
        self._graph_hidden = False
        self._open = True
        self._handle: RemovableHandle | None = module.register_forward_pre_hook(
            self._capture, with_kwargs=True
        )
        self._module = weakref.ref(module)
        setattr(module, _hooks.PREPARE, _hooks.Unhook(module, FeatureTap))

    def _capture(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        # Quantisation moves hooks to another module, which then calls them without kwargs.
        if not self._open or _hooks.is_extra_pass():
            return
        first = args[0] if args else next(iter((kwargs or {}).values()), None)
        if not isinstance(first, Tensor):
            if isinstance(first, torch.fx.Proxy):
                return
            raise TypeError(
                f"FeatureTap: the first input of '{self.module_path}' must be a tensor, got "
                f"{type(first).__name__}; choose a module that takes the feature map"
            )
        self._features = first
        self._graph_hidden = not first.requires_grad and _hooks.graph_is_hidden()

    def pop(self) -> Tensor:
        """Returns the features of the last forward and releases them.

        Returns:
            The module's first input, [B, D, *S] for a map; [B, D, *s] if pooled. A plain tensor also for networks on
            MONAI's MetaTensors and other subclasses.

        Raises:
            RuntimeError: If the tapped module has not run since the last pop or was replaced, if the tap is closed, or
                if the module ran inside a reentrant checkpoint: its features have no gradient. Under `torch.no_grad()`
                they are returned.
            ValueError: If the features are to be pooled and are not a map [B, D, *S] with as many spatial dimensions as
                `pool_to`, or with one to three for `feature_stride`.
        """
        features, self._features = self._features, None
        if features is None:
            raise RuntimeError(
                f"FeatureTap.pop: nothing was captured at '{self.module_path}': {self._why_empty()}"
            )
        if self._graph_hidden and torch.is_grad_enabled():
            raise RuntimeError(
                f"FeatureTap.pop: the features at '{self.module_path}' have no gradient, because the module ran inside "
                "a reentrant checkpoint; use torch.utils.checkpoint.checkpoint(..., use_reentrant=False), in Hugging "
                'Face gradient_checkpointing_kwargs={"use_reentrant": False}'
            )
        features = plain(features)
        if self.feature_stride is None and self.pool_to is None:
            return features
        dims = features.dim() - 2
        if dims not in POOLINGS or (self.pool_to is not None and dims != len(self.pool_to)):
            wanted = "one to three" if self.pool_to is None else len(self.pool_to)
            raise ValueError(
                f"FeatureTap.pop: features must have shape [B, D, *S] with {wanted} spatial dimensions for pooling, "
                f"got {list(features.shape)} at '{self.module_path}'"
            )
        if self.pool_to is not None:
            return ADAPTIVE_POOLINGS[dims](features, self.pool_to)
        return POOLINGS[dims](features, self.feature_stride, ceil_mode=True)

    def _why_empty(self) -> str:
        if not self._open:
            return "the tap is closed"
        if self._was_replaced():
            return "the model has another module there now; create the tap after the last change to the model"
        return "run the model before each pop, and create the tap before the first call of a compiled model"

    def _was_replaced(self) -> bool:
        model = self._model()
        try:
            current = None if model is None else model.get_submodule(self.module_path)
        except AttributeError:
            return True
        return current is not None and current is not self._module()

    def close(self) -> None:
        """Removes the hook and releases the features. A second call does nothing."""
        self._open, self._features = False, None
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        module = self._module()
        if module is not None and not _hooks.of_owner(module, FeatureTap):
            module.__dict__.pop(_hooks.PREPARE, None)

    def __enter__(self) -> FeatureTap:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # A copied model keeps its hooks. Nobody pops the copied tap, so it is closed. Features inside a graph can be
        # neither deep-copied nor pickled.
        closed = {"_features": None, "_open": False, "_handle": None}
        return self.__dict__ | closed | {"_model": _nothing, "_module": _nothing}

    def __repr__(self) -> str:
        state = "closed" if not self._open else "empty" if self._features is None else "full"
        return f"FeatureTap({self.module_path!r}, {state})"


def _nothing() -> None:
    """Replaces the weak references in a copied tap."""
