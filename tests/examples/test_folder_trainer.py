"""The trainer on a folder of images: output files, exact resumption, errors for wrong data."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

for package in ("matplotlib", "sklearn", "tqdm", "torchmetrics", "yaml"):
    pytest.importorskip(package)
Image = pytest.importorskip("PIL.Image")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import data_trees  # noqa: E402
import train_segmentation  # noqa: E402
from semi_supervised import folder  # noqa: E402


@pytest.fixture
def divided(tmp_path):
    for seed, (split, count) in enumerate({"train": 8, "val": 2, "test": 3}.items()):
        data_trees.folder(tmp_path / "data" / split, count, seed)
    return tmp_path / "data"


def train(data, *options, out=None):
    fixed = "steps=8 warm_up=3 batch=2 crop=[24,32] report_every=4 evaluate_every=4"
    out = data.parent / "out" if out is None else out
    arguments = [*fixed.split(), "--data", data, "--out", out, "--device", "cpu", *options]
    train_segmentation.main([str(argument) for argument in arguments])
    return out


def test_folder_trainer_writes_what_it_measured(divided, capsys):
    out = train(divided, "--labelled", "4", "--seeds", 1, "--contrast-weight", 0, 0.5)
    printed = capsys.readouterr().out
    assert "4 labelled and 4 unlabelled images, 3 classes" in printed
    assert "2 validation images: mIoU" in printed
    assert "3 test images: mIoU" in printed
    result = json.loads((out / "metrics.json").read_text())
    assert len(result["paired"]["miou"]["differences"]) == 1
    for name in ("weight-0-seed-1", "weight-0.5-seed-1"):
        run = out / name
        measured = json.loads((run / "metrics.json").read_text())
        assert len(measured["class_iou"]) == 3
        assert measured["data"]["num_classes"] == 3
        assert len((run / "classes.csv").read_text().splitlines()) == 4
        overlays = list(run.glob("overlay-*.png"))
        assert len(overlays) == 3
        assert Image.open(overlays[0]).size == (4 * 40, 32)


def test_densities_of_projections_are_not_drawn(divided):
    """With this setting the bank holds projections, so it has no densities of features."""
    out = train(divided, "--labelled", 4, "density_of=projections", "projection_dim=8")
    run = out / "weight-0.5-seed-0"
    measured = json.loads((run / "metrics.json").read_text())
    assert measured["error_by_density"] == []
    assert Image.open(min(run.glob("overlay-*.png"))).size == (3 * 40, 32)
    assert sum(measured["advice"]["pseudo_labels"]["pixels"]) > 0


def test_folder_trainer_resumes_exactly(divided, tmp_path):
    whole = train(divided, "--labelled", "1/2", out=tmp_path / "whole")
    parts = train(divided, "--labelled", "1/2", "--stop-at", 3, out=tmp_path / "parts")
    checkpoint = parts / "weight-0.5-seed-0" / "checkpoint.pt"
    assert not (parts / "metrics.json").exists()
    train(divided, "--labelled", "1/2", "--resume", checkpoint, out=parts)
    ours, theirs = (
        torch.load(each / "weight-0.5-seed-0" / "checkpoint.pt", weights_only=True)
        for each in (whole, parts)
    )
    for part in ("student", "contrast"):
        assert ours[part].keys() == theirs[part].keys()
        for name, tensor in ours[part].items():
            assert torch.equal(tensor, theirs[part][name]), name
    measured = [json.loads((each / "metrics.json").read_text()) for each in (whole, parts)]
    assert measured[0]["methods"] == measured[1]["methods"]


def test_a_run_is_not_written_over(divided, capsys):
    train(divided, "--labelled", "4")
    assert "the density loss at the end:\nThe last loss was" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        train(divided, "--labelled", "4")
    assert (
        "weight-0.5-seed-0 already holds a run; pass --resume auto to continue it, or"
        in capsys.readouterr().err
    )
    # The finished run is evaluated again. The other one starts.
    train(divided, "--labelled", "4", "--resume", "auto", "--contrast-weight", 0.5, 0)
    printed = capsys.readouterr().out
    assert printed.count("continues") == printed.count("checkpoint.pt at step 8\n") == 1
    assert printed.count("test images: mIoU") == 2


def test_folder_without_splits_holds_a_fifth_of_the_images_out(tmp_path, capsys):
    data_trees.folder(tmp_path / "data", 10)
    data_trees.folder(tmp_path / "more", 4)
    train(tmp_path / "data", "--labelled", "8", "--unlabelled", tmp_path / "more" / "images")
    printed = capsys.readouterr().out
    assert "8 labelled and 4 unlabelled" in printed
    assert "2 test images" in printed


@pytest.mark.parametrize("case", ["one class", "no class", "diverged"])
def test_a_run_ends_with_figures(divided, case):
    """The test images show one class or none, or the features are not finite."""
    options = ["--contrast-weight", 0, 0.5, "--labelled", 4]
    if case == "diverged":
        options += ["optimizer=sgd", "learning_rate=1e30"]
    else:
        for path in divided.glob("test/labels/*.png"):
            Image.new("L", (40, 32), 0 if case == "one class" else 255).save(path)
    out = train(divided, *options)
    result = json.loads((out / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert result["paired"]["silhouette"]["mean"] is None
    for weight in ("0", "0.5"):
        run = out / f"weight-{weight}-seed-0" / "metrics.json"
        measured = json.loads(run.read_text(), parse_constant=pytest.fail)
        assert measured["silhouette"] is None
        assert (measured["miou"] is None) == (case == "no class")


def test_masks_of_0_and_255_train_and_resume(divided, tmp_path, capsys):
    for path in divided.glob("*/labels/*.png"):
        Image.open(path).point(lambda value: 255 if 0 < value < 255 else 0).save(path)
    options = ["--labelled", 4, "workers=1"]
    train(divided, *options, "label_values=[0,255]", "--stop-at", 3)
    assert "4 unlabelled images, 2 classes" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        train(divided, *options, "label_values=[255,0]", "--resume", "auto")
    assert "label_values must be [0, 255] as in the checkpoint" in capsys.readouterr().err
    out = train(divided, *options, "label_values=[0,255]", "--resume", "auto")
    measured = json.loads((out / "weight-0.5-seed-0" / "metrics.json").read_text())
    assert measured["data"]["label_values"] == [0, 255]
    assert len(measured["class_iou"]) == 2


def test_a_damaged_unlabelled_image_ends_the_run_before_its_first_step(divided, tmp_path, capsys):
    data_trees.folder(tmp_path / "more", 4)
    path = tmp_path / "more" / "images" / "02.png"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SystemExit) as stopped:
        train(divided, "--labelled", "8", "--unlabelled", path.parent)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert f"cannot read {path} as an image" in printed.err
    assert "unlabelled images," not in printed.out


def spoil_nothing(data):
    return ()


def no_folder(data):
    data.rename(data.with_name("away"))


def no_images(data):
    (data / "train" / "images").rename(data / "train" / "pictures")


def empty_images(data):
    for path in (data / "val" / "images").iterdir():
        path.unlink()


def only_train(data):
    (data / "val").rename(data / "v")
    (data / "test").rename(data / "t")


def no_label(data):
    (data / "train" / "labels" / "03.png").unlink()


def other_size(data):
    Image.new("L", (40, 31)).save(data / "test" / "labels" / "01.png")


def colour_label(data):
    Image.new("RGB", (40, 32)).save(data / "test" / "labels" / "01.png")


def high_label(data):
    Image.new("L", (40, 32), 37).save(data / "val" / "labels" / "01.png")


def only(value):
    def spoil(data):
        for label in data.glob("*/labels/*.png"):
            Image.new("L", (40, 32), value).save(label)

    return spoil


def broken_image(data):
    (data / "test" / "images" / "01.png").write_text("not an image")


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (no_folder, "", r"data: there is no folder .*data"),
        (no_images, "", r"there is no folder .*train/images"),
        (empty_images, "", r"folder .*val/images must hold images .*, got none"),
        (only_train, "", r"has train/ and needs val/ or test/ as well"),
        (no_label, "", r"image .*images/03\.png has no label .*labels/03\.png"),
        (other_size, "", r"its image's size 40 x 32, got 40 x 31 in .*test/labels/01\.png"),
        (colour_label, "", r"one channel of integers, got uint8 \[32, 40, 3\] in .*01\.png"),
        (high_label, "num_classes=3", r"in \[0, 3\) or .* 255, got 37 in .*val/labels/01\.png"),
        (broken_image, "", r"cannot read .*01\.png as an image"),
        (spoil_nothing, "--labelled 0", r"must select at least one image, got 0 of 8"),
        (
            spoil_nothing,
            "--labelled few",
            r"a number or a fraction of the images, or a file .*, got few",
        ),
        (spoil_nothing, "--labelled 9", r"at most the 8 training images, got 9"),
        (spoil_nothing, "--labelled 8", r"labelled must leave unlabelled images, got 8 of 8"),
        (only(255), "", r"labels must hold a class, got only 255"),
        (only(0), "", r"there must be at least 2 classes, got 1"),
        (spoil_nothing, "ignore_index=-1", r"ignore_index must lie in \[0, 65536\), got -1"),
        (
            spoil_nothing,
            "--contrast-weight -1",
            r"contrast_weight must be finite and not negative, got \[-1",
        ),
        (spoil_nothing, "--seeds -1", r"seeds must not be negative, got \[-1\]"),
        (spoil_nothing, "--stop-at 0", r"--stop-at must be at least 1, got 0"),
        (spoil_nothing, "--seeds 2 2", r"seeds must differ, got \[2, 2\]"),
        (spoil_nothing, "ignore_index=1", r"outside the classes \[0, 256\), got 1"),
        (spoil_nothing, "crop=[8]", r"crop must be .* of at least 16, got \[8\]"),
        (spoil_nothing, "warm_up=9", r"warm_up must lie in \[0, 8\], got 9"),
        (
            spoil_nothing,
            "contrast.exclude_classes=[3]",
            r"exclude_classes must lie in \[0, 3\), got 3",
        ),
        (spoil_nothing, "--device nowhere", r"--device nowhere cannot be used"),
        (spoil_nothing, "--resume nowhere.pt", r"nowhere\.pt"),
        (spoil_nothing, "--seeds 0 1 --stop-at 3", r"need a single run, got seeds \[0, 1\]"),
    ],
)
def test_folder_trainer_says_what_is_wrong(divided, capsys, spoil, options, message):
    spoil(divided)
    with pytest.raises(SystemExit) as stopped:
        train(divided, "--labelled", "4", *options.split())
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_folder_needs_enough_images(tmp_path):
    data_trees.folder(tmp_path, 3)
    with pytest.raises(ValueError, match=r"at least 5 images, got 3"):
        folder.find_splits(tmp_path)
