"""The vectors of chosen pixels of a feature map."""

from typing import Any

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops.ops import _arguments, _registry
from dgcl_ops.ops._pixel_checks import num_pixels
from dgcl_ops.reference import backward as reference_backward

_OP = "dgcl_ops::gather_rows"
_registry.define(
    "gather_rows(Tensor maps, Tensor indices) -> Tensor",
    reference.gather_rows,
)
# `shape` is that of the maps, [B, D, *S].
_registry.define(
    "gather_rows_backward(Tensor dL_drows, Tensor indices, SymInt[] shape) -> Tensor dL_dmaps",
    reference_backward.gather_rows_backward,
)


def gather_rows(maps: Tensor, indices: Tensor) -> Tensor:
    """Gathers the vectors of chosen pixels. The maps are read in place, with any strides.

    Differentiable in `maps`, any number of times. The gradients of a pixel that is chosen several times are added in
    the order of `indices`, in float32 (float64 for float64 maps), and rounded once. So the gradient has the same bits
    on the CPU and CUDA. `torch.func` cannot differentiate it.

    Args:
        maps: [B, D, *S] feature maps with 1 to 6 spatial dimensions, or [R, D] rows.
        indices: [...] int64, the pixels or rows to gather. Pixels are numbered over images and all spatial dimensions,
            the last one fastest: b * H * W + y * W + x for 2-D maps. Any order; repetitions allowed.

    Returns:
        The vectors, [..., D], in the dtype of `maps`.

    Raises:
        TypeError: If an argument is not a tensor.
        RuntimeError: If a shape or dtype is wrong, or, on the CPU, if an index is not one of a pixel. CUDA does not
            check that, because a check would sync. There, such an index yields a row of NaNs and propagates no
            gradient.

    With `maps` [R, D] this is `maps[indices]`, with PyTorch's rules and errors.
    """
    _arguments.tensors("gather_rows", maps=maps, indices=indices)
    if maps.dim() == 2:
        return maps[indices]
    return torch.ops.dgcl_ops.gather_rows(maps, indices)


@_registry.register_fake(_OP)
def _fake(maps: Tensor, indices: Tensor) -> Tensor:
    return maps.new_empty((*indices.shape, maps.shape[1]))


@_registry.register_fake(f"{_OP}_backward")
def _backward_fake(dL_drows: Tensor, indices: Tensor, shape: list[int]) -> Tensor:
    return dL_drows.new_empty(shape)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    maps, indices = inputs
    ctx.shape = maps.shape
    ctx.save_for_backward(indices)


def _backward(ctx: Any, dL_drows: Tensor) -> tuple[Tensor, None]:
    (indices,) = ctx.saved_tensors
    return torch.ops.dgcl_ops.gather_rows_backward(dL_drows, indices, ctx.shape), None


def _setup_second_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _second_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    """The gradient of dL_drows: the backward is linear in it, and its transpose is gather_rows."""
    (indices,) = ctx.saved_tensors
    rows = torch.ops.dgcl_ops.gather_rows(gradient, indices)
    if not indices.is_cpu:  # the CPU refuses strays
        rows = _without_strays(rows, indices, num_pixels(gradient.shape))
    return rows, None, None


def _strays(indices: Tensor, pixels: int) -> Tensor:
    return (indices < 0) | (indices >= pixels)


def _without_strays(rows: Tensor, indices: Tensor, pixels: int) -> Tensor:
    """The rows of strays are NaN, and become 0."""
    return rows.masked_fill(_strays(indices, pixels).unsqueeze(-1), 0.0)


_registry.register_autograd(_OP, _backward, _setup_context)
_registry.register_autograd(f"{_OP}_backward", _second_backward, _setup_second_context)


def _in_all_maps(indices: Tensor, pixels: int) -> Tensor:
    """Indices [V, ...] into V maps of so many pixels, as indices into the concatenated maps.

    An index outside its own maps stays outside all of them.
    """
    first = torch.arange(indices.shape[0], device=indices.device) * pixels
    first = first.view(-1, *[1] * (indices.dim() - 1))
    return torch.where(_strays(indices, pixels), -1, indices + first)


@torch.library.register_vmap(_OP)
def _vmap(info: Any, in_dims: tuple, maps: Tensor, indices: Tensor) -> tuple[Tensor, int]:
    """Concatenates the images of all batches."""
    maps, indices = _registry.leading(info, in_dims, maps, indices)
    indices = _in_all_maps(indices, num_pixels(maps.shape[1:]))
    return torch.ops.dgcl_ops.gather_rows(maps.flatten(0, 1), indices), 0


@torch.library.register_vmap(f"{_OP}_backward")
def _backward_vmap(
    info: Any, in_dims: tuple, dL_drows: Tensor, indices: Tensor, shape: list[int]
) -> tuple[Tensor, int]:
    """Concatenates the images of all batches."""
    dL_drows, indices = _registry.leading(info, in_dims, dL_drows, indices)
    indices = _in_all_maps(indices, num_pixels(shape))
    total = [info.batch_size * shape[0], *shape[1:]]
    dL_dmaps = torch.ops.dgcl_ops.gather_rows_backward(dL_drows, indices, total)
    return dL_dmaps.view(info.batch_size, *shape), 0
