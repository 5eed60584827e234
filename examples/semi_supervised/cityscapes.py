"""Cityscapes in the folders that it is distributed in."""

from pathlib import Path

from semi_supervised.folder import FolderData
from semi_supervised.images import CITYSCAPES_IMAGE, Sample


class CityscapesData(FolderData):
    """2,975 training images and 500 to evaluate on.

    Args:
        data: holds leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and gtFine/{train,val}/CITY/*_gtFine_labelIds.png,
            or *_gtFine_labelTrainIds.png instead of these.
        options: see FolderData.

    Raises:
        FileNotFoundError: something of that is missing.
    """

    def __init__(self, data: Path, *, num_classes: int = 19, **options):
        super().__init__(data, num_classes=num_classes, **options)

    def find_splits(self, root: Path) -> dict[str, list[Sample]]:
        return {split: list(self._samples(root, split)) for split in ("train", "val")}

    @staticmethod
    def _samples(root, split):
        images = sorted((root / "leftImg8bit" / split).glob(f"*/*{CITYSCAPES_IMAGE}.png"))
        if not images:
            raise FileNotFoundError(
                f"data: {root} must hold leftImg8bit/{split}/CITY/*{CITYSCAPES_IMAGE}.png, got none"
            )
        for image in images:
            stem = image.stem.removesuffix(CITYSCAPES_IMAGE)
            folder = root / "gtFine" / split / image.parent.name
            labels = [folder / f"{stem}_gtFine_{ids}.png" for ids in ("labelIds", "labelTrainIds")]
            found = [label for label in labels if label.is_file()]
            if not found:
                raise FileNotFoundError(f"image {image} has no label {labels[0]}")
            yield Sample(image, found[0])
