"""The views of one step. They are the same for all methods, so that methods can be compared."""

import numpy as np
from torch import Tensor

from semi_supervised.augment import draw_boxes, jitter, paste
from semi_supervised.loading import Batch
from semi_supervised.settings import Settings

# Purposes of further generators. 0 is the generator of the batch.
SECOND_STRONG_VIEW = 1
AUGSEG = 2


class StrongView:
    """Changed colours, and boxes from other images of the batch.

    Args:
        weak: [B, 3, h, w].
        rng: source of the random numbers.
        settings: see Settings.

    Attributes:
        recoloured: [B, 3, h, w], without boxes.
        images: [B, 3, h, w], with boxes.
    """

    def __init__(self, weak: Tensor, rng: np.random.Generator, settings: Settings):
        self.recoloured = jitter(weak, rng, settings.jitter)
        count, _, height, width = weak.shape
        self._boxes = draw_boxes(rng, count, height, width, settings.cutmix, settings.cutmix_mode)
        [self.images] = self.paste(self.recoloured)

    def paste(self, *maps: Tensor | None) -> list[Tensor | None]:
        """Pastes the same boxes into maps [B, ..., h, w] of the weak view. None stays None."""
        return paste(self._boxes, *maps)


class Views:
    """The views of a step after the warm-up.

    Args:
        batch: the labelled images and the weak view of the unlabelled ones.
        rng: the generator that drew the batch.
        settings: see Settings.
        key: seed, step and rank.

    Attributes:
        batch: as given. The teacher sees these images.
        strong: the strong view of the unlabelled images.
        images: [B, 3, h, w], the labelled images in other colours.
    """

    def __init__(
        self,
        batch: Batch,
        rng: np.random.Generator,
        settings: Settings,
        key: tuple[int, int, int],
    ):
        self.batch, self._settings, self._key = batch, settings, key
        self.strong = StrongView(batch.weak, rng, settings)  # first: runs depend on this order
        self.images = jitter(batch.images, rng, settings.jitter)

    def another_strong(self) -> StrongView:
        """Draws a second strong view. It has its own generator, so the other views do not depend on it."""
        rng = self.generator(SECOND_STRONG_VIEW)
        return StrongView(self.batch.weak, rng, self._settings)

    def generator(self, purpose: int) -> np.random.Generator:
        """Returns the generator for another purpose. Its draws do not change the other views."""
        return np.random.default_rng((*self._key, purpose))
