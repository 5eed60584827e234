"""The projection head of the paper, for maps or for chosen rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgcl_ops._inputs import checked_tensor
from dgcl_ops._precision import autocast_enabled, compute_dtype
from dgcl_ops.ops import _arguments


class ProjectionHead(nn.Module):
    """Per pixel: linear, batch norm, ReLU, linear, as 1x1 convolutions. Maps may have any number of dimensions.

    The first layer has no bias, since the batch norm would remove it. Give the head the learning rate of the decoder,
    and use it in every step, since DDP waits for its gradients. Wrap the head in DDP as well, if it is not part of the
    wrapped model; otherwise every rank trains its own copy. If DDP has `find_unused_parameters=True`, call a head
    inside the wrapped model from the model's `forward`.

    There are two ways to use it. `loss(head(features), labels, features)` projects every pixel.
    `loss(head, labels, features)` projects only the rows that the step chooses, which saves memory. The batch norm then
    normalises over these rows. In both, the parameters and the state_dict are the same.

    Args:
        in_channels: D, the channels of the features.
        hidden_channels: channels between the two layers.
        out_channels: E, the channels of the projections.

    Raises:
        TypeError: If a number of channels is not an integer.
        ValueError: If a number of channels is not positive.

    Reference: Wang et al., CVPR 2023, section 4.1.
    """

    def __init__(self, in_channels: int, hidden_channels: int = 256, out_channels: int = 256):
        super().__init__()
        _arguments.positive_integer("ProjectionHead", "in_channels", in_channels)
        _arguments.positive_integer("ProjectionHead", "hidden_channels", hidden_channels)
        _arguments.positive_integer("ProjectionHead", "out_channels", out_channels)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, hidden_channels, 1, bias=False),
            nn.BatchNorm2d(hidden_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden_channels, out_channels, 1),
        )

    def reset_parameters(self) -> None:
        """Draws new weights. Call it after construction on the meta device and `to_empty`."""
        for layer in self.layers:
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()

    def forward(self, features: Tensor, used: Tensor | None = None) -> Tensor:
        """The projections of a feature map or of rows.

        Args:
            features: [B, D, *S], or M rows [M, D], M at least 1, of any float dtype. Without autocast they are cast
                to the dtype of the weights.
            used: [M] bool, with rows only. False marks padding, which must be finite. The batch norm's statistics skip
                it, and its projection is arbitrary. By default all rows are used.

        Returns:
            The projections, [B, E, *S] or [M, E].

        Raises:
            TypeError: If the features have no float dtype, or `used` is given and the norm was replaced by one that is
                not a BatchNorm2d.
            ValueError: If a shape or dtype does not fit.
        """
        features = checked_tensor("ProjectionHead", "features", features)
        if not features.is_floating_point():
            raise TypeError(
                f"ProjectionHead: features must have a float dtype, got {features.dtype}"
            )
        shape = list(features.shape)
        rows = features.dim() == 2
        if len(shape) < 2 or (rows and not shape[0]) or shape[1] != self.in_channels:
            raise ValueError(
                f"ProjectionHead: features must have shape [M, {self.in_channels}] with M at least 1, or "
                f"[B, {self.in_channels}, *S], got {shape}"
            )
        if used is not None and (
            not rows or used.shape != features.shape[:1] or used.dtype != torch.bool
        ):
            raise ValueError(
                f"ProjectionHead: used must have shape [M] and dtype bool for features [M, {self.in_channels}], "
                f"got {used.dtype} {list(used.shape)} for features {shape}"
            )
        weight = getattr(self.layers[0], "weight", None)
        if isinstance(weight, Tensor) and not autocast_enabled(features):
            features = features.to(weight.dtype)
        if not rows:
            projections: Tensor = self.layers(_as_2d(features))
            if len(shape) == 3:
                return projections.squeeze(2)
            return projections if len(shape) == 4 else projections.unflatten(2, shape[2:-1])
        first, norm, activation, last = self.layers
        hidden = first(_as_map(features))
        hidden = norm(hidden) if used is None else _norm_of_used(norm, hidden, used)
        return _as_rows(last(activation(hidden)))


def _as_2d(maps: Tensor) -> Tensor:
    """[B, D, *S] -> [B, D, H, W]. May copy a crop, as the convolution would do anyway."""
    return maps.unsqueeze(2) if maps.dim() == 3 else maps.flatten(2, -2)


def _as_map(rows: Tensor) -> Tensor:
    """[M, D] -> [1, D, M, 1], a channels-last map of one column, without a copy."""
    return rows[None, :, None].permute(0, 3, 1, 2)


def _as_rows(column: Tensor) -> Tensor:
    """The inverse of `_as_map`."""
    return column.permute(0, 2, 3, 1).flatten(0, 2)


def _norm_of_used(norm: nn.Module, column: Tensor, used: Tensor) -> Tensor:
    """nn.BatchNorm2d over the used rows: mean and variance, the running ones, and the counter.

    A mask instead of an index keeps the shapes static, so nothing syncs. Without a used row the statistics stay as they
    are. A single one has variance 0; nn.BatchNorm2d would raise, which needs a sync here.

    column [1, D, M, 1], used [M] -> [1, D, M, 1] in the dtype of `column`. Statistics are in float32 or float64.
    """
    if not isinstance(norm, nn.BatchNorm2d):
        raise TypeError(
            f"ProjectionHead: used is supported with BatchNorm2d only, got {type(norm).__name__}; convert the model "
            "without the head, or pass head(features) to the loss"
        )
    if not norm.training and norm.running_mean is not None:
        normed: Tensor = norm(column)
        return normed
    rows = _as_rows(column.to(compute_dtype(column)))
    unused = ~used.unsqueeze(1)
    count = used.sum()
    mean = rows.masked_fill(unused, 0).sum(0) / count.clamp(min=1)
    centred = (rows - mean).masked_fill(unused, 0)
    squares = centred.square().sum(0)
    if norm.training:
        _update_running(norm, count, mean.detach(), squares.detach())
    scale = torch.rsqrt(squares / count.clamp(min=1) + norm.eps) * norm.weight
    # The result must not be a view: the backward of an in-place ReLU after a view makes copies.
    shift, scale = (each.view(1, -1, 1, 1) for each in (norm.bias, scale))
    return torch.addcmul(shift, _as_map(centred), scale).to(column.dtype)


@torch.no_grad()
def _update_running(norm: nn.BatchNorm2d, count: Tensor, mean: Tensor, squares: Tensor) -> None:
    """Moves the running statistics towards those of `count` rows, if there are any. The variance is unbiased."""
    running_mean, running_var, batches = (
        norm.running_mean,
        norm.running_var,
        norm.num_batches_tracked,
    )
    if running_mean is None or running_var is None or batches is None:
        return
    some = count > 0
    batches.add_(some)
    dtype = running_mean.dtype
    # Without a momentum: the mean over all batches.
    momentum = 1 / batches.clamp(min=1).to(dtype) if norm.momentum is None else norm.momentum
    step = some.to(dtype) * momentum
    running_mean.lerp_(mean.to(dtype), step)
    variance = squares / (count - 1).clamp(min=1)
    running_var.lerp_(variance.to(dtype), step)
