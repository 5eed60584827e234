"""The options of a method. Each field's type says which values it may have."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, NamedTuple, get_args, get_origin

from dgcl_ops.losses import MIN_TEMPERATURE
from semi_supervised.settings import check_types


class Rule(NamedTuple):
    """What a value must do, in words, and whether it does."""

    text: str
    holds: Callable[[float], bool]


NOT_NEGATIVE = Rule("be finite and not negative", lambda value: 0 <= value < math.inf)
Share = Annotated[float, Rule("lie in [0, 1]", lambda value: 0 <= value <= 1)]
Positive = Annotated[float, Rule("be positive and finite", lambda value: 0 < value < math.inf)]
Temperature = Annotated[
    float,
    Rule(
        f"be finite and at least {MIN_TEMPERATURE}",
        lambda value: MIN_TEMPERATURE <= value < math.inf,
    ),
]
NumberOrZero = Annotated[int, NOT_NEGATIVE]


def at_least(least: int) -> Rule:
    """Returns the rule of an integer."""
    return Rule(f"be at least {least}", lambda value: value >= least)


@dataclass(frozen=True)
class MethodOptions:
    """A frozen dataclass of a method's own hyper-parameters.

    A field may be `Annotated` with a Rule. Without one, an int must be at least 1, and a float finite and not negative.
    None is allowed where the type allows it.

    Raises:
        TypeError: If an option does not have its type.
        ValueError: If an option breaks its rule.
    """

    def __post_init__(self):
        check_types(self)
        for each in fields(self):
            value, kind = getattr(self, each.name), each.type
            rule = at_least(1) if kind is int else NOT_NEGATIVE
            if get_origin(kind) is Annotated:
                _, rule = get_args(kind)
            if value is not None and not rule.holds(value):
                raise ValueError(f"{each.name} must {rule.text}, got {value}")
