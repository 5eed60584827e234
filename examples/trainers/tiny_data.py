"""Training data for the examples: squares, discs and bars on a noisy background, generated on access."""

import torch
from torch import Tensor

NUM_CLASSES = 4  # ground, square, disc, bar
COLOURS = torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.3, 0.2], [0.2, 0.8, 0.3], [0.3, 0.4, 0.9]])


def square(y: Tensor, x: Tensor) -> Tensor:
    return torch.maximum(x, y) < 0.35


def disc(y: Tensor, x: Tensor) -> Tensor:
    return x.hypot(y) < 0.4


def bar(y: Tensor, x: Tensor) -> Tensor:
    return x < 0.15


class TinyShapes(torch.utils.data.Dataset):
    """Images [3, size, size] with labels [size, size]. Pixels on the edge have label 255. Sample i never changes.

    Args:
        length: number of samples.
        first: index of the first sample, so that two data sets can hold different images.
        size: height and width in pixels.
    """

    def __init__(self, length: int = 32, first: int = 0, size: int = 64):
        self.length, self.first, self.size = length, first, size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(self.first + index)
        down, right = torch.meshgrid(*[torch.linspace(-1, 1, self.size)] * 2, indexing="ij")
        labels = torch.zeros(self.size, self.size, dtype=torch.int64)
        for shape, inside in enumerate((square, disc, bar), start=1):
            top, left = torch.empty(2).uniform_(-0.6, 0.6, generator=generator)
            labels[inside((down - top).abs(), (right - left).abs())] = shape
        images = COLOURS[labels].movedim(-1, 0)
        images = images + 0.3 * torch.randn(images.shape, generator=generator)
        labels[[0, -1]] = 255
        labels[:, [0, -1]] = 255
        return images, labels


def batches(steps: int, size: int = 4, first: int = 0) -> torch.utils.data.DataLoader:
    """Returns a loader of `steps` batches: images [size, 3, 64, 64] and labels [size, 64, 64]."""
    # Each iterator draws a seed. With its own generator this does not change the random numbers of dropout.
    return torch.utils.data.DataLoader(
        TinyShapes(steps * size, first), batch_size=size, generator=torch.Generator()
    )


def progress(step: int, loss: Tensor, contrast_loss: Tensor, contrast: torch.nn.Module) -> None:
    """Prints a step's losses and the number of ready classes."""
    ready = int(contrast.diagnostics()["ready"].sum())
    print(
        f"step {step}: loss {loss.item():.3f}, contrast {contrast_loss.item():.3f}, "
        f"{ready} of {NUM_CLASSES} classes ready"
    )
