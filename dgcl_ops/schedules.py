"""Schedules of a semi-supervised training run: drop fractions, the teacher's decay, the learning rate.

Reference: Wang et al., "Hunting Sparsity: Density-Guided Contrastive Learning for Semi-Supervised
Semantic Segmentation", CVPR 2023, section 4.1.
"""

from torch import Tensor

# Fraction of pixels whose pseudo label is dropped, at progress 0 and 1, as published.
CLASSIFICATION_DROP = (0.20, 0.0)
CONTRAST_DROP = (0.80, 0.0)
CONTRAST_DROP_FLOOR = 0.10  # the contrast never drops less


def linear_schedule(start: float, end: float, progress: float | Tensor) -> float | Tensor:
    """Straight line from start to end, exact at both ends.

    Args:
        start: the value at progress 0.
        end: the value at progress 1.
        progress: fraction of the training done, clamped to [0, 1]. A tensor gives a tensor.

    Returns:
        (1 - progress) * start + progress * end.

    Raises:
        ValueError: If `progress` is a float NaN.
    """
    done: float | Tensor
    if isinstance(progress, Tensor):
        done = progress.clamp(0, 1)
    elif progress != progress:  # NaN; math.isnan is a graph break for a traced float
        raise ValueError(f"linear_schedule: progress must be a number, got {progress}")
    else:
        done = min(max(progress, 0.0), 1.0)
    return (1 - done) * start + done * end


def classification_drop_fraction(progress: float | Tensor) -> float | Tensor:
    """Fraction of pixels dropped from the pseudo labels of the classification loss: 0.20 -> 0.

    Args:
        progress: fraction of the training done, clamped to [0, 1].

    Returns:
        The fraction. A tensor gives a tensor.

    Raises:
        ValueError: If `progress` is a float NaN.
    """
    return linear_schedule(*CLASSIFICATION_DROP, progress)


def contrast_drop_fraction(progress: float | Tensor) -> float | Tensor:
    """Fraction of pixels dropped from the labels of the contrastive loss: max(0.80 (1 - progress), 0.10).

    It is 0.10 from progress 0.875 on. `linear_schedule(0.80, 0.10, progress)` is the straight line.

    Args:
        progress: fraction of the training done, clamped to [0, 1].

    Returns:
        The fraction. A tensor gives a tensor.

    Raises:
        ValueError: If `progress` is a float NaN.
    """
    fraction = linear_schedule(*CONTRAST_DROP, progress)
    if isinstance(fraction, Tensor):
        return fraction.clamp(min=CONTRAST_DROP_FLOOR)
    return max(fraction, CONTRAST_DROP_FLOOR)


def training_progress(epoch: float, warmup_epochs: float, epochs: float) -> float:
    """Fraction of the training done, counted from the end of the warm-up.

    Args:
        epoch: epochs done so far. A fraction (epoch + step / steps) gives a smooth schedule.
        warmup_epochs: supervised epochs at the start.
        epochs: total number of epochs.

    Returns:
        (epoch - warmup_epochs) / (epochs - warmup_epochs), clamped to [0, 1].

    Raises:
        ValueError: If `warmup_epochs` is negative, or no epoch is left after the warm-up.
    """
    if warmup_epochs < 0:
        raise ValueError(
            f"training_progress: warmup_epochs must not be negative, got {warmup_epochs}"
        )
    if not epochs > warmup_epochs:
        raise ValueError(
            f"training_progress: epochs must exceed warmup_epochs {warmup_epochs}, got {epochs}"
        )
    return min(max((epoch - warmup_epochs) / (epochs - warmup_epochs), 0.0), 1.0)


def ema_decay(step: int, maximum: float = 0.999) -> float:
    """Decay of the teacher's moving average, min(1 - 1 / (step + 1), maximum).

    During the ramp the teacher is the plain mean of the student so far. Step 0 copies the student.

    Args:
        step: updates done so far.
        maximum: the decay after the ramp, in [0, 1].

    Returns:
        The weight of the teacher's old value.

    Raises:
        ValueError: If `step` is negative or `maximum` is outside [0, 1].
    """
    if step < 0:
        raise ValueError(f"ema_decay: step must not be negative, got {step}")
    if not 0 <= maximum <= 1:
        raise ValueError(f"ema_decay: maximum must lie in [0, 1], got {maximum}")
    return min(1 - 1 / (step + 1), maximum)


def poly_learning_rate(base: float, step: int, total: int, power: float = 0.9) -> float:
    """Polynomial decay, base * (1 - step / total) ** power. It is 0 from step = total on.

    Args:
        base: learning rate at step 0.
        step: optimiser steps done so far.
        total: total number of steps.
        power: exponent of the decay.

    Returns:
        The learning rate of this step.

    Raises:
        ValueError: If `step` is negative, or `total` or `power` is not positive.
    """
    if step < 0:
        raise ValueError(f"poly_learning_rate: step must not be negative, got {step}")
    if total <= 0:
        raise ValueError(f"poly_learning_rate: total must be positive, got {total}")
    if not power > 0:
        raise ValueError(f"poly_learning_rate: power must be positive, got {power}")
    rate: float = base * max(1 - step / total, 0.0) ** power
    return rate
