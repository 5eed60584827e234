"""Estimates how long the runs of the study of CCP take, and how many steps fit into a time budget."""

import bisect
import time
from collections.abc import Iterable
from typing import NamedTuple

import torch
from semi_supervised.trainer import Trainer

from evidence.ccp_settings import Case, Setting

SPARE = 1.1  # runs are planned as if they took this much longer than measured


class Times(NamedTuple):
    """Seconds that each part of a run takes while all processes are busy.

    Attributes:
        warm_up: a step of the warm-up, with labelled images only.
        step: a later step.
        ends: the rest of a run: building the networks, evaluation, a checkpoint.
    """

    warm_up: float
    step: float
    ends: float

    def of(self, cases: Iterable[Case], steps: int, setting: Setting) -> float:
        """Returns the seconds that some runs take in turn."""
        total = 0.0
        for case in cases:
            warm_up = setting.settings(case.arm, case.seed, steps).warm_up
            total += warm_up * self.warm_up + (steps - warm_up) * self.step + self.ends
        return total


def steps_within(
    seconds: float, queues: list[list[Case]], times: Times, setting: Setting, most: int
) -> int:
    """Returns the largest number of steps with which each queue of runs fits into `seconds`, but at most `most`."""

    def longest(steps: int) -> float:
        return SPARE * max(times.of(queue, steps, setting) for queue in queues)

    steps = max(0, bisect.bisect_right(range(most + 1), seconds, key=longest) - 1)
    return steps - steps % 10 if steps > 100 else steps


def seconds_per_step(trainer: Trainer, seconds: float) -> float:
    """Trains for about this many seconds, and for at least one step. Returns the seconds per step."""
    wait_for(trainer.device)
    begun, steps = time.perf_counter(), 0
    while not steps or time.perf_counter() - begun < seconds:
        trainer.train_step()
        steps += 1
    wait_for(trainer.device)
    return (time.perf_counter() - begun) / steps


def wait_for(device: torch.device) -> None:
    """Waits until the device has finished all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
