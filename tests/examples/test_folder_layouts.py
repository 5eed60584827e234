"""Folder layouts: which images and labels are found, and which errors the others raise."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tqdm")
pytest.importorskip("PIL.Image")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from PIL import Image
from semi_supervised.folder import FolderData
from semi_supervised.layouts import find_splits
from semi_supervised.splits import choose

OPTIONS = {"labelled": "2", "crop": (32, 32), "seed": 0}


def write(root, *pattern, values=(0, 1, 2), count=6, splits=("",)):
    """Writes images, then labels, by pattern. {s} is the split and {i} a number. Text files hold no picture."""
    rng = np.random.default_rng(0)
    for split in splits:
        for i in range(count):
            for name, colours in zip(pattern, (3, 1), strict=False):
                path = root / name.format(s=split, i=i)
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.suffix.lower() in (".txt", ".json", ".gz", ".npy", ".heic"):
                    path.write_text("{}")
                    continue
                shape = (32, 40, 3) if colours == 3 else (32, 40)
                pixels = rng.choice(values if colours == 1 else 256, shape).astype(np.uint8)
                Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
    ("image", "label", "splits"),
    [
        ("images/{i}.JPG", "labels/{i}.PNG", ("",)),
        ("images/{i}.jpg", "labels/{i}_mask.png", ("",)),
        ("images/{i}.jpg", "labels/{i}_MASK.PNG", ("",)),
        ("images/{i}.jpg", "labels/{i}.jpg.png", ("",)),
        ("images/{i}_sat.jpg", "masks/{i}_mask.png", ("",)),
        ("images/{i}_training.tif", "Ground Truth/{i}_manual1.gif", ("",)),
        ("imgs/image_{i}.jpg", "masks/mask_{i}.png", ("",)),
        ("Images/{i}.jpg", "Masks/{i}.tif", ("",)),
        ("images/my photo.{i}.v1.jpg", "labels/my photo.{i}.v1.png", ("",)),
        ("images/e\u0301{i}.jpg", "labels/\u00e9{i}.png", ("",)),
        ("JPEGImages/{i}.jpg", "SegmentationClass/{i}.png", ("",)),
        ("photo ({i}).png", "photo ({i})_mask.png", ("",)),
        ("{i}.jpg", "{i}.png", ("",)),
        ("{s}/images/{i}.jpg", "{s}/masks/{i}.png", ("train", "valid", "test")),
        ("{s}/Images/{i}.jpg", "{s}/Labels/{i}.png", ("Train", "Validation")),
        ("images/{s}/{i}.jpg", "labels/{s}/{i}.png", ("train", "val")),
        ("images/{s}/{i}.jpg", "annotations/{s}/{i}.png", ("training", "validation")),
        ("img_dir/{s}/{i}.jpg", "ann_dir/{s}/{i}.png", ("train", "val")),
        ("{s}_images/{i}.jpg", "{s}_masks/{i}.png", ("train", "test")),
        ("{s}/{i}.jpg", "{s}_masks/{i}_mask.gif", ("train", "test")),
        ("{s}/{i}.png", "{s}annot/{i}.png", ("train", "val", "test")),
        ("{s}/a_jpg.rf.{i}f.jpg", "{s}/a_jpg.rf.{i}f_mask.png", ("train", "valid")),
        ("images{s}/c_{i}_0000.png", "labels{s}/c_{i}.png", ("Tr", "Ts")),
    ],
)
def test_recognises(tmp_path, image, label, splits):
    write(tmp_path, image, label, splits=splits)
    data = FolderData(tmp_path, **OPTIONS)
    assert data.num_classes == 3
    assert sum(map(len, data.splits.values())) == len(data.files()) == 6 * len(splits)
    kinds = {"valid": "val", "validation": "val", "training": "train", "tr": "train", "ts": "test"}
    expected = {kinds.get(split.lower(), split.lower()) for split in splits if split}
    assert set(data.splits) == (expected or {"train", "test"})
    found = {sample[:2] for samples in data.splits.values() for sample in samples}
    assert found == {
        (tmp_path / image.format(s=split, i=i), tmp_path / label.format(s=split, i=i))
        for split in splits
        for i in range(6)
    }


def test_valid_is_for_validation_even_with_a_test_set(tmp_path):
    write(tmp_path, "{s}/images/{i}.jpg", "{s}/labels/{i}.png", splits=("train", "valid", "test"))
    data = FolderData(tmp_path, **OPTIONS)
    assert {sample.image.parts[-3] for sample in data.val} == {"valid"}
    assert {sample.image.parts[-3] for sample in data.test} == {"test"}
    notes = "\n".join(data.notes())
    assert f"val: 6 images of {tmp_path / 'valid' / 'images'}, labels of" in notes


def test_lists_of_voc_divide_the_images(tmp_path):
    write(tmp_path, "JPEGImages/{i}.jpg", "SegmentationClass/{i}.png")
    write(tmp_path, "JPEGImages/without-{i}.jpg")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_bytes(b"\xef\xbb\xbf0\r\n1\r\n2\r\n\r\n3\r\n")
    (lists / "val.txt").write_text("4\n5\n")
    data = FolderData(tmp_path, **OPTIONS)
    assert [sample.name for sample in data.splits["train"]] == ["0", "1", "2", "3"]
    assert [sample.name for sample in data.val] == ["4", "5"]
    assert "not used there: 6, such as without-0.jpg" in data.notes()[0]


def test_a_name_that_is_an_image_s_own_is_its_label_only(tmp_path):
    for stem in ("cat", "cat_L", "A", "a", "dog_mask", "bird"):
        write(tmp_path, f"images/{stem}.jpg", f"labels/{stem}.png", count=1)
    (tmp_path / "labels" / "bird.png").rename(tmp_path / "labels" / "bird_L.png")
    samples = [sample for samples in find_splits(tmp_path).values() for sample in samples]
    assert {(s.image.stem, s.label.stem) for s in samples} == {
        *((stem, stem) for stem in ("cat", "cat_L", "A", "a", "dog_mask")),
        ("bird", "bird_L"),
    }


def test_the_first_frame_of_a_film_does_not_get_the_label_of_another_image(tmp_path):
    write(tmp_path, "images/film_000{i}.jpg", "labels/film_000{i}.png")
    (tmp_path / "labels" / "film_0000.png").rename(tmp_path / "labels" / "film.png")
    with pytest.raises(FileNotFoundError, match=r"film_0000\.jpg has no label"):
        find_splits(tmp_path)


def test_a_folder_that_holds_polygons_is_not_the_one_of_the_labels(tmp_path):
    write(tmp_path, "images/{i}.jpg", "labels/{i}.txt")
    write(tmp_path, "images/{i}.jpg", "masks/{i}.png")
    assert {s.label.parent.name for s in find_splits(tmp_path)["train"]} == {"masks"}


def test_files_of_operating_systems_are_skipped(tmp_path):
    write(tmp_path, "images/{i}.jpg", "labels/{i}.png")
    for folder in ("images", "labels"):
        for name in ("._3.jpg", "._3.png", ".DS_Store", "Thumbs.db"):
            (tmp_path / folder / name).write_bytes(b"\0\5\26\7")
        (tmp_path / folder / ".ipynb_checkpoints").mkdir()
    (tmp_path / "__MACOSX" / "images").mkdir(parents=True)
    (tmp_path / "images" / "new.HEIC").touch()
    write(tmp_path / "more", "{i}.jpg")
    (tmp_path / "more" / "new.HEIC").touch()
    data = FolderData(tmp_path, **OPTIONS, unlabelled=tmp_path / "more")
    assert len(data.files()) == 12
    train, _, unlabelled = data.notes()
    assert "not used there: 3, such as Thumbs.db" in train
    more = f"unlabelled: 6 images of {tmp_path / 'more'}; not used there: 1, such as new.HEIC"
    assert unlabelled == more


@pytest.mark.parametrize(
    ("patterns", "splits", "message"),
    [
        (
            [("images/{i}.jpg", "labels/{i}.png"), ("images/3.png",)],
            ("",),
            r"images/3\.jpg and .*images/3\.png have the same name",
        ),
        (
            [("images/{i}.jpg", "labels/{i}.png"), ("images/{i}.jpg", "labels/{i}.tif")],
            ("",),
            r"labels/0\.png and .*labels/0\.tif could both be the label of .*images/0\.jpg",
        ),
        (
            [("images/img{i}.jpg", "labels/gt{i}.png"), ("images/img{i}.jpg", "labels/seg{i}.png")],
            ("",),
            r"labels/seg0\.png and .*labels/gt0\.png could both be the label of .*images/img0\.jpg",
        ),
        (
            [("images/{i}_img.jpg", "labels/{i}.png"), ("images/{i}_sat.jpg",)],
            ("",),
            r"images/0_img\.jpg and .*images/0_sat\.jpg could both have the label .*labels/0\.png",
        ),
        (
            [("images/{i}.jpg", "labels/{i}.png"), ("val/images/{i}.jpg", "val/labels/{i}.png")],
            ("",),
            r"has .*val/images for val, and no train/; move .*images and .*labels into train/",
        ),
        (
            [("{i}.tif",), ("{i}.png",)],
            ("",),
            r"0\.png and .*0\.tif could each be the other's label",
        ),
        (
            [("images/{i}.jpg", "labels/{i}.png"), ("images/{i}.jpg", "masks/{i}.png")],
            ("",),
            r"only one of .*labels and .*masks can be used",
        ),
        (
            [("{s}/images/{i}.jpg", "{s}/labels/{i}.png")],
            ("train", "val", "valid"),
            r"only one of .*val/images and .*valid/images can be used",
        ),
        (
            [("images/{s}/{i}.jpg", "labels/{s}/{i}.png"), ("images/test/{i}.jpg",)],
            ("train", "val"),
            r"images/test has no folder of labels; move .* unlabelled=DIR",
        ),
        (
            [("images/{i}.jpg", "labels/{i}_x.png")],
            ("",),
            r"image .*images/0\.jpg has no label .*labels/0\.png .*5 of 5 others.*; labels/ holds 0_x\.png",
        ),
        (
            [("images/{i}.jpg", "labels/{i}.txt")],
            ("",),
            r"has no label .*labels/ holds 0\.txt.*polygons and boxes must be exported as masks",
        ),
        (
            [("{s}/{i}.jpg",), ("{s}/_annotations.coco.json",)],
            ("train", "valid"),
            r"train/0\.jpg has no label .*; train/ holds 0\.jpg.*polygons and boxes",
        ),
        ([("images/{i}.jpg", "masks/{i}.jpg")], ("",), r"0\.jpg in masks/ is not a label: JPEG"),
        ([("images/{i}.jpg", "labels/{i}.npy")], ("",), r"arrays must be saved as PNG"),
        ([("images/{i}.heic", "labels/{i}.png")], ("",), r"images must be saved as JPEG or PNG"),
        ([("images/{i}.nii.gz", "labels/{i}.nii.gz")], ("",), r"volumes are out of scope"),
        ([("images/{i}.jpg", "labels/{i}.nii.gz")], ("",), r"volumes are out of scope"),
        ([("imagesTr/{i}.nii.gz", "labelsTr/{i}.nii.gz")], ("",), r"volumes are out of scope"),
        ([("case{i}.nii.gz",)], ("",), r"holds case0\.nii\.gz.*volumes are out of scope"),
        ([("photos/{i}.jpg", "truth/{i}.png")], ("",), r"must hold images/ .*holds photos/, truth"),
        (
            [("images/city/{i}.jpg", "labels/city/{i}.png")],
            ("",),
            r"images/ holds city/; .* not searched",
        ),
        (
            [("leftImg8bit/train/a/{i}.png", "gtFine/train/a/{i}.png")],
            ("",),
            r"is Cityscapes; pass --config examples/configs/cityscapes_1_8\.yaml",
        ),
    ],
)
def test_says_what_lies_there(tmp_path, patterns, splits, message):
    for pattern in patterns:
        write(tmp_path, *pattern, splits=splits)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_splits(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_may_hold_blanks_dots_and_marks(tmp_path, encoding):
    write(tmp_path, "images/my photo.{i}.v1.jpg", "labels/my photo.{i}.v1.png")
    train = find_splits(tmp_path)["train"]
    first, second, third = train[:3]
    lines = [
        first.image.name,
        f"images\\{second.image.name} labels\\{second.label.name}",
        third.image.stem,
    ]
    path = tmp_path / "names.txt"
    path.write_bytes("\r\n".join([*lines, ""]).encode(encoding))
    assert choose(str(path), train, 0, 0, 255)[0] == [first, second, third]
    path.write_text("my photo.99.v1")
    with pytest.raises(ValueError, match=r"must list training images, got my"):
        choose(str(path), train, 0, 0, 255)
    path.write_bytes(b"\xe9\n")
    with pytest.raises(ValueError, match=r"must be a text file in UTF-8"):
        choose(str(path), train, 0, 0, 255)
