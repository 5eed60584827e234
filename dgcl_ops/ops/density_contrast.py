"""Contrastive loss of sparse anchors against one dense key per group."""

from typing import Any

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
# Without `needs_key_grad`, the gradients of keys and negatives are empty.
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
    """Computes each group's contrastive loss: the mean over its anchors of the negative log-softmax at the group's key.

    With unit rows a_i, p, n_j, logits z_i0 = a_i.p / T and z_ij = a_i.n_j / T, and m_i the largest logit of anchor i::

        lse_i = m_i + log(sum_j exp(z_ij - m_i) + eps), j = 0 included
        loss  = mean_i (lse_i - z_i0)

    Rows are normalised inside. A zero row stays zero and receives gradient 0. Backward stores only the lse.

    Differentiable in `anchors`, and in `keys` and `negatives` if they require a gradient. Second derivatives and
    `torch.func` are not supported.

    Args:
        anchors: [G, A, E], the rows to pull towards the key of their group.
        keys: [G, E], one positive key per group.
        negatives: [G, N, E], the rows to push away from.
        temperature: T, positive.
        anchor_counts: [G] int64, the anchors in use per group. By default all. A group without anchors has loss 0.
        negative_counts: [G] int64, the negatives in use per group. By default all. A group without negatives has loss
            log(1 + eps).
        eps: added to the sum of exponentials. 0 gives the log-softmax. The authors' code adds 1e-6. As there, the
            gradient treats m_i as a constant.

    Returns:
        The loss of each group, [G] float32 (float64 if an input is float64).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `temperature` is not positive and finite, or `eps` is negative or not finite.
        RuntimeError: If a shape, dtype or device is wrong, or, on the CPU, if counts are out of range. CUDA clamps them
            instead, because a check would sync.

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
def _fake(
    anchors: Tensor, keys: Tensor, negatives: Tensor, *others: float | Tensor | None
) -> tuple[Tensor, Tensor]:
    groups, rows, _ = anchors.shape
    dtype = compute_dtype(anchors, keys, negatives)
    return anchors.new_empty((groups,), dtype=dtype), anchors.new_empty((groups, rows), dtype=dtype)


@_registry.register_fake(f"{_OP}_backward")
def _backward_fake(
    dL_dloss: Tensor,
    anchors: Tensor,
    keys: Tensor,
    negatives: Tensor,
    lse: Tensor,
    temperature: float,
    anchor_counts: Tensor | None,
    negative_counts: Tensor | None,
    needs_key_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        anchors.new_empty(anchors.shape),
        keys.new_empty(keys.shape if needs_key_grad else (0,)),
        negatives.new_empty(negatives.shape if needs_key_grad else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    anchors, keys, negatives, ctx.temperature, anchor_counts, negative_counts, _ = inputs
    lse = output[1]
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)  # lse has none
    ctx.save_for_backward(anchors, keys, negatives, lse, anchor_counts, negative_counts)


def _backward(ctx: Any, dL_dloss: Tensor | None, _dL_dlse: None) -> tuple[Tensor | None, ...]:
    if dL_dloss is None:
        return (None,) * 7
    anchors, keys, negatives, lse, anchor_counts, negative_counts = ctx.saved_tensors
    needs_key_grad = any(ctx.needs_input_grad[1:3])
    dL_danchors, dL_dkeys, dL_dnegatives = torch.ops.dgcl_ops.density_contrast_backward(
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
    if not needs_key_grad:
        dL_dkeys = dL_dnegatives = None
    return dL_danchors, dL_dkeys, dL_dnegatives, None, None, None, None


_registry.register_autograd(_OP, _backward, _setup_context)
_registry.register_autograd(f"{_OP}_backward", _arguments.no_second_derivative("density_contrast"))


@torch.library.register_vmap(_OP)
def _vmap(
    info: Any,
    in_dims: tuple,
    anchors: Tensor,
    keys: Tensor,
    negatives: Tensor,
    temperature: float,
    anchor_counts: Tensor | None,
    negative_counts: Tensor | None,
    eps: float,
) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    """V batches of G groups are one batch of V * G groups."""
    groups = [
        None if tensor is None else tensor.flatten(0, 1)
        for tensor in _registry.leading(
            info,
            (*in_dims[:3], *in_dims[4:6]),
            *(anchors, keys, negatives, anchor_counts, negative_counts),
        )
    ]
    outputs = torch.ops.dgcl_ops.density_contrast(*groups[:3], temperature, *groups[3:], eps)
    return tuple(each.unflatten(0, (info.batch_size, -1)) for each in outputs), (0, 0)
