"""Checks of hyper-parameters. Each operator checks its tensors itself (shape, dtype, device)."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeGuard, TypeVar, cast, get_args

from torch import Tensor

Metric = Literal["cosine", "dot", "l2"]
METRICS: tuple[str, ...] = get_args(Metric)
Choice = TypeVar("Choice")


def positive_integer(op: str, name: str, value: object) -> int:
    integer = integral(op, name, value)
    if integer < 1:
        raise ValueError(f"{op}: {name} must be a positive integer, got {value!r}")
    return integer


def integral(op: str, name: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        if isinstance(value, (bool, Tensor)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an integer, got {value!r}") from None


def at_least(op: str, name: str, value: object, minimum: int) -> int:
    """The value, if it is an integer of at least `minimum`."""
    integer = integral(op, name, value)
    if integer < minimum:
        raise ValueError(f"{op}: {name} must be at least {minimum}, got {integer}")
    return integer


def one_of(op: str, name: str, value: Choice, choices: Sequence[Choice]) -> Choice:
    """The value, if it is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {choices}, got {value!r}")
    return value


def is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether it is a tuple, a list or another sequence (such as OmegaConf's lists), but not a string."""
    if isinstance(value, (tuple, list)):
        return True
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def scale_tuple(op: str, scales: object) -> tuple[int, ...]:
    if not is_sequence(scales):
        raise TypeError(f"{op}: scales must be a tuple or list of integers, got {scales!r}")
    scales = tuple(scales)
    integers = tuple(integral(op, "each of scales", k) for k in scales)
    if not integers or min(integers) < 1:
        raise ValueError(f"{op}: scales must be positive integers, got {scales!r}")
    return integers


def class_tuple(op: str, name: str, classes: object, num_classes: int) -> tuple[int, ...]:
    if not is_sequence(classes):
        raise TypeError(f"{op}: {name} must be a tuple or list of classes, got {classes!r}")
    integers = tuple(integral(op, f"each of {name}", c) for c in classes)
    for c in integers:
        if not 0 <= c < num_classes:
            raise ValueError(f"{op}: {name} must lie in [0, {num_classes}), got {c}")
    return integers


def metric_name(op: str, metric: object) -> Metric:
    if not isinstance(metric, str):
        raise TypeError(f"{op}: metric must be a string, got {metric!r}")
    if metric not in METRICS:
        raise ValueError(f"{op}: metric must be one of {', '.join(METRICS)}, got {metric!r}")
    return cast(Metric, metric)


def number(op: str, name: str, value: Any, *, positive: bool) -> float:
    rule = "positive and finite" if positive else "at least 0 and finite"
    try:
        if isinstance(value, (bool, str, bytes, bytearray, Tensor)):
            raise TypeError
        converted = float(value)
    except OverflowError:
        converted = math.inf
    except TypeError:
        raise TypeError(f"{op}: {name} must be a number, got {value!r}") from None
    if not 0 <= converted < math.inf or (positive and converted == 0):  # False for NaN
        raise ValueError(f"{op}: {name} must be {rule}, got {value!r}")
    return converted


def tensors(op: str, **values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")


def no_second_derivative(op: str) -> Callable[..., Any]:
    """The backward of a backward operator: an error, instead of wrong numbers."""

    def backward(ctx: Any, *gradients: Tensor | None) -> None:
        raise RuntimeError(f"{op}: double backward is not supported (create_graph=True)")

    return backward
