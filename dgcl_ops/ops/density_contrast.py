"""Contrastive loss of sparse anchors against one dense key per group."""

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops._precision import compute_dtype
from dgcl_ops.ops import _arguments, _registry
from dgcl_ops.reference import backward as reference_backward

_OP = "dgcl_ops::density_contrast"
_registry.define(
    "density_contrast(Tensor anchors, Tensor keys, Tensor negatives, float temperature, "
    "Tensor? anchor_counts, Tensor? negative_counts, float eps) -> (Tensor loss, Tensor lse)",
    reference.density_contrast_with_lse,
)
# The gradients of keys and negatives are empty unless `needs_key_grad`.
_registry.define(
    "density_contrast_backward(Tensor dL_dloss, Tensor anchors, Tensor keys, Tensor negatives, "
    "Tensor lse, float temperature, Tensor? anchor_counts, Tensor? negative_counts, "
    "bool needs_key_grad) -> (Tensor dL_danchors, Tensor dL_dkeys, Tensor dL_dnegatives)",
    reference_backward.density_contrast_backward,
)


def density_contrast(
    anchors: Tensor,
    keys: Tensor,
    negatives: Tensor,
    temperature: float = 0.5,
    *,
    anchor_counts: Tensor | None = None,
    negative_counts: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Mean over each group's anchors of minus the log-softmax at the group's key.

    With unit rows a_i, p, n_j, logits z_i0 = a_i.p / T and z_ij = a_i.n_j / T, and their largest m_i:

        lse_i = m_i + log(sum_j exp(z_ij - m_i) + eps), j = 0 included        loss = mean_i (lse_i - z_i0)

    Rows are normalised inside; a zero row stays zero and receives gradient 0. Backward keeps only the lse.

    Differentiable in `anchors`, and in `keys` and `negatives` where they require it. No second
    derivatives, and none by torch.func.

    Args:
        anchors: rows to be pulled to the key of their group.
        keys: one positive key per group.
        negatives: rows to be pushed away from.
        temperature: T, positive.
        anchor_counts: anchors in use per group; all by default. A group without anchors has loss 0.
        negative_counts: negatives in use per group; all by default. Without negatives the loss is log(1 + eps).
        eps: added to the sum of exponentials. 0 gives the log-softmax; the published program adds 1e-6. As in
            that program, the gradient treats m_i as a constant.

    Returns:
        The loss of each group, in float32 (float64 if an input is float64).

    Raises:
        TypeError, ValueError: for a bad `temperature` or `eps`.
        RuntimeError: for bad tensors; on the CPU also for counts out of range, which CUDA clamps.

    Shape:
        anchors [G, A, E], keys [G, E], negatives [G, N, E], counts [G] int64 -> [G].

    Reference: Wang et al., Hunting Sparsity, CVPR 2023, section 3.4 (density-guided contrast).
    """
    _arguments.tensors("density_contrast", anchors=anchors, keys=keys, negatives=negatives)
    temperature = _arguments.number("density_contrast", "temperature", temperature, positive=True)
    eps = _arguments.number("density_contrast", "eps", eps, positive=False)
    loss, _ = torch.ops.dgcl_ops.density_contrast(
        anchors, keys, negatives, temperature, anchor_counts, negative_counts, eps
    )
    return loss


@_registry.register_fake(_OP)
def _fake(anchors, keys, negatives, temperature, anchor_counts, negative_counts, eps):
    groups, rows, _ = anchors.shape
    dtype = compute_dtype(anchors, keys, negatives)
    return anchors.new_empty((groups,), dtype=dtype), anchors.new_empty((groups, rows), dtype=dtype)


@_registry.register_fake(f"{_OP}_backward")
def _backward_fake(
    dL_dloss,
    anchors,
    keys,
    negatives,
    lse,
    temperature,
    anchor_counts,
    negative_counts,
    needs_key_grad,
):
    return (
        anchors.new_empty(anchors.shape),
        keys.new_empty(keys.shape if needs_key_grad else (0,)),
        negatives.new_empty(negatives.shape if needs_key_grad else (0,)),
    )


def _setup_context(ctx, inputs, output):
    anchors, keys, negatives, ctx.temperature, anchor_counts, negative_counts, _ = inputs
    lse = output[1]
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(anchors, keys, negatives, lse, anchor_counts, negative_counts)


def _backward(ctx, dL_dloss, _dL_dlse):
    anchors, keys, negatives, lse, anchor_counts, negative_counts = ctx.saved_tensors
    needs_key_grad = any(ctx.needs_input_grad[1:3])
    dL_danchors, *others = torch.ops.dgcl_ops.density_contrast_backward(
        dL_dloss,
        anchors,
        keys,
        negatives,
        lse,
        ctx.temperature,
        anchor_counts,
        negative_counts,
        needs_key_grad,
    )
    others = others if needs_key_grad else (None, None)
    return dL_danchors, *others, None, None, None, None


_registry.register_autograd(_OP, _backward, _setup_context)
_registry.register_autograd(f"{_OP}_backward", _arguments.no_second_derivative("density_contrast"))


@torch.library.register_vmap(_OP)
def _vmap(
    info, in_dims, anchors, keys, negatives, temperature, anchor_counts, negative_counts, eps
):
    """V batches of G groups are one batch of V * G groups."""
    groups = [
        None if tensor is None else tensor.flatten(0, 1)
        for tensor in _registry.leading(
            info,
            (*in_dims[:3], *in_dims[4:6]),
            *(anchors, keys, negatives, anchor_counts, negative_counts),
        )
    ]
    found = torch.ops.dgcl_ops.density_contrast(*groups[:3], temperature, *groups[3:], eps)
    return tuple(each.unflatten(0, (info.batch_size, -1)) for each in found), (0, 0)
