"""Finds the images of a folder and their labels, in the layouts that labelling programs and data sets use."""

import unicodedata
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
    list_images,
    read_lines,
    subfolders,
)

HELD_OUT = 5  # without a split, every fifth image of a fixed random order is for the test
# Names of folders, in any case.
SPLITS = {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing", "ts"),
}
IMAGES = ("images", "image", "imgs", "img", "img_dir", "jpegimages")
LABELS = ("labels", "label", "masks", "mask", "ann_dir", "annotations")
LABELS += ("segmentationclass", "segmentationclasspng", "groundtruth", "gt")
# The folder of the images and that of the labels. The first row that fits a split is used.
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
# What may follow the common part of the names of an image and its label, in any case.
IMAGE_ENDINGS = ("", "_image", "_img", "_sat", "_rgb", "_leftImg8bit", "_0000")
IMAGE_STARTS, LABEL_STARTS = ("image", "img"), ("mask", "label", "seg", "gt")
LABEL_ENDINGS = ("", "_mask", "_masks", "-mask", "_label", "_labels", "_seg", "_segmentation")
LABEL_ENDINGS += ("_gt", "_L", "_anno", "_gtFine_labelIds", "_gtFine_labelTrainIds")


def find_splits(root: Path) -> dict[str, list[Sample]]:
    """Returns the samples of train and of val or test. In a folder without splits, a fifth is for the test.

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
    """Divides the samples: a fixed random fifth is for the test."""
    if len(samples) < HELD_OUT:
        raise ValueError(f"data: {folder} must hold at least {HELD_OUT} images, got {len(samples)}")
    shuffled = [samples[i] for i in np.random.default_rng(0).permutation(len(samples))]
    count = len(samples) // HELD_OUT
    return {"train": shuffled[count:], "test": shuffled[:count]}


def find_folders(
    there: dict[str, Path], layouts: Iterable[tuple[str, str]], names: tuple[str, ...]
) -> tuple[Path, Path] | None:
    """Returns the folder of the images and that of the labels of a split.

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
    """Returns the names in VOC's lists of each split, as far as there are any."""
    return {
        split: [line.split()[0] for line in read_lines(path)]
        for split, names in SPLITS.items()
        for path in (root / VOC_LISTS / f"{name}.txt" for name in names)
        if path.is_file()
    }


# ---- images and their labels --------------------------------------------------------------------


def list_samples(
    image_folder: Path, label_folder: Path, names: Iterable[str] | None = None
) -> list[Sample]:
    """Returns the images of a folder with their labels.

    Args:
        image_folder: folder of the images.
        label_folder: folder of the labels. It may be the same one.
        names: names of the images to use, without suffix. None: all.

    Raises:
        FileNotFoundError: If an image has no label.
        ValueError: If two files have one name, or an image has two labels.
    """
    images, labels = list_images(image_folder), files(label_folder, LABEL_TYPES)
    by_name: dict[str, list[Path]] = {}
    for label in labels:
        by_name.setdefault(key_of(label.stem), []).append(label)
    found = {image: labels_of(image, by_name) for image in images}
    if image_folder == label_folder:  # what is the label of another file is no image
        used = {label for labels in found.values() for label in labels}
        found = {image: labels for image, labels in found.items() if image not in used}
        if not found:
            raise ValueError(f"data: {images[0]} and {images[1]} could each be the other's label")
    by_stem: dict[str, Path] = {}
    for image in found:
        other = by_stem.setdefault(unicodedata.normalize("NFC", image.stem), image)
        if other != image:
            raise ValueError(f"data: {other} and {image} have the same name; remove one of them")
    if names is not None:
        names = [unicodedata.normalize("NFC", name) for name in names]
        missing = [name for name in names if name not in by_stem]
        if missing:
            raise FileNotFoundError(
                f"data: {image_folder} has no image {missing[0]}, but a list names it"
            )
        found = {by_stem[name]: found[by_stem[name]] for name in names}
    for image, candidates in found.items():
        if len(candidates) > 1:
            raise ValueError(
                f"data: {candidates[0]} and {candidates[1]} could both be the label of {image}; remove one of them"
            )
        if not candidates:
            without = sum(not labels for labels in found.values())
            raise FileNotFoundError(
                f"image {image} has no label {label_folder / image.stem}.png (nor {image.stem}_mask.png, .tif and "
                f"so on), and {without - 1} of {len(found) - 1} others have none; move images without labels to "
                f"another folder and pass it as unlabelled=DIR; {hint(image_folder, label_folder)}"
            )
    return [Sample(image, label) for image, [label] in found.items()]


def key_of(name: str) -> str:
    """Returns a name without case. macOS writes accents as characters of their own."""
    return unicodedata.normalize("NFC", name).casefold()


def labels_of(image: Path, by_name: dict[str, list[Path]]) -> list[Path]:
    """Returns the files whose name fits: 0.png, 0_mask.png or 0.jpg.png for 0.jpg, and mask_0.png for image_0.jpg."""
    stems = [image.stem, image.name]
    stems += [
        image.stem[: -len(ending)]
        for ending in IMAGE_ENDINGS[1:]
        if image.stem.lower().endswith(ending.lower())
    ]
    stems += [
        word + image.stem[len(start) :]
        for start in IMAGE_STARTS
        if image.stem.lower().startswith(start)
        for word in LABEL_STARTS
    ]
    for stem in stems:
        found = [
            label
            for ending in LABEL_ENDINGS
            for label in by_name.get(key_of(stem + ending), ())
            if label != image
        ]
        same_case = [label for label in found if label.name.startswith(stem)]
        if found:
            return same_case or found
    return []


def hint(image_folder: Path, label_folder: Path) -> str:
    """Says what lies in a folder of labels."""
    lossy = files(label_folder, (".jpg", ".jpeg", ".webp"))
    if lossy and image_folder != label_folder:
        return f"{lossy[0].name} in {label_folder.name}/ is no label: JPEG changes its values; export PNG"
    return contents(label_folder)
