"""Budgets of a run. Methods need different numbers of passes per step, so equal passes mean different numbers of steps.

The steps are known before the run. The learning rate and all schedules therefore end where the run ends.
"""

import bisect
from dataclasses import replace

from semi_supervised import methods
from semi_supervised.settings import Settings


def check(budget: dict) -> None:
    """Raises ValueError unless a budget has a number of steps or of passes."""
    if len(budget) != 1 or not budget.keys() <= {"steps", "passes"}:
        raise ValueError(f"budget must hold steps or passes, got {budget}")
    [(name, number)] = budget.items()
    if type(number) is not int or number < 1:
        raise ValueError(f"budget.{name} must be an integer of at least 1, got {number!r}")


def affordable(settings: Settings, budget: dict, fixed_warm_up: bool) -> Settings:
    """Returns the settings of the longest run that a budget allows.

    Args:
        settings: the other settings.
        budget: {"steps": N}, or {"passes": N}: the cost of the run in forward passes of a labelled batch. A trained
            batch counts as three.
        fixed_warm_up: whether to keep the warm-up. Otherwise it is a third of the steps.

    Raises:
        ValueError: If the budget does not allow one step.
    """

    def run_of(steps: int) -> Settings:
        return replace(
            settings, steps=steps, warm_up=settings.warm_up if fixed_warm_up else steps // 3
        )

    def cost(steps: int) -> int:
        return methods.passes_of(run_of(steps))

    if "steps" in budget:
        return run_of(budget["steps"])
    passes = budget["passes"]
    steps = bisect.bisect_right(range(passes + 1), passes, key=cost) - 1
    if steps < 1:
        raise ValueError(
            f"budget.passes must be at least {cost(1)}, the cost of a step, got {passes}"
        )
    return run_of(steps)
