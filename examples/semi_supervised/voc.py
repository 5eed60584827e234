"""PASCAL VOC 2012 with SBD's labels, in their original folders."""

from pathlib import Path
from typing import Any

from semi_supervised.folder import FolderData
from semi_supervised.images import Sample
from semi_supervised.listing import read_lines


class VocData(FolderData):
    """10,582 training images: VOC's 1,464 and SBD's. VOC's validation images are for evaluation.

    Args:
        data: VOCdevkit/VOC2012, with JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/{train,val}.txt.
        sbd: SBD's dataset/ folder, with cls/*.mat, train.txt and val.txt. None: SegmentationClassAug/ in `data` holds
            the labels of all training images as PNGs.
        num_classes: C.
        options: see FolderData.

    Raises:
        FileNotFoundError: If a folder or file is missing.
    """

    def __init__(
        self, data: Path, *, sbd: Path | None = None, num_classes: int = 21, **options: Any
    ):
        self.sbd = None if sbd is None else Path(sbd)
        super().__init__(data, num_classes=num_classes, **options)

    def find_splits(self, root: Path) -> dict[str, list[Sample]]:
        """Returns the samples of train and val."""
        lists = root / "ImageSets" / "Segmentation"
        val = read_names(lists / "val.txt", "data")
        labels = {name: root / "SegmentationClass" / f"{name}.png" for name in val}
        if self.sbd is None:
            folder = root / "SegmentationClassAug"
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"data: {root} must hold SegmentationClassAug/, or sbd must name SBD's dataset/ folder"
                )
            added = {path.stem: path for path in folder.glob("*.png")}
        else:
            names = [
                name
                for split in ("train", "val")
                for name in read_names(self.sbd / f"{split}.txt", "sbd")
            ]
            added = {name: self.sbd / "cls" / f"{name}.mat" for name in names}
            for name in read_names(
                lists / "train.txt", "data"
            ):  # VOC's labels are finer than SBD's
                added[name] = root / "SegmentationClass" / f"{name}.png"
        train = sorted(added.keys() - labels.keys())
        labels = added | labels
        splits = {
            split: [Sample(root / "JPEGImages" / f"{name}.jpg", labels[name]) for name in names]
            for split, names in (("train", train), ("val", val))
        }
        for sample in (*splits["train"], *splits["val"]):
            for path in (sample.image, sample.label):
                if not path.is_file():
                    raise FileNotFoundError(f"{path} is missing, but a list names it")
        return splits


def read_names(path: Path, key: str) -> list[str]:
    """Reads a list of names. `key` is the setting that an error names."""
    if not path.is_file():
        raise FileNotFoundError(f"{key}: there is no list {path}")
    return " ".join(read_lines(path)).split()
