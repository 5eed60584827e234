"""Mapping label values to classes: 0 and 255, an ignored 0, colours, one bit."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tqdm")
pytest.importorskip("PIL.Image")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from PIL import Image
from semi_supervised.folder import FolderData
from semi_supervised.label_values import NO_CLASS, read_colours

COLOURS = np.array([[0, 0, 0], [128, 0, 0], [250, 50, 83]], dtype=np.uint8)
LISTS = {
    "labelmap.txt": "# label:color_rgb:parts:actions\nground:0,0,0::\ncar 1:128,0,0::\nroad:250,50,83::\n",
    "label_colors.txt": "0 0 0 ground\n128 0 0\tcar 1\n250 50 83\troad\n",
    "class_dict.csv": "name,r,g,b\nclass 0,0,0,0\nclass 1,128,0,0\nclass 2,250,50,83\n",
}


def folder(root, values, dtype=np.uint8, mode=None, suffix="png"):
    """Writes six images, and labels whose pixels have the values in turn. Returns the places in `values`, [32, 40]."""
    places = np.arange(32 * 40).reshape(32, 40) % len(values)
    for name in ("images", "labels"):
        (root / name).mkdir()
    for i in range(6):
        Image.new("RGB", (40, 32), (i, 9, 9)).save(root / "images" / f"{i}.jpg")
        picture = Image.fromarray(np.array(values, dtype)[places])
        (picture.convert(mode) if mode else picture).save(root / "labels" / f"{i}.{suffix}")
    return places


def make(root, **options):
    return FolderData(root, labelled="2", crop=(32, 32), seed=0, **options)


@pytest.mark.parametrize(
    ("values", "options", "classes"),
    [
        ((0, 255), {"label_values": (0, 255)}, (0, 1)),
        ((0, 255), {"label_values": [255, 0], "num_classes": 2}, (1, 0)),
        ((0, 128, 255), {"label_values": (0, 128)}, (0, 1, NO_CLASS)),
        ((7, 9, 3), {"label_values": (3, 7), "ignore_index": 9}, (1, NO_CLASS, 0)),
        ((0, 1, 2, 3), {"ignore_index": 0}, (NO_CLASS, 0, 1, 2)),
        ((0, 1, 2, 3), {"ignore_index": 0, "num_classes": 5}, (NO_CLASS, 0, 1, 2)),
        ((0, 1, 255), {}, (0, 1, 255)),
        ((0, 2, 1), {"ignore_index": 1, "label_values": (0, 2)}, (0, 1, NO_CLASS)),
    ],
)
def test_values_become_classes(tmp_path, values, options, classes):
    places = folder(tmp_path, values)
    data = make(tmp_path, **options)
    valid = [c for c in classes if c not in (NO_CLASS, 255)]
    assert data.num_classes == options.get("num_classes", len(valid))
    assert data.ignore_index == (NO_CLASS if options else 255)
    for sample in (data.labelled_samples[0], data.test[0]):
        assert np.array_equal(sample.read()[1].numpy(), np.array(classes)[places])
    for c in valid:
        assert data.pixels[c] == 2 * (np.array(classes)[places] == c).sum()
    _, labels = data.labelled(2, np.random.default_rng(0))
    assert set(labels.unique().tolist()) <= set(classes)
    assert data.unlabelled(2, np.random.default_rng(0))[1].all()
    if options:
        assert len(data.description()["label_values"]) == data.num_classes
    else:
        assert "label_values" not in data.description()


@pytest.mark.parametrize(
    ("dtype", "suffix"), [(bool, "png"), (np.uint16, "png"), (np.float32, "tif"), (np.int32, "tif")]
)
def test_other_types_of_pixels(tmp_path, dtype, suffix):
    places = folder(tmp_path, (0, 1), dtype, suffix=suffix)
    assert np.array_equal(make(tmp_path).test[0].read()[1].numpy(), places)


@pytest.mark.parametrize("name", LISTS)
def test_colours_become_classes(tmp_path, name):
    places = folder(tmp_path, COLOURS)
    (tmp_path / name).write_text(LISTS[name])
    with pytest.raises(ValueError) as caught:
        make(tmp_path)
    message = str(caught.value)
    assert "in the colours 0 0 0, 128 0 0, 250 50 83" in message
    assert f"colours={tmp_path / name} uses its list of colours" in message
    data = make(tmp_path, colours=tmp_path / name)
    assert data.num_classes == 3
    assert np.array_equal(data.test[0].read()[1].numpy(), places)


def test_a_palette_and_transparency_hold_colours_too(tmp_path):
    places = folder(tmp_path, COLOURS)
    (tmp_path / "c.txt").write_text("\ufeff0 0 0 ground\r\n128 0 0 car\r\n250 50 83 Ignore\r\n")
    for i, mode in enumerate(("P", "RGBA")):
        path = tmp_path / "labels" / f"{i}.png"
        Image.open(path).convert(mode, palette=Image.Palette.ADAPTIVE).save(path)
    data = make(tmp_path, colours=tmp_path / "c.txt")
    assert data.num_classes == 2
    for sample in (sample for samples in data.splits.values() for sample in samples):
        expected = np.array((0, 1, NO_CLASS))[places]
        assert np.array_equal(sample.read()[1].numpy(), expected)


def test_a_file_without_colours_is_refused(tmp_path):
    path = tmp_path / "c.txt"
    path.write_text("1 2 3 a\n1,2,3,b\n")
    with pytest.raises(ValueError, match=r"different colours in \[0, 256\), got '1,2,3,b'"):
        read_colours(path)
    path.write_text("256 0 0 a\n")
    with pytest.raises(ValueError, match=r"different colours in \[0, 256\), got '256 0 0 a'"):
        read_colours(path)
    with pytest.raises(FileNotFoundError, match=r"colours: there is no file"):
        read_colours(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ((0, 255), {}, r"hold only 0 and 255, .* set label_values=\[0,255\]"),
        ((0, 255), {"num_classes": 2}, r"hold only 0 and 255, .* set label_values=\[0,255\]"),
        (
            (0, 255),
            {"num_classes": 2, "ignore_index": 254},
            r"got 255 in .*png; label_values=\[0,255\] makes these the classes",
        ),
        ((0, 255), {"ignore_index": 254}, r"\[0, 256\), got 254; .* label_values=\[0,255\] makes"),
        (
            (0, 128, 255),
            {},
            r"only the values \[0,128\] and ignore_index 255; set label_values=\[0,128\] if",
        ),
        ((0, 17, 255), {"label_values": (0, 255)}, r"ignore_index in each pixel, got 17 at 427"),
        ((0, 1, 9), {"ignore_index": 0, "num_classes": 2}, r"in \[1, 2\] or .* 0 .*, got 9 at"),
        (
            (0, 1, 2),
            {"ignore_index": 1},
            r"outside the classes \[0, 3\), got 1.*label_values=\[0,2\]",
        ),
        ((0, 1), {"label_values": (0,)}, r"label_values must hold at least 2 classes .*, got 1"),
        ((0, 1), {"label_values": (0, 1, 2), "num_classes": 2}, r"most num_classes 2, got 3"),
        ((0, 1), {"label_values": (0, 0)}, r"label_values must be different numbers"),
        (
            (0, 1),
            {"label_values": (0, -1)},
            r"label_values must be different numbers in \[0, 65536",
        ),
        ((0, 1), {"label_values": (0, 1), "colours": "x"}, r"exclude each other"),
        ((0, 0), {"ignore_index": 0}, r"labels must hold a class, got only pixels without"),
        (COLOURS, {}, r"in the colours 0 0 0, .*write a text file with a line like `128 0 0 car`"),
    ],
)
def test_says_what_to_set(tmp_path, values, options, message):
    folder(tmp_path, values)
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **options)


def test_a_colour_that_is_not_listed(tmp_path):
    folder(tmp_path, COLOURS)
    (tmp_path / "c.txt").write_text("0 0 0 ground\n128 0 0 car\n")
    with pytest.raises(
        ValueError, match=r"got 250 50 83 at 426 .*; the line `250 50 83 ignore` ignores it"
    ):
        make(tmp_path, colours=tmp_path / "c.txt")
