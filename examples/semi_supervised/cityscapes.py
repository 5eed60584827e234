"""Cityscapes in its original folders."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from semi_supervised.folder import FolderData
from semi_supervised.images import CITYSCAPES_IMAGE, Sample


class CityscapesData(FolderData):
    """2,975 training images, and 500 images for evaluation.

    Args:
        data: folder with leftImg8bit/{train,val}/CITY/*_leftImg8bit.png, and
            gtFine/{train,val}/CITY/*_gtFine_labelIds.png or *_gtFine_labelTrainIds.png.
        num_classes: C.
        options: see FolderData.

    Raises:
        FileNotFoundError: If a folder or file is missing.
    """

    def __init__(self, data: Path, *, num_classes: int = 19, **options: Any):
        super().__init__(data, num_classes=num_classes, **options)

    def find_splits(self, root: Path) -> dict[str, list[Sample]]:
        """Returns the samples of train and val."""
        return {split: list(self._samples(root, split)) for split in ("train", "val")}

    @staticmethod
    def _samples(root: Path, split: str) -> Iterator[Sample]:
        images = sorted((root / "leftImg8bit" / split).glob(f"*/*{CITYSCAPES_IMAGE}.png"))
        if not images:
            raise FileNotFoundError(
                f"data: {root} must hold leftImg8bit/{split}/CITY/*{CITYSCAPES_IMAGE}.png, got none"
            )
        for image in images:
            stem = image.stem.removesuffix(CITYSCAPES_IMAGE)
            folder = root / "gtFine" / split / image.parent.name
            labels = [folder / f"{stem}_gtFine_{ids}.png" for ids in ("labelIds", "labelTrainIds")]
            existing = [label for label in labels if label.is_file()]
            if not existing:
                raise FileNotFoundError(f"image {image} has no label {labels[0]}")
            yield Sample(image, existing[0])
