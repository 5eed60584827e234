"""Operators under autograd and torch.func: how derivatives and vmap are registered, and errors where PyTorch has none.

A derivative that torch.library registers is for `torch.autograd` alone. Of torch.func's grad, vjp and jacrev PyTorch
(2.13) says only that a class lacks `setup_context`, and a forward-mode derivative it takes for 0.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dgcl_ops import _extension

_INSTEAD = "use backward() or torch.autograd.grad"


class _Refusing:
    """Takes a kernel's registration, and registers one that refuses derivatives which the kernel does not have."""

    @staticmethod
    def impl(op: str, kernel, key: str, **options) -> None:
        names = _extension.argument_names(op)

        def refusing(keyset, *args):
            given = [pair for pair in zip(names, args, strict=False) if isinstance(pair[1], Tensor)]
            if torch._C._are_functorch_transforms_active() and torch.is_grad_enabled():
                for name, tensor in given:
                    if tensor.requires_grad:
                        raise RuntimeError(
                            f"{op}: {name} must not be differentiated by torch.func (grad, vjp, jacrev); {_INSTEAD}, "
                            f"got a tensor of shape {list(tensor.shape)} that is"
                        )
            for name, tensor in given:
                if forward_ad.unpack_dual(tensor).tangent is not None:
                    raise RuntimeError(
                        f"{op}: {name} must not have a tangent (torch.func.jvp, jacfwd, dual tensors), since there are "
                        f"no forward-mode derivatives; {_INSTEAD}, got one of shape {list(tensor.shape)}"
                    )
            return kernel(keyset, *args)

        _extension.library.impl(op, refusing, key, **options)


def register_autograd(op: str, backward, setup_context=None) -> None:
    """`torch.library.register_autograd`, with errors for the derivatives it does not give."""
    torch.library.register_autograd(op, backward, setup_context=setup_context, lib=_Refusing)


# ---- vmap -------------------------------------------------------------------------------------------


def leading(info, in_dims, *tensors: Tensor | None) -> list[Tensor | None]:
    """Each tensor with the mapped dimension in front: [V, ...]. Those that are not mapped over are expanded."""
    return [
        tensor
        if tensor is None
        else tensor.expand(info.batch_size, *tensor.shape)
        if dim is None
        else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, in_dims, strict=False)
    ]


def knn_batch(op, info, in_dims, queries, bank, query_offsets, bank_counts, exclude_self):
    """V searches as one: queries [V * M, D], bank [V, N, D] with offsets [V + 1], or the same bank [N, D] for all."""
    if query_offsets is not None:
        raise RuntimeError(
            f"{op}: query_offsets must be None under vmap, which makes the groups itself, got groups; write all of "
            "them into one call"
        )
    if (
        bank_counts is not None
    ):  # which without groups is an error of the operator's, and would be dropped here
        raise RuntimeError(
            f"{op}: bank_counts must be None under vmap, as there are no groups, got counts"
        )
    shared = in_dims[1] is None and not exclude_self
    queries, groups = leading(info, in_dims, queries, bank)
    offsets = torch.arange(info.batch_size + 1, device=queries.device) * queries.shape[1]
    rows = queries.flatten(0, 1)
    return (rows, bank, None) if shared else (rows, groups, offsets)


def refuse_vmap(op: str, instead: str) -> None:
    """Makes vmap over the operator an error that says what to do instead."""
    names = _extension.argument_names(op)

    def refuse(info, in_dims, *args):
        mapped = [name for name, dim in zip(names, in_dims, strict=False) if dim is not None]
        raise RuntimeError(
            f"{op}: {', '.join(mapped)} must not be mapped over by vmap, got {info.batch_size} of them; {instead}"
        )

    torch.library.register_vmap(f"dgcl_ops::{op}", refuse, lib=_extension.library)
