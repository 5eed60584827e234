"""Batches by their step: drawn at once, or ahead by worker processes; the same in both cases."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class Batch(NamedTuple):
    images: Tensor  # [B, 3, h, w], labelled
    labels: Tensor  # [B, h, w]
    weak: Tensor  # [B, 3, h, w], the weak view of unlabelled images
    inside: Tensor  # [B, h, w] bool, False in the border of a weak view


class Steps(Dataset):
    """Item `step`: the batch, and the generator that drew it, for the random numbers of the rest of the step."""

    def __init__(self, data, settings, rank: int):
        self.data, self.settings, self.rank = data, settings, rank

    def __getitem__(self, step: int) -> tuple[Batch, np.random.Generator]:
        # Of rank 0 the same as (seed, step): a zero at the end changes nothing.
        rng = np.random.default_rng((self.settings.seed, step, self.rank))
        images, labels = self.data.labelled(self.settings.batch, rng)
        return Batch(images, labels, *self.data.unlabelled(self.settings.batch, rng)), rng


class Batches:
    """The batches of a run, on its device.

    Args:
        data, settings, device: see Trainer.
        rank: of this process.
        workers: processes that read ahead, two batches each; 0: none.
    """

    def __init__(self, data, settings, rank: int, device: torch.device, workers: int):
        self.steps, self.last = Steps(data, settings, rank), settings.steps
        self.device, self.workers = device, workers
        self.close()

    def take(self, step: int) -> tuple[Batch, np.random.Generator]:
        if not self.workers:
            batch, rng = self.steps[step]
        else:
            if step != self._next:  # at the start, and after a checkpoint has been loaded
                self._ahead = iter(self._loader(step))
            batch, rng = next(self._ahead)
            self._next = step + 1
        return Batch(*(self._to_device(x) for x in batch)), rng

    def close(self) -> None:
        """Ends the processes; a further `take` starts others."""
        self._ahead: Iterator = iter(())
        self._next = None  # the step that `_ahead` gives next

    def _to_device(self, x):
        images = x.dim() == 4
        layout = torch.channels_last if images else torch.contiguous_format
        return x.to(self.device, memory_format=layout, non_blocking=True)

    def _loader(self, first):
        return DataLoader(
            self.steps,
            sampler=range(first, self.last),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )


def _as_it_is(item):
    return item
