"""Finds the folders of images and labels, in the layouts that labelling programs and data sets use."""

from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np

from semi_supervised.images import Sample
from semi_supervised.listing import (
    IMAGE_TYPES,
    LABEL_TYPES,
    contents,
    files,
    read_lines,
    subfolders,
)
from semi_supervised.pairs import list_samples

HELD_OUT = 5  # without splits, every fifth image of a fixed random order is held out
# Names of folders, in any case.
SPLITS = {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing", "ts"),
}
IMAGES = ("images", "image", "imgs", "img", "img_dir", "jpegimages")
LABELS = ("labels", "label", "masks", "mask", "ann_dir", "annotations", "annotation")
LABELS += ("groundtruth", "ground_truth", "ground truth", "gt")
LABELS += ("segmentationclass", "segmentationclasspng", "masks_machine")
# Image folder and label folder. The first row that fits a split is used.
LAYOUTS = (
    ("{split}/{images}", "{split}/{labels}"),
    ("{images}/{split}", "{labels}/{split}"),  # mmsegmentation, ADE20K, YOLO
    ("{split}_{images}", "{split}_{labels}"),
    ("{images}_{split}", "{labels}_{split}"),
    ("{images}{split}", "{labels}{split}"),  # nnU-Net's imagesTr
    ("{split}", "{split}annot"),  # CamVid
    ("{split}", "{split}_{labels}"),  # Carvana
    ("{split}", "{split}"),  # Roboflow: 0.jpg and 0_mask.png
)
UNDIVIDED = (
    ("{images}", "{labels}"),  # also VOC, CVAT and labelme: JPEGImages and SegmentationClass
    ("default", "defaultannot"),  # CVAT's CamVid
    (".", "."),  # 0.jpg and 0_mask.png
)
VOC_LISTS = Path("ImageSets", "Segmentation")  # train.txt, val.txt


def find_splits(root: Path) -> dict[str, list[Sample]]:
    """Returns the samples of train and of val or test. In a folder without splits, a fifth is held out for testing.

    Raises:
        FileNotFoundError: If no layout fits, or an image has no label.
        ValueError: If an image or a label is ambiguous, or there are too few images.
    """
    there = {".": root}
    for folder in subfolders(root):
        for path in (folder, *subfolders(folder)):
            there[path.relative_to(root).as_posix().lower()] = path
    if {"leftimg8bit", "gtfine"} <= there.keys():
        raise ValueError(
            f"data: {root} is Cityscapes; pass --config examples/configs/cityscapes_1_8.yaml"
        )
    folders = {split: find_folders(there, LAYOUTS, SPLITS[split]) for split in SPLITS}
    folders = {split: pair for split, pair in folders.items() if pair}
    if "train" in folders:
        splits = {split: list_samples(*pair) for split, pair in folders.items()}
        refuse_one_split(splits, root)
        return splits
    divided = [there[name] for name in SPLITS["train"] if name in there]
    if divided:
        raise FileNotFoundError(
            f"data: there is no folder {divided[0] / 'images'}; {contents(divided[0])}"
        )
    pair = find_folders(there, UNDIVIDED, ("",))
    if pair is None:
        raise FileNotFoundError(
            f"data: {root} must hold images/ and labels/, or train/ and test/ with both in each; {contents(root)}; "
            "examples/README.md lists the layouts"
        )
    for split, (images, labels) in folders.items():
        if images != labels:
            raise ValueError(
                f"data: {root} has {images} for {split}, and no train/; move {pair[0]} and {pair[1]} into train/"
            )
    lists = find_lists(root)
    if "train" in lists:
        refuse_one_split(lists, root / VOC_LISTS)
        return {split: list_samples(*pair, names) for split, names in lists.items()}
    return hold_out(list_samples(*pair), pair[0])


def refuse_one_split(splits: dict, where: Path) -> None:
    """Raises FileNotFoundError if there is nothing to evaluate on."""
    if len(splits) < 2:
        raise FileNotFoundError(
            f"data: {where} has train/ and needs val/ or test/ as well; {contents(where)}"
        )


def hold_out(samples: list[Sample], folder: Path) -> dict[str, list[Sample]]:
    """Divides the samples: a fixed random fifth is held out for testing."""
    if len(samples) < HELD_OUT:
        raise ValueError(f"data: {folder} must hold at least {HELD_OUT} images, got {len(samples)}")
    shuffled = [samples[i] for i in np.random.default_rng(0).permutation(len(samples))]
    count = len(samples) // HELD_OUT
    return {"train": shuffled[count:], "test": shuffled[:count]}


def find_folders(
    there: dict[str, Path], layouts: Iterable[tuple[str, str]], names: tuple[str, ...]
) -> tuple[Path, Path] | None:
    """Returns the image folder and the label folder of a split.

    Args:
        there: all folders by their path in lower case.
        layouts: rows of LAYOUTS or UNDIVIDED.
        names: names of the split.

    Returns:
        The two folders, or None if no layout fits.

    Raises:
        FileNotFoundError: If there are images without a folder of labels.
        ValueError: If two folders fit equally well.
    """
    for images, labels in layouts:
        named, pairs, alone = "{images}" in images, {}, None
        for split, word in product(names, IMAGES if named else IMAGES[:1]):
            image_folder = there.get(images.format(split=split, images=word))
            # train/ and the root are folders of images only if images lie in them.
            if not image_folder or not (named or files(image_folder, IMAGE_TYPES)):
                continue
            paths = (labels.format(split=split, labels=other) for other in LABELS)
            found = [there[path] for path in dict.fromkeys(paths) if path in there]
            # labels/ may hold polygons, and masks/ the masks.
            found = [folder for folder in found if files(folder, LABEL_TYPES)] or found[:1]
            pairs |= dict.fromkeys((image_folder, folder) for folder in found)
            alone = alone or image_folder
        if len(pairs) > 1:
            several = dict.fromkeys(image for image, _ in pairs)
            if len(several) == 1:
                several = dict.fromkeys(label for _, label in pairs)
            fits = " and ".join(map(str, several))
            raise ValueError(f"data: only one of {fits} can be used; move the others elsewhere")
        if pairs:
            return next(iter(pairs))
        if named and alone:
            raise FileNotFoundError(
                f"data: {alone} has no folder of labels; move images without labels elsewhere and pass them as "
                f"unlabelled=DIR; {contents(alone.parent)}"
            )
    return None


def find_lists(root: Path) -> dict[str, list[str]]:
    """Returns the names in VOC's list of each split that has one."""
    lists = files(root / VOC_LISTS, [".txt"]) if (root / VOC_LISTS).is_dir() else []
    return {
        split: [line.split()[0] for line in read_lines(path)]
        for split, names in SPLITS.items()
        for path in lists
        if path.stem.lower() in names
    }
