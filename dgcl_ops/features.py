"""A tap on the features of any model: the input of its last classifier."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dgcl_ops._inputs import plain
from dgcl_ops.ops import _arguments

# Where models keep their last classifier, a convolution. "last" is the last child. The first match is taken.
CLASSIFIERS = {
    "decode_head.classifier": "Hugging Face: SegFormer, UperNet, BEiT",
    "decode_head.conv_seg": "mmsegmentation",
    "classifier.high_classifier": "torchvision: LRASPP",
    "classifier.last": "torchvision: DeepLabV3, FCN",
    "segmentation_head.0": "segmentation_models.pytorch; MONAI: FlexibleUNet",
    "segmentation_head.head.last": "segmentation_models.pytorch: DPT",
    "final_conv": "MONAI: BasicUNet",
    "final_conv_0_4": "MONAI: BasicUNet++",
    "conv_final.last.conv": "MONAI: SegResNet",
    "output_block.conv.conv": "MONAI: DynUNet",
    "out.conv.conv": "MONAI: UNETR, SwinUNETR",
    "out_tr.conv_block.conv": "MONAI: VNet",
    "model.last.conv": "MONAI: UNet without residual units, AttentionUnet",
    "model.last.0.conv": "MONAI: UNet",
}
CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
# Average pooling by the number of spatial dimensions.
POOLINGS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE_POOLINGS: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}
# The only child of DistributedDataParallel, and of a compiled model.
WRAPPERS = (["module"], ["_orig_mod"])


class FeatureTap:
    """Captures the input of a module inside a model, without changing the model.

    A forward pre-hook on the classifier (the last convolution) stores its input, the feature map that the classifier
    sees. The tensor keeps its autograd graph and is not copied. Call `pop` after each forward; otherwise the tap keeps
    the step's graph alive. If the model runs several times before a `pop`, the last run counts.

    - `torch.compile(fullgraph=True)`: create the tap before the model's first compiled call, since compiled code
      ignores hooks added later.
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
            module_path = _classifier_path(model)
        module = _find_module(model, module_path)
        self.module_path = module_path
        self.channels: int | None = getattr(module, "in_channels", None)
        self.feature_stride = feature_stride
        self.pool_to = pool_to
        self._features: Tensor | None = None
        self._open = True
        self._handle: RemovableHandle | None = module.register_forward_pre_hook(
            self._capture, with_kwargs=True
        )

    def _capture(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._open:
            return
        first = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(first, Tensor):
            raise TypeError(
                f"FeatureTap: the first input of '{self.module_path}' must be a tensor, got "
                f"{type(first).__name__}; choose a module that takes the feature map"
            )
        self._features = first

    def pop(self) -> Tensor:
        """Returns the features of the last forward and releases them.

        Returns:
            The module's first input, [B, D, *S] for a map; [B, D, *s] if pooled. A plain tensor also for networks on
            MONAI's MetaTensors and other subclasses.

        Raises:
            RuntimeError: If the tapped module has not run since the last pop, or the tap is closed.
            ValueError: If the features are to be pooled and are not a map [B, D, *S] with as many spatial dimensions as
                `pool_to`, or with one to three for `feature_stride`.
        """
        features, self._features = self._features, None
        if features is None:
            why = (
                "run the model before each pop, and create the tap before the first call of a compiled model"
                if self._open
                else "the tap is closed"
            )
            raise RuntimeError(
                f"FeatureTap.pop: nothing was captured at '{self.module_path}': {why}"
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

    def close(self) -> None:
        """Removes the hook and releases the features. A second call does nothing."""
        self._open, self._features = False, None
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

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
        return self.__dict__ | {"_features": None, "_open": False, "_handle": None}

    def __repr__(self) -> str:
        state = "closed" if not self._open else "empty" if self._features is None else "full"
        return f"FeatureTap({self.module_path!r}, {state})"


def _classifier_path(model: nn.Module) -> str:
    """The path of the model's last classifier. The error lists the convolutions that it may be."""
    inner = model
    prefix: list[str] = []
    while list(inner._modules) in WRAPPERS:
        prefix += inner._modules
        inner = inner.get_submodule(prefix[-1])
    for path in CLASSIFIERS:
        module: nn.Module | None = inner
        names: list[str] = []
        for name in path.split("."):
            children = {} if module is None else module._modules
            names.append(next(reversed(children), "") if name == "last" else name)
            module = children.get(names[-1])
        if isinstance(module, CONVOLUTIONS):
            return ".".join(prefix + names)
    convolutions = [
        f"{name!r} ({module.in_channels} -> {module.out_channels} channels)"
        for name, module in model.named_modules()
        if isinstance(module, CONVOLUTIONS)
    ]
    listed = ", ".join(convolutions[:-6:-1]) or "none"
    raise ValueError(
        f"FeatureTap: cannot find the classifier of {type(inner).__name__} (unknown structure); pass module_path, the "
        f"name of the layer that outputs the class logits; the last convolutions are {listed}"
    )


def _find_module(model: nn.Module, path: str) -> nn.Module:
    """The module of that name inside model. The error lists similar names."""
    if not isinstance(path, str):
        raise TypeError(f"FeatureTap: module_path must be a string, got {type(path).__name__}")
    try:
        if path:
            return model.get_submodule(path)
    except AttributeError:
        pass
    names = [name for name, _ in model.named_modules() if name]
    # Names with the right end come first: a wrapper's prefix ("module.") or a parent may be missing.
    near = [name for name in names if path and name.endswith(f".{path}")]
    near += [n for n in difflib.get_close_matches(path, names, n=5, cutoff=0.5) if n not in near]
    near = near or [name for name, _ in model.named_children()]
    listed = ", ".join(repr(name) for name in near[:8]) or "none"
    raise ValueError(
        f"FeatureTap: module_path must name a module inside {type(model).__name__}, got {path!r}; "
        f"similar names: {listed}"
    )
