"""The data sets of the published runs, read from miniature trees, and their labelled fractions."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")
pytest.importorskip("yaml")
pytest.importorskip("sklearn")
Image = pytest.importorskip("PIL.Image")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import data_trees  # noqa: E402
from semi_supervised import images, splits  # noqa: E402
from semi_supervised.cityscapes import CityscapesData  # noqa: E402
from semi_supervised.voc import VocData  # noqa: E402

OPTIONS = {"labelled": "1/4", "crop": (32, 32), "seed": 0}


# ---- VOC with SBD ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sbd", [True, False])
def test_voc_trains_on_its_images_and_those_of_sbd(tmp_path, sbd):
    home, added = data_trees.voc(tmp_path, sbd=sbd)
    data = VocData(home, sbd=added if sbd else None, **OPTIONS)
    names = {sample.name for sample in data.labelled_samples}
    names |= {path.stem for path in data.unlabelled_images}
    assert names == {*data_trees.VOC_TRAIN, *data_trees.ADDED}  # 16, none for validation
    assert [sample.name for sample in data.val] == data_trees.VOC_VAL
    assert data.test == data.val
    assert (data.num_classes, data.ignore_index, len(data.labelled_samples)) == (21, 255, 4)
    assert len(data.pixels) == 21
    assert data.pixels[0] > 0
    assert data.description()["labelled"] == [s.image.name for s in data.labelled_samples]


def test_voc_prefers_its_own_labels_to_those_of_sbd(tmp_path):
    home, added = data_trees.voc(tmp_path)
    labels = {s.name: s for s in VocData(home, sbd=added, **OPTIONS).find_splits(home)["train"]}
    assert labels[data_trees.VOC_TRAIN[0]].label.parent.name == "SegmentationClass"
    assert labels[data_trees.ADDED[0]].label.suffix == ".mat"
    bordered = images.read_label(labels[data_trees.VOC_TRAIN[0]])
    whole = images.read_label(labels[data_trees.ADDED[0]])
    assert (bordered[0] == 255).all()  # the palette's indices, not its colours
    assert whole.max() < 21
    assert whole.dtype == np.uint8


def test_a_mat_and_a_png_of_one_drawing_read_the_same(tmp_path):
    (home, added), (other, _) = (
        data_trees.voc(tmp_path / str(sbd), sbd=sbd) for sbd in (True, False)
    )
    name = data_trees.ADDED[3]
    jpeg = home / "JPEGImages" / f"{name}.jpg"
    mat = images.read_label(images.Sample(jpeg, added / "cls" / f"{name}.mat"))
    png = images.read_label(images.Sample(jpeg, other / "SegmentationClassAug" / f"{name}.png"))
    assert np.array_equal(mat[1:, :-1], png[1:, :-1])  # except the border


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda home, added: home.rename(home.with_name("moved")),
            r"data: there is no folder .*VOC2012",
        ),
        (
            lambda home, added: (home / "ImageSets/Segmentation/val.txt").unlink(),
            r"data: there is no list .*Segmentation/val\.txt",
        ),
        (lambda home, added: (added / "val.txt").unlink(), r"sbd: there is no list .*val\.txt"),
        (
            lambda home, added: (home / f"JPEGImages/{data_trees.ADDED[2]}.jpg").unlink(),
            r"JPEGImages/2009_000002\.jpg is missing",
        ),
        (
            lambda home, added: (added / f"cls/{data_trees.ADDED[2]}.mat").unlink(),
            r"cls/2009_000002\.mat is missing",
        ),
        (
            lambda home, added: (home / f"SegmentationClass/{data_trees.VOC_VAL[0]}.png").unlink(),
            r"SegmentationClass/2008_000000\.png is missing",
        ),
    ],
)
def test_voc_says_what_is_missing(tmp_path, spoil, message):
    home, added = data_trees.voc(tmp_path)
    spoil(home, added)
    with pytest.raises(FileNotFoundError, match=message):
        VocData(home, sbd=added, **OPTIONS)


def test_voc_needs_labels_of_the_added_images(tmp_path):
    home, _ = data_trees.voc(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"must hold SegmentationClassAug/, or sbd must name"
    ):
        VocData(home, **OPTIONS)


@pytest.mark.parametrize("content", ["text", "struct"])
def test_sbd_labels_must_be_sbds(tmp_path, content):
    from scipy.io import savemat

    home, added = data_trees.voc(tmp_path)
    for path in (added / "cls").iterdir():
        if content == "text":
            path.write_text("not a matrix")
        else:
            savemat(path, {"other": 1})
    with pytest.raises(ValueError, match=r"cannot read .*\.mat as a label of SBD"):
        VocData(home, sbd=added, **{**OPTIONS, "labelled": "15"})


def test_a_colour_label_is_refused(tmp_path):
    home, added = data_trees.voc(tmp_path)
    path = home / "SegmentationClass" / f"{data_trees.VOC_VAL[0]}.png"
    Image.open(path).convert("RGB").save(path)
    with pytest.raises(ValueError, match=r"one channel of integers, got uint8 .*2008_000000\.png"):
        VocData(home, sbd=added, **OPTIONS)


@pytest.mark.parametrize("kind", ["JPEGImages", "SegmentationClass"])
def test_a_file_that_ends_early_is_named(tmp_path, kind):
    home, _ = data_trees.voc(tmp_path, size=(400, 300))
    [path] = (home / kind).glob(f"{data_trees.VOC_VAL[0]}.*")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=rf"cannot read .*{path.name} as an image: image file is trunc"
    ):
        images.Sample(
            home / f"JPEGImages/{path.stem}.jpg", home / f"SegmentationClass/{path.stem}.png"
        ).read()


def test_16_bits_of_grey_are_not_cut_off(tmp_path):
    values = np.array([[0, 255, 256], [32768, 40000, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    image = images.read_image(tmp_path / "a.png")
    assert image.shape == (3, 2, 3)
    torch.testing.assert_close(image[1], torch.from_numpy(values.astype(np.float32)) / 65535)
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"8 or 16 bits per channel, got mode F in .*a\.tif"):
        images.read_image(tmp_path / "a.tif")


def test_further_images_are_none_to_evaluate_on(tmp_path):
    home, _ = data_trees.voc(tmp_path, sbd=False)
    with pytest.raises(
        ValueError, match=r"must not hold evaluation images, got .*/2008_000000\.jpg"
    ):
        VocData(home, **OPTIONS, unlabelled=home / "JPEGImages")
    link = tmp_path / "further" / "a.jpg"
    link.parent.mkdir()
    link.symlink_to(home / "JPEGImages" / f"{data_trees.VOC_VAL[1]}.jpg")
    with pytest.raises(ValueError, match=r"must not hold evaluation images, got .*further/a\.jpg"):
        VocData(home, **OPTIONS, unlabelled=link.parent)


# ---- Cityscapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", ["labelIds", "labelTrainIds"])
def test_cityscapes_labels_become_train_ids(tmp_path, ids):
    data = CityscapesData(data_trees.cityscapes(tmp_path, ids=ids), **OPTIONS)
    assert (data.num_classes, data.ignore_index) == (19, 255)
    assert len(data.labelled_samples) == 2
    assert len(data.unlabelled_images) == 6
    assert [sample.name for sample in data.val] == [f"lindau_{i:06d}_000019" for i in range(4)]
    values = {int(v) for sample in data.val for v in np.unique(images.read_label(sample))}
    assert values <= {0, 255, 1, 13, 18, 11}
    assert len(values) > 2


def test_the_ids_are_those_of_the_19_classes():
    expected = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10}
    expected |= {24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
    assert len(images.TRAIN_IDS) == 34
    for i, train_id in enumerate(images.TRAIN_IDS):
        assert train_id == expected.get(i, 255)


def test_cityscapes_says_what_is_missing(tmp_path):
    root = data_trees.cityscapes(tmp_path)
    label = next((root / "gtFine/val/lindau").iterdir())
    label.unlink()
    with pytest.raises(FileNotFoundError, match=r"image .*lindau_.* has no label .*labelIds\.png"):
        CityscapesData(root, **OPTIONS)
    (root / "leftImg8bit/val").rename(root / "leftImg8bit/v")
    with pytest.raises(FileNotFoundError, match=r"must hold leftImg8bit/val/CITY/.*, got none"):
        CityscapesData(root, **OPTIONS)


def test_an_id_beyond_the_34_is_refused(tmp_path):
    root = data_trees.cityscapes(tmp_path)
    label = next((root / "gtFine/val/lindau").iterdir())
    Image.new("L", (64, 32), 34).save(label)
    with pytest.raises(
        ValueError, match=r"labels must lie in \[0, 34\), got 34 in .*labelIds\.png"
    ):
        CityscapesData(root, **OPTIONS)


# ---- labelled images -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("available", "counts"), [(10_582, (662, 1323, 2646, 5291)), (2_975, (186, 372, 744, 1488))]
)
def test_shares_are_the_published_counts(available, counts):
    found = [splits.labelled_count(f"1/{n}", available) for n in (16, 8, 4, 2)]
    assert found == list(counts)


@pytest.mark.parametrize("text", ["1.0", "2.7", "7/2"])
def test_a_share_is_below_1_and_a_number_whole(text):
    with pytest.raises(ValueError, match=rf"a whole number or a fraction below 1 .*, got {text}"):
        splits.labelled_count(text, 10)


def test_a_smaller_share_is_part_of_a_larger_one(tmp_path):
    root = data_trees.cityscapes(tmp_path)
    few, many, others = (
        CityscapesData(root, labelled=labelled, crop=(32, 32), seed=seed)
        for labelled, seed in (("1/4", 0), ("1/2", 0), (0.5, 1))
    )
    assert set(few.labelled_samples) < set(many.labelled_samples)
    assert set(many.labelled_samples) != set(others.labelled_samples)
    assert len(others.labelled_samples) == 4


def test_labelled_images_can_be_asked_to_show_each_class(tmp_path):
    root = data_trees.cityscapes(tmp_path)
    train = CityscapesData(root, **OPTIONS).find_splits(root)["train"]
    order = splits.draw_order(train, 6, 0, shown_in=1, ignore_index=255)
    shown = [set(np.unique(images.read_label(train[i]))) - {255} for i in order]
    assert set().union(*shown[:6]) == set().union(*shown)
    with pytest.raises(
        ValueError, match=r"allow 9 images of each class, got 6: none of 10,000 draws"
    ):
        splits.draw_order(train, 6, 0, shown_in=9, ignore_index=255)


@pytest.mark.parametrize(
    "line",
    [
        "{name}",
        "JPEGImages/{name}.jpg SegmentationClassAug/{name}.png",
        "/JPEGImages/{name}.jpg",
    ],
)
def test_a_list_names_the_labelled_images(tmp_path, line):
    home, _ = data_trees.voc(tmp_path, sbd=False)
    names = [data_trees.ADDED[5], data_trees.VOC_TRAIN[1]]
    path = tmp_path / "labeled.txt"
    path.write_text("\n".join(line.format(name=name) for name in names) + "\n\n")
    data = VocData(home, **{**OPTIONS, "labelled": path})
    assert {sample.name for sample in data.labelled_samples} == set(names)
    assert len(data.unlabelled_images) == 14


def test_a_list_of_cityscapes_names_paths(tmp_path):
    root, path = data_trees.cityscapes(tmp_path), tmp_path / "labeled.txt"
    stem = "zurich/zurich_000002_000019"
    path.write_text(
        f"leftImg8bit/train/{stem}_leftImg8bit.png gtFine/train/{stem}_gtFine_labelTrainIds.png"
    )
    data = CityscapesData(root, **{**OPTIONS, "labelled": str(path)})
    assert [sample.name for sample in data.labelled_samples] == ["zurich_000002_000019"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nobody\n2007_000001\nnothing", r"must list training images, got nobody and 1 more"),
        ("2008_000000", r"must list training images, got 2008_000000$"),
        (
            "2007_000001\n2007_000001",
            r"list at least one image and each only once, got 2 lines with 1 names",
        ),
        ("\n", r"list at least one image and each only once, got 0 lines"),
    ],
)
def test_a_list_must_fit(tmp_path, text, message):
    home, _ = data_trees.voc(tmp_path, sbd=False)
    path = tmp_path / "labeled.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        VocData(home, **{**OPTIONS, "labelled": path})
