"""Checks of hyper-parameters. What concerns tensors (shape, dtype, device) is checked by each operator itself."""

import math
import operator

from torch import Tensor

METRICS = ("cosine", "dot", "l2")


def positive_integer(op: str, name: str, value) -> int:
    integer = integral(op, name, value)
    if integer < 1:
        raise ValueError(f"{op}: {name} must be a positive integer, got {value!r}")
    return integer


def integral(op: str, name: str, value) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        if isinstance(value, (bool, Tensor)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an integer, got {value!r}") from None


def at_least(op: str, name: str, value, minimum: int) -> int:
    """The value, if it is an integer of at least `minimum`."""
    value = integral(op, name, value)
    if value < minimum:
        raise ValueError(f"{op}: {name} must be at least {minimum}, got {value}")
    return value


def one_of(op: str, name: str, value, choices: tuple):
    """The value, if it is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {choices}, got {value!r}")
    return value


def scale_tuple(op: str, scales) -> tuple[int, ...]:
    if not isinstance(scales, (tuple, list)):
        raise TypeError(f"{op}: scales must be a tuple or list of integers, got {scales!r}")
    scales = tuple(scales)
    integers = tuple(integral(op, "each of scales", k) for k in scales)
    if not integers or min(integers) < 1:
        raise ValueError(f"{op}: scales must be positive integers, got {scales!r}")
    return integers


def metric_name(op: str, metric) -> str:
    if not isinstance(metric, str):
        raise TypeError(f"{op}: metric must be a string, got {metric!r}")
    if metric not in METRICS:
        raise ValueError(f"{op}: metric must be one of {', '.join(METRICS)}, got {metric!r}")
    return metric


def number(op: str, name: str, value, *, positive: bool) -> float:
    rule = "positive and finite" if positive else "at least 0 and finite"
    try:
        if isinstance(value, (bool, str, Tensor)):
            raise TypeError
        converted = float(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be a number, got {value!r}") from None
    if not 0 <= converted < math.inf or (positive and converted == 0):  # NaN is refused too
        raise ValueError(f"{op}: {name} must be {rule}, got {value!r}")
    return converted


def tensors(op: str, **values) -> None:
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")


def no_second_derivative(op: str):
    """The backward of a backward: says so, instead of returning wrong numbers."""

    def backward(ctx, *grads):
        raise RuntimeError(
            f"{op}: only first derivatives are available; double backward must not be requested, got "
            "a gradient of a gradient (create_graph=True)"
        )

    return backward
