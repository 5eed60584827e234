"""Ramps: factors of a loss that rise after the warm-up."""

import math


def ramp_position(progress: float, length: float) -> float:
    """Returns the position in a ramp, in [0, 1].

    Args:
        progress: progress of the training after the warm-up, in [0, 1].
        length: the ramp's share of the training after the warm-up. 0: no ramp.
    """
    return min(progress / length, 1.0) if length else 1.0


def sigmoid_ramp(progress: float, length: float) -> float:
    """Returns exp(-5 (1 - t)^2) at position t of the ramp, see `ramp_position`. It starts at 0.0067."""
    return math.exp(-5 * (1 - ramp_position(progress, length)) ** 2)


def cosine_ramp(progress: float, length: float) -> float:
    """Returns (1 - cos(pi t)) / 2 at position t of the ramp, see `ramp_position`. It starts at 0."""
    return (1 - math.cos(math.pi * ramp_position(progress, length))) / 2
