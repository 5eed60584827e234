"""The vectors of chosen pixels of a feature map."""

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops.ops import _arguments, _registry

_OP = "dgcl_ops::gather_rows"
_registry.define(
    "gather_rows(Tensor maps, Tensor pixels) -> Tensor",
    reference.gather_rows,
)


def gather_rows(maps: Tensor, pixels: Tensor) -> Tensor:
    """The chosen pixels' vectors; neither a permuted nor a contiguous copy of the map is made.

    Differentiable in `maps`: gradients of a pixel that is chosen several times add up, in no fixed order. None by
    torch.func.

    Args:
        maps: channel first in shape; channel-last strides are read in place as well. Or rows already.
        pixels: numbers b * H * W + y * W + x, in any order, repeated or not.

    Returns:
        The vectors, in the map's dtype.

    Raises:
        RuntimeError: for wrong shapes or dtypes; on the CPU also for pixels outside [0, B * H * W). CUDA,
            to stay free of synchronisation, gives such a pixel a row of NaN, and passes none of its
            gradient on.

    Shape:
        maps [B, D, H, W] or [R, D], pixels [...] int64 -> [..., D].
    """
    _arguments.tensors("gather_rows", maps=maps, pixels=pixels)
    if maps.dim() == 2:
        return maps[pixels]
    return torch.ops.dgcl_ops.gather_rows(maps, pixels)


@_registry.register_fake(_OP)
def _fake(maps, pixels):
    return maps.new_empty((*pixels.shape, maps.shape[1]))


def _setup_context(ctx, inputs, output):
    maps, pixels = inputs
    ctx.shape = maps.shape
    ctx.save_for_backward(pixels)


def _without_strays(pixels: Tensor, dL_drows: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Pixels outside [0, total) become pixel 0 with gradient 0. Shape: pixels [N], dL_drows [N, D]."""
    stray = (pixels < 0) | (pixels >= total)
    return pixels.masked_fill(stray, 0), dL_drows.masked_fill(stray[:, None], 0.0)


def _backward(ctx, dL_drows):
    (pixels,) = ctx.saved_tensors
    images, dim, height, width = ctx.shape
    area = height * width
    dL_dmaps = dL_drows.new_zeros((images, dim, area))
    if dL_dmaps.numel() == 0:
        return dL_dmaps.view(ctx.shape), None
    pixels, dL_drows = pixels.reshape(-1), dL_drows.reshape(-1, dim)
    if not pixels.is_cpu:  # the CPU has refused strays already
        pixels, dL_drows = _without_strays(pixels, dL_drows, images * area)
    # [images, area, dim] strides over the same memory: the two index tensors stand side by side.
    dL_dmaps.mT.index_put_((pixels // area, pixels % area), dL_drows, accumulate=True)
    return dL_dmaps.view(ctx.shape), None


_registry.register_autograd(_OP, _backward, _setup_context)


@torch.library.register_vmap(_OP)
def _vmap(info, in_dims, maps, pixels):
    """The images of all batches stand behind each other; a pixel outside its own batch stays outside of all."""
    maps, pixels = _registry.leading(info, in_dims, maps, pixels)
    area = maps[0, :, 0].numel()
    first = torch.arange(info.batch_size, device=pixels.device) * area
    first = first.view(-1, *[1] * (pixels.dim() - 1))
    inside = (pixels >= 0) & (pixels < area)
    moved = torch.where(inside, pixels + first, -1)
    return torch.ops.dgcl_ops.gather_rows(maps.flatten(0, 1), moved), 0
