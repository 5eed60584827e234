"""What joins the losses to a trainer: a tap on the features, a projection head, a rule for DDP.

tap = FeatureTap(network, "classifier.4")          # any model: the input of its last classifier
head = ProjectionHead(256)
logits = network(images)["out"]
features = tap.pop()                               # [B, D, H, W], with its graph
loss = contrast(head(features), resize_labels(labels, features.shape[-2:]), features)
"""

import difflib

import torch.nn.functional as F
from torch import Tensor, nn

from dgcl_ops.memory import MemoryBank


class FeatureTap:
    """Keeps what goes into a module, so that a model's features are had without changing the model.

    A forward pre-hook on the classifier (the last convolution) stores its input, which is the
    feature map the classifier sees. The tensor keeps its autograd graph. It is stored as it is, not
    copied: take it with :meth:`pop` after each forward, or it holds the step's graph alive. Of
    several forwards before a pop the last one counts.

    The tap works under ``torch.compile(fullgraph=True)`` if it is made before the model's first
    compiled call (compiled code does not look for hooks added later). Copies of the model
    (``copy.deepcopy`` for an EMA teacher, ``AveragedModel``, pickles) carry a closed tap that
    stores nothing. Inside DDP the path begins with "module.", or give DDP's ``.module``.
    ``torch.nn.DataParallel`` is refused: its replicas run in threads that would write over each
    other.

    Args:
        model: the model, or any part of it that contains the module.
        module_path: dotted name of the module inside model, as in ``model.named_modules()``.
        feature_stride: :meth:`pop` averages windows of that many rows and columns, cut off at the
            right and lower border: a side n becomes ceil(n / feature_stride). For models whose
            classifier works at the full image size (U-Net), 4 gives the usual 1/4. None: as it is.
        pool_to: :meth:`pop` averages adaptively to this size (h, w) instead.

    Raises:
        TypeError: model is not a module, or is a DataParallel.
        ValueError: there is no such module (names that are close are listed), or a size is not
            positive, or both feature_stride and pool_to are given.

    Shape:
        - output of :meth:`pop`: the module's first tensor input, for a map [B, D, H, W]; pooled,
          [B, D, h, w]

    Example:
        >>> with FeatureTap(model, "decode_head.classifier") as tap:
        ...     logits = model(images)
        ...     features = tap.pop()
    """

    def __init__(
        self,
        model: nn.Module,
        module_path: str,
        *,
        feature_stride: int | None = None,
        pool_to: tuple[int, int] | None = None,
    ):
        if not isinstance(model, nn.Module):
            raise TypeError(f"FeatureTap: model must be a Module, got {type(model).__name__}")
        if isinstance(model, nn.DataParallel):
            raise TypeError(
                "FeatureTap: model must not be a DataParallel, whose replicas write over each "
                "other's features; use DistributedDataParallel and give its .module"
            )
        if feature_stride is not None:
            if pool_to is not None:
                raise ValueError(
                    "FeatureTap: feature_stride and pool_to exclude each other, got "
                    f"{feature_stride} and {tuple(pool_to)}"
                )
            _check_positive("FeatureTap", "feature_stride", feature_stride)
        if pool_to is not None:
            if len(pool_to) != 2:
                raise ValueError(f"FeatureTap: pool_to must be a pair (h, w), got {tuple(pool_to)}")
            for side in pool_to:
                _check_positive("FeatureTap", "pool_to", side)
        module = _find_module(model, module_path)
        self.module_path = module_path
        self.feature_stride = feature_stride
        self.pool_to = None if pool_to is None else tuple(pool_to)
        self._features: Tensor | None = None
        self._open = True
        self._handle = module.register_forward_pre_hook(self._capture, with_kwargs=True)

    def _capture(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
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
        """Returns the features of the last forward and lets go of them.

        Raises:
            RuntimeError: the tapped module has not run since the last pop, or the tap is closed.
            ValueError: pooling was asked for and the features are no map [B, D, H, W].
        """
        features, self._features = self._features, None
        if features is None:
            why = (
                "run the model before each pop, and make the tap before the first call of a "
                "compiled model"
                if self._open
                else "the tap is closed"
            )
            raise RuntimeError(
                f"FeatureTap.pop: nothing was captured at '{self.module_path}': {why}"
            )
        if self.feature_stride is None and self.pool_to is None:
            return features
        if features.dim() != 4:
            raise ValueError(
                "FeatureTap.pop: features must have shape [B, D, H, W] to be pooled, got "
                f"{list(features.shape)} at '{self.module_path}'"
            )
        if self.pool_to is not None:
            return F.adaptive_avg_pool2d(features, self.pool_to)
        return F.avg_pool2d(features, self.feature_stride, ceil_mode=True)

    def close(self) -> None:
        """Takes the hook off the model and lets go of the features. May be called again."""
        self._open, self._features = False, None
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def __enter__(self) -> "FeatureTap":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __getstate__(self) -> dict:
        # A copied model takes its hooks along. Its tap has no owner who would pop, so it is closed;
        # and features inside a graph can be neither deep-copied nor pickled.
        return self.__dict__ | {"_features": None, "_open": False, "_handle": None}

    def __repr__(self) -> str:
        state = "closed" if not self._open else "empty" if self._features is None else "full"
        return f"FeatureTap({self.module_path!r}, {state})"


class ProjectionHead(nn.Module):
    """Per pixel: linear, batch norm, ReLU, linear, as 1x1 convolutions.

    The first layer has no bias, since the batch norm takes any constant away again. Give the
    head the learning rate of the decoder, and use it in every step (DDP counts on its gradients).

    Args:
        in_channels: D, the channels of the features.
        hidden_channels: channels between the two layers.
        out_channels: E, the channels of the projections.

    Raises:
        ValueError: a number of channels is not positive; in the forward, a shape does not fit.

    Shape:
        - features: [B, D, H, W]
        - output: [B, E, H, W]

    Reference: Wang et al., CVPR 2023, section 4.1.
    """

    def __init__(self, in_channels: int, hidden_channels: int = 256, out_channels: int = 256):
        super().__init__()
        _check_positive("ProjectionHead", "in_channels", in_channels)
        _check_positive("ProjectionHead", "hidden_channels", hidden_channels)
        _check_positive("ProjectionHead", "out_channels", out_channels)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, hidden_channels, 1, bias=False),
            nn.BatchNorm2d(hidden_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden_channels, out_channels, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() != 4 or features.shape[1] != self.in_channels:
            raise ValueError(
                f"ProjectionHead: features must have shape [B, {self.in_channels}, H, W], "
                f"got {list(features.shape)}"
            )
        return self.layers(features)


def ddp_ignore_bank(root: nn.Module) -> list[str]:
    """Keeps DistributedDataParallel from writing rank 0's bank over the other ranks' banks.

    DDP broadcasts the buffers of what it wraps from rank 0 before each forward. For a
    :class:`MemoryBank` that throws away what the other ranks pushed and costs the whole bank's size
    a step. DDP skips the names in ``_ddp_params_and_buffers_to_ignore``, which it reads only on the
    module it is given: so call this with that very module, before DDP wraps it. A bank outside the
    wrapped module, or ``broadcast_buffers=False``, needs no such call.

    Args:
        root: the module that DDP is going to wrap.

    Returns:
        The names of the buffers of every bank inside root, empty if there is none. Names that were
        ignored before stay ignored.

    Raises:
        TypeError: root is not a module, or is wrapped already.
    """
    if not isinstance(root, nn.Module):
        raise TypeError(f"ddp_ignore_bank: root must be a Module, got {type(root).__name__}")
    if isinstance(root, nn.parallel.DistributedDataParallel):
        raise TypeError(
            "ddp_ignore_bank: root must be the module before it is wrapped, got a "
            "DistributedDataParallel, which has read the names already"
        )
    names = []
    for prefix, module in root.named_modules(remove_duplicate=False):
        if isinstance(module, MemoryBank):
            for name, buffer in module.named_buffers(prefix):
                names.append(name)
                buffer._ddp_ignored = True  # what DDP's mixed precision asks before it casts
    ignored = list(getattr(root, "_ddp_params_and_buffers_to_ignore", ()))
    ignored += [name for name in names if name not in ignored]
    root._ddp_params_and_buffers_to_ignore = ignored
    return names


def _find_module(model: nn.Module, path: str) -> nn.Module:
    """The module of that name inside model, or an error with the names that are close."""
    if not isinstance(path, str):
        raise TypeError(f"FeatureTap: module_path must be a string, got {type(path).__name__}")
    try:
        if path:
            return model.get_submodule(path)
    except AttributeError:
        pass
    names = [name for name, _ in model.named_modules() if name]
    # A wrapper's prefix ("module.") or a forgotten parent leaves the end right: those come first.
    near = [name for name in names if path and name.endswith(f".{path}")]
    near += [n for n in difflib.get_close_matches(path, names, n=5, cutoff=0.5) if n not in near]
    near = near or [name for name, _ in model.named_children()]
    listed = ", ".join(repr(name) for name in near[:8]) or "none"
    raise ValueError(
        f"FeatureTap: module_path must name a module inside {type(model).__name__}, got {path!r}; "
        f"near names: {listed}"
    )


def _check_positive(op: str, name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: {name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{op}: {name} must be positive, got {value}")
