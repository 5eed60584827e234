"""Miniature data sets: PASCAL VOC 2012 with SBD, Cityscapes, and a plain folder."""

import numpy as np
from PIL import Image

VOC_TRAIN = [f"2007_{i:06d}" for i in range(4)]
VOC_VAL = [f"2008_{i:06d}" for i in range(3)]
ADDED = [f"2009_{i:06d}" for i in range(12)]  # labelled by SBD


def drawing(rng, size, classes):
    """Draws a bright box on a dark background, and a label with the box's class inside and the first class outside."""
    width, height = size
    image = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    label = np.full((height, width), classes[0], dtype=np.uint8)
    c = int(rng.integers(1, len(classes)))
    top, left = rng.integers(height // 3), rng.integers(width // 3)
    box = np.s_[top : top + height // 2, left : left + width // 2]
    image[box] += np.uint8(100 + 10 * (c % 10))
    label[box] = classes[c]
    return image, label


def save_palette(path, label):
    """Saves a label with a palette, as in VOC: pixels hold indices, and viewers show colours."""
    picture = Image.fromarray(label)
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    assert Image.open(path).mode == "P"


def voc(root, *, sbd=True, size=(50, 38)):
    """Creates root/VOCdevkit/VOC2012, with root/benchmark_RELEASE/dataset or VOC2012/SegmentationClassAug."""
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    home, added = root / "VOCdevkit" / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    for folder in (home / "JPEGImages", home / "ImageSets" / "Segmentation", added / "cls"):
        folder.mkdir(parents=True)
    for i, name in enumerate([*VOC_TRAIN, *VOC_VAL, *ADDED]):
        image, label = drawing(rng, size if i % 2 else size[::-1], range(21))
        Image.fromarray(image).save(home / "JPEGImages" / f"{name}.jpg")
        bordered = label.copy()
        bordered[0] = bordered[:, -1] = 255
        if name not in ADDED:
            save_palette(home / "SegmentationClass" / f"{name}.png", bordered)
        if sbd:  # SBD also labels VOC's images, without a border
            savemat(added / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": label, "Extra": 0}})
        else:
            save_palette(home / "SegmentationClassAug" / f"{name}.png", bordered)
    for split, names in (("train", VOC_TRAIN), ("val", VOC_VAL)):
        text = "\n".join(names) + "\n"
        (home / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(text)
    (added / "train.txt").write_text("\n".join([*ADDED[:7], VOC_TRAIN[0], VOC_VAL[0]]))
    (added / "val.txt").write_text("\n".join([*ADDED[7:], VOC_VAL[1]]))
    return home, added


def cityscapes(root, *, ids="labelIds", size=(64, 32)):
    """Creates two cities for training and one for validation."""
    rng = np.random.default_rng(0)
    classes = (7, 0, 8, 26, 33, 24) if ids == "labelIds" else (0, 255, 1, 13, 18, 11)
    for split, cities in (("train", ("aachen", "zurich")), ("val", ("lindau",))):
        for city in cities:
            for i in range(4):
                name = f"{city}_{i:06d}_000019"
                image, label = drawing(rng, size, classes)
                for kind in ("leftImg8bit", "gtFine"):
                    (root / kind / split / city).mkdir(parents=True, exist_ok=True)
                picture = root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
                Image.fromarray(image).save(picture)
                picture = root / "gtFine" / split / city / f"{name}_gtFine_{ids}.png"
                Image.fromarray(label).save(picture)
    return root


def folder(root, count, seed=0, size=(40, 32)):
    """Creates images of a bright square on a dark background, with labels. The border has no label."""
    rng = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for i in range(count):
        image = rng.integers(0, 60, (size[1], size[0], 3), dtype=np.uint8)
        label = np.zeros((size[1], size[0]), dtype=np.uint8)
        top, left, c = rng.integers(4, 14), rng.integers(4, 20), rng.integers(1, 3)
        image[top : top + 14, left : left + 14, c] += 150
        label[top : top + 14, left : left + 14] = c
        label[0] = 255
        Image.fromarray(image).save(root / "images" / f"{i:02d}.png")
        Image.fromarray(label).save(root / "labels" / f"{i:02d}.png")
