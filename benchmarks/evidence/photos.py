"""Keeps photographs in memory, so that training steps read no files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from semi_supervised.folder import FolderData
from semi_supervised.images import Sample, read_image
from torch import Tensor


class Photos(FolderData):
    """A folder whose images are kept in CPU or GPU memory, with one byte per value.

    Args:
        data: see FolderData.
        device: device that holds the images. The training windows are cut there.
        hidden: a class that the training labels omit: its pixels are ignored. Evaluation labels keep it.
        **options: see FolderData.
    """

    def __init__(
        self,
        data: Path,
        *,
        device: str | torch.device = "cpu",
        hidden: int | None = None,
        **options: Any,
    ):
        super().__init__(data, **options)
        self.device, self.hidden = torch.device(device), hidden
        self._labelled = [self._stored(sample) for sample in self.labelled_samples]
        self._unlabelled = [self._image(path) for path in self.unlabelled_images]
        if hidden is not None:
            self.pixels[hidden] = 0

    def labelled(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """See `FolderData.labelled`."""
        chosen = [self._labelled[i] for i in rng.integers(len(self._labelled), size=count)]
        return self._crops(((as_float(image), label) for image, label in chosen), rng)

    def unlabelled(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """See `FolderData.unlabelled`."""
        chosen = rng.integers(len(self._unlabelled), size=count)
        images = (as_float(self._unlabelled[i]) for i in chosen)
        blank = ((image, image.new_zeros(image.shape[1:], dtype=torch.int64)) for image in images)
        images, labels = self._crops(blank, rng)
        return images, labels != self.ignore_index

    def description(self) -> dict:
        """See `FolderData.description`."""
        return super().description() | {"hidden": self.hidden}

    def _stored(self, sample: Sample) -> tuple[Tensor, Tensor]:
        _, label = sample.read()
        if self.hidden is not None:
            label[label == self.hidden] = self.ignore_index
        return self._image(sample.image), label.to(self.device)

    def _image(self, path: Path) -> Tensor:
        return (read_image(path) * 255).round().byte().to(self.device)


def as_float(image: Tensor) -> Tensor:
    """Converts bytes to floats in [0, 1]. The values equal those of `read_image`."""
    return image.float() / 255


def in_batches(samples: list[Sample], count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields images [B, 3, H, W] in [0, 1] and labels [B, H, W]. All samples must have the same size."""
    for start in range(0, len(samples), count):
        images, labels = zip(*(s.read() for s in samples[start : start + count]), strict=True)
        yield torch.stack(images), torch.stack(labels)
