"""Batches by step. Worker processes may draw them ahead, which does not change them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from semi_supervised.settings import Settings


class Batch(NamedTuple):
    """One batch.

    Attributes:
        images: [B, 3, h, w], labelled.
        labels: [B, h, w].
        weak: [B, 3, h, w], the weak view of the unlabelled images.
        inside: [B, h, w] bool, False in the border of a weak view.
    """

    images: Tensor
    labels: Tensor
    weak: Tensor
    inside: Tensor


class Steps(Dataset):
    """Item `step` is the batch, and the generator that drew it and continues with the rest of the step."""

    def __init__(self, data: Any, settings: Settings, rank: int):
        self.data, self.settings, self.rank = data, settings, rank

    def __getitem__(self, step: int) -> tuple[Batch, np.random.Generator]:
        # On rank 0 this equals (seed, step): a trailing zero changes nothing.
        rng = np.random.default_rng((self.settings.seed, step, self.rank))
        images, labels = self.data.labelled(self.settings.batch, rng)
        return Batch(images, labels, *self.data.unlabelled(self.settings.batch, rng)), rng


class Batches:
    """The batches of a run on its device.

    Args:
        data: see Trainer.
        settings: see Settings.
        rank: rank of this process.
        device: where to put the batches.
        workers: number of processes that read ahead, two batches each. 0: none.
    """

    def __init__(
        self, data: Any, settings: Settings, rank: int, device: torch.device, workers: int
    ):
        self.steps, self.last = Steps(data, settings, rank), settings.steps
        self.device, self.workers = device, workers
        self.close()

    def take(self, step: int) -> tuple[Batch, np.random.Generator]:
        """Returns the batch of a step and its generator."""
        if not self.workers:
            batch, rng = self.steps[step]
        else:
            if step != self._next:  # at the start, and after loading a checkpoint
                self._ahead = iter(self._loader(step))
            batch, rng = next(self._ahead)
            self._next = step + 1
        return Batch(*(self._to_device(x) for x in batch)), rng

    def close(self) -> None:
        """Ends the worker processes. The next `take` starts new ones."""
        self._ahead: Iterator = iter(())
        self._next = None  # the next step in `_ahead`

    def _to_device(self, x: Tensor) -> Tensor:
        images = x.dim() == 4
        layout = torch.channels_last if images else torch.contiguous_format
        return x.to(self.device, memory_format=layout, non_blocking=True)

    def _loader(self, first: int) -> DataLoader:
        return DataLoader(
            self.steps,
            sampler=range(first, self.last),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )


def _unchanged(item: Any) -> Any:
    return item
