"""What the modules share: buffers that keep their dtype, checks of arguments and of batches."""

import torch
from torch import Tensor, nn

from dgcl_ops.ops import _arguments


class FixedDtypeModule(nn.Module):
    """A module whose buffers keep their dtype under `.half()` and `.to(dtype)`, and that refuses DataParallel.

    A cast to half precision would destroy what the buffers are for: unit rows that are unit to float32's
    last bit, and a state that resumes exactly. Moves between devices work as ever.
    """

    def _apply(self, fn, recurse=True):
        def apply_without_cast(tensor: Tensor) -> Tensor:
            probe = fn(tensor.new_empty(0))  # tells device and dtype without casting the whole bank
            return fn(tensor) if probe.dtype == tensor.dtype else tensor.to(probe.device)

        return super()._apply(apply_without_cast, recurse)

    def _replicate_for_data_parallel(self):
        raise RuntimeError(
            f"{type(self).__name__}: torch.nn.DataParallel is not supported, got a replica: replicas are "
            "thrown away after each forward, and the rows pushed into them with them; use "
            "torch.nn.parallel.DistributedDataParallel, or call the loss outside the replicated model"
        )


def at_least(op: str, name: str, value, minimum: int) -> int:
    """The value, if it is an integer of at least `minimum`."""
    value = _arguments.integral(op, name, value)
    if value < minimum:
        raise ValueError(f"{op}: {name} must be at least {minimum}, got {value}")
    return value


def one_of(op: str, name: str, value, choices: tuple):
    """The value, if it is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {choices}, got {value!r}")
    return value


def one_ignored_pixel(ignore_index: int, *maps: Tensor) -> tuple[Tensor, ...]:
    """What stands for a batch without pixels where other processes wait for this one: the maps [M, D] with one
    row, of zeros, and its label. Nothing comes of it."""
    device = maps[0].device
    label = torch.full((1,), ignore_index, dtype=torch.int64, device=device)
    return *(each.new_zeros((1, each.shape[1])) for each in maps), label


def check_batch(
    op: str,
    projections: Tensor,
    labels: Tensor,
    features: Tensor,
    projection_dim: int,
    feature_dim: int,
    device: torch.device,
) -> None:
    """Raises unless maps and labels fit each other and the bank.

    Shape: projections [B, E, H, W], labels [B, H, W], features [B, D, H, W]; or [M, E], [M], [M, D].
    """
    for name, tensor, channels in (
        ("projections", projections, projection_dim),
        ("features", features, feature_dim),
    ):
        if not tensor.is_floating_point():
            raise TypeError(f"{op}: {name} must have a float dtype, got {tensor.dtype}")
        if tensor.dim() not in (2, 4) or tensor.shape[1] != channels:
            raise ValueError(
                f"{op}: {name} must have shape [B, {channels}, H, W] or [M, {channels}], "
                f"got {list(tensor.shape)}"
            )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{op}: labels must have an integer dtype, got {labels.dtype}")
    size = [*projections.shape[:1], *projections.shape[2:]]
    if list(features.shape[:1] + features.shape[2:]) != size:
        raise ValueError(
            f"{op}: features must have the size of the projections {list(projections.shape)}, "
            f"got {list(features.shape)}"
        )
    if list(labels.shape) != size:
        raise ValueError(
            f"{op}: labels must have shape {size}, one for each pixel of the maps, got "
            f"{list(labels.shape)}; dgcl_ops.resize_labels brings a label map to the maps' size"
        )
    for name, tensor in (("projections", projections), ("features", features), ("labels", labels)):
        if tensor.device != device:
            raise ValueError(
                f"{op}: {name} must be on the bank's device {device}, got {tensor.device}; "
                "move the module with .to(device)"
            )
