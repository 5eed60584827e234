"""What paired differences show, by Student's t: the interval of their mean, and the smallest difference found."""

import math
import statistics

from scipy import optimize, stats


def half_interval(differences: list[float]) -> float:
    """Returns half of the 95 % confidence interval of the mean. Infinite for one difference."""
    n = len(differences)
    if n < 2:
        return math.inf
    return float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)


def detectable(count: int, power: float = 0.8) -> float:
    """Returns the smallest true mean, in standard deviations, that a two-sided t test at 5 % finds with this power.

    Args:
        count: number of normal differences, at least 2.
        power: the chance.
    """
    limit = stats.t.ppf(0.975, count - 1)

    def missing(shift: float) -> float:
        """Returns the power still needed if the true mean is `shift` standard errors."""
        sides = (float(stats.nct.sf(limit, count - 1, sign * shift)) for sign in (1, -1))
        return power - sum(sides)

    return float(optimize.brentq(missing, 0.0, limit + 6)) / math.sqrt(count)
