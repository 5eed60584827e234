"""Tensors as users pass them: subclasses are unwrapped, and unsupported labels raise an error that names the fix."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (Tensor, nn.Parameter)


def plain(tensor: Tensor) -> Tensor:
    """The tensor without a subclass that only adds behaviour, such as MONAI's MetaTensor or fastai's TensorImage.

    No copy; gradients pass. Subclasses with their own `__torch_dispatch__`, such as DTensor, stay as they are.
    """
    kind = type(tensor)
    if kind in PLAIN or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return tensor
    return tensor.as_subclass(Tensor)


def checked_tensor(op: str, name: str, value: Any, rule: str = "a torch.Tensor") -> Tensor:
    """The value as a plain tensor.

    Raises:
        TypeError: If it is no tensor. The text names the conversion.
    """
    if isinstance(value, Tensor):
        return plain(value)
    kind, fix = type(value).__name__, ""
    if isinstance(value, (list, tuple)):
        stack = len(value) > 0 and isinstance(value[0], Tensor)
        fix = f"; use torch.stack({name})" if stack else f"; use torch.tensor({name})"
    elif kind == "ndarray":
        fix = f"; use torch.from_numpy({name})"
    elif hasattr(value, "__array_interface__"):  # a PIL image
        fix = f"; use torch.from_numpy(numpy.array({name}))"
    raise TypeError(f"{op}: {name} must be {rule}, got {kind}{fix}")


def checked_floats(op: str, name: str, values: Tensor) -> Tensor:
    values = checked_tensor(op, name, values, "a floating point tensor")
    if not values.is_floating_point():
        raise TypeError(f"{op}: {name} must be a floating point tensor, got {values.dtype}")
    return values


def checked_labels(op: str, labels: Any, *, allow_bool: bool = False) -> Tensor:
    """Labels as a plain tensor of an integer dtype.

    Raises:
        TypeError: If they are something else. The text names the conversion.
    """
    rule = "an integer tensor"
    tensor = checked_tensor(op, "labels", labels, rule)
    wrong = tensor.is_floating_point() or tensor.is_complex()
    if wrong or (tensor.dtype == torch.bool and not allow_bool):
        raise TypeError(
            f"{op}: labels must be {rule}, got {tensor.dtype}; use labels.long() for class numbers, labels.argmax(1) "
            "for one-hot labels or scores"
        )
    return tensor


def per_pixel(op: str, name: str, values: Tensor, size: Sequence[int], rule: str) -> Tensor:
    """Returns values [B, *S] or [B, 1, *S] as [B, *S], if they match the maps' images and pixels.

    Args:
        op: name for the error.
        name: name of the values for the error.
        values: the values.
        size: [B, *S], or [M] for rows.
        rule: the words after "must have shape [...]".

    Raises:
        ValueError: If they have another shape. The text names the fix, if there is one.
    """
    size, shape = list(size), list(values.shape)
    dims = len(size)
    if len(shape) == dims + 1 and shape[1] == 1:
        values = values.squeeze(1)
    if list(values.shape) == size:
        return values
    fix = ""
    if len(shape) == dims + 1 and shape[1] != 1 and name == "labels":
        dim = -1 if shape[:-1] == size else 1
        squeeze = dim == -1 and shape[-1] == 1
        fix = (
            "; use labels.squeeze(-1)"
            if squeeze
            else f"; for one-hot labels use labels.argmax({dim})"
        )
    elif [1, *shape] == size:
        fix = f"; use {name}.unsqueeze(0)"
    elif dims == 1 and values.numel() == size[0]:
        fix = f"; use {name}.flatten()"
    elif len(values.shape) == dims and values.shape[0] == size[0] and name == "labels":
        fix = "; use dgcl_ops.resize_labels to resize a label map"
    raise ValueError(f"{op}: {name} must have shape {size}{rule}, got {shape}{fix}")
