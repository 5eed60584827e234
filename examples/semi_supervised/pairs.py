"""Finds the label of each image by its name."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from semi_supervised.images import Sample
from semi_supervised.listing import LABEL_TYPES, contents, files, list_images

# Prefixes and suffixes of the names of images and labels, in any case.
IMAGE_ENDINGS = ("_image", "_img", "_sat", "_rgb", "_training", "_test", "_leftImg8bit")
CHANNEL = "_0000"  # suffix of every image of nnU-Net
LABEL_ENDINGS = ("", "_mask", "_masks", "-mask", "_label", "_labels", "_seg", "_segmentation")
LABEL_ENDINGS += ("_gt", "_L", "_anno", "_manual1", "_1stHO", "_instance_color_RGB")
LABEL_ENDINGS += ("_gtFine_labelIds", "_gtFine_labelTrainIds")
IMAGE_STARTS, LABEL_STARTS = ("image", "img"), ("mask", "label", "seg", "gt")


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
    found = find_labels(list_images(image_folder), files(label_folder, LABEL_TYPES))
    images: dict[str, Path] = {}
    for image in found:
        refuse_second(images, composed(image.stem), image, "have the same name; remove one of them")
    if names is not None:
        names = [composed(name) for name in names]
        missing = [name for name in names if name not in images]
        if missing:
            raise FileNotFoundError(
                f"data: {image_folder} has no image {missing[0]}, but a list names it"
            )
        found = {images[name]: found[images[name]] for name in names}
    owners: dict[Path, Path] = {}
    for image, labels in found.items():
        if not labels:
            others = sum(not labels for labels in found.values()) - 1
            raise FileNotFoundError(
                f"image {image} has no label {label_folder / image.stem}.png (nor {image.stem}_mask.png, .tif and "
                f"so on), and {others} of {len(found) - 1} others have none; move images without labels to another "
                f"folder and pass it as unlabelled=DIR; {hint(image_folder, label_folder)}"
            )
        if len(labels) > 1:
            raise ValueError(
                f"data: {labels[0]} and {labels[1]} could both be the label of {image}; remove one of them"
            )
        refuse_second(owners, labels[0], image, f"could both have the label {labels[0]}")
    return [Sample(image, label) for image, [label] in found.items()]


def find_labels(images: list[Path], labels: list[Path]) -> dict[Path, list[Path]]:
    """Returns the labels that fit each image by name.

    Args:
        images: image files.
        labels: label files. If they are in the folder of the images, `images` contains them.
    """
    by_name: dict[str, list[Path]] = {}
    for label in labels:
        by_name.setdefault(composed(label.stem).casefold(), []).append(label)
    # clip_0000.jpg is a frame, not nnU-Net's first channel of clip, if other images have other numbers.
    channels = all(image.stem.endswith(CHANNEL) for image in images)
    endings = IMAGE_ENDINGS + (CHANNEL,) * channels
    found = {image: labels_of(image, by_name, endings) for image in images}
    if not {*images}.isdisjoint(labels):
        for image, fitting in found.items():
            for label in fitting:
                if image in found.get(label, ()):
                    raise ValueError(f"data: {image} and {label} could each be the other's label")
        used = {label for fitting in found.values() for label in fitting}
        return {image: fitting for image, fitting in found.items() if image not in used}
    # cat_L.png is the label of cat_L.jpg, not of cat.jpg.
    stems = {composed(image.stem) for image in images}
    return {
        image: [
            label
            for label in fitting
            if composed(label.stem) == composed(image.stem) or composed(label.stem) not in stems
        ]
        for image, fitting in found.items()
    }


def labels_of(image: Path, by_name: dict[str, list[Path]], endings: tuple[str, ...]) -> list[Path]:
    """Returns the files whose name fits: 0.png, 0_mask.png or 0.jpg.png for 0.jpg, and mask_0.png for image_0.jpg."""
    stem = composed(image.stem)
    shorter = [stem[: -len(end)] for end in endings if stem.lower().endswith(end.lower())]
    renamed = [
        word + stem[len(start) :]
        for start in IMAGE_STARTS
        if stem.lower().startswith(start)
        for word in LABEL_STARTS
    ]
    for parts in ([stem], [composed(image.name)], shorter, renamed):
        found = [
            label
            for part in parts
            for ending in LABEL_ENDINGS
            for label in by_name.get((part + ending).casefold(), ())
            if label != image
        ]
        found = [*dict.fromkeys(found)]
        if found:  # prefers A.png over a.png for A.jpg
            start = tuple(parts)
            return [label for label in found if composed(label.name).startswith(start)] or found
    return []


def composed(name: str) -> str:
    """Returns a name in one form of Unicode. macOS writes accents as separate characters."""
    return unicodedata.normalize("NFC", name)


def refuse_second(owners: dict, key: object, path: Path, what: str) -> None:
    """Keeps the path under its key. A second path with the same key is an error."""
    first = owners.setdefault(key, path)
    if first != path:
        raise ValueError(f"data: {first} and {path} {what}")


def hint(image_folder: Path, label_folder: Path) -> str:
    """Describes the contents of a folder of labels."""
    lossy = files(label_folder, (".jpg", ".jpeg", ".webp"))
    if lossy and image_folder != label_folder:
        return f"{lossy[0].name} in {label_folder.name}/ is not a label: JPEG changes its values; export PNG"
    return contents(label_folder)
