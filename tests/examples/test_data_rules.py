"""Magnifications and their distributions, and borders around small images."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("scipy")
pytest.importorskip("sklearn")
pytest.importorskip("PIL.Image")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import data_trees
from semi_supervised import augment, images
from semi_supervised.folder import FolderData
from semi_supervised.scenes import DigitScenes
from semi_supervised.voc import VocData

OPTIONS = {"labelled": "1/4", "crop": (32, 32), "seed": 0}
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)  # ImageNet's, as published


# ---- magnification --------------------------------------------------------------------------------


def distance(drawn, cumulative):
    """Returns the Kolmogorov-Smirnov distance between a sample and a cumulative distribution."""
    drawn = np.sort(drawn)
    expected = np.array([cumulative(x) for x in drawn])
    steps = np.arange(len(drawn) + 1) / len(drawn)
    return max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max())


def balanced(x, low=0.5, high=2.0):
    return (x - low) / (1 - low) / 2 if x < 1 else 0.5 + (x - 1) / (high - 1) / 2


def uniform(x, low=0.5, high=2.0):
    return (x - low) / (high - low)


def test_magnifications_follow_their_distribution():
    rng = np.random.default_rng(0)
    drawn = {
        rule: np.array([augment.draw_scale(rng, (0.5, 2.0), rule) for _ in range(4000)])
        for rule in augment.SCALE_DISTRIBUTIONS
    }
    bound = 1.95 / math.sqrt(4000)  # a correct distribution exceeds it once in a thousand samples
    assert distance(drawn["balanced"], balanced) < bound
    assert distance(drawn["uniform"], uniform) < bound
    assert distance(drawn["balanced"], uniform) > 5 * bound  # the bound separates the two
    # Half are below 1. Sigma of 4,000 coins is 32. The mean is (0.75 + 1.5) / 2; its sigma is 0.44 / 63.
    assert abs((drawn["balanced"] < 1).sum() - 2000) < 160
    assert drawn["balanced"].mean() == pytest.approx(1.125, abs=0.035)


@pytest.mark.parametrize("rule", ["uniform", "balanced"])
def test_a_window_has_the_magnification_drawn(rule):
    """A ramp of slope 1 in the image has slope 1 / magnification in the crop."""
    ramp = torch.arange(200.0).expand(3, 200, -1)
    label = torch.zeros(200, 200, dtype=torch.int64)
    for seed in range(30):
        options = {"scale": (0.5, 2.0), "scale_distribution": rule}
        crop, _ = augment.random_crop(ramp, label, (32, 32), np.random.default_rng(seed), **options)
        same_rng = np.random.default_rng(seed)
        if rule == "uniform":
            magnification = 0.5 + 1.5 * same_rng.random()
        else:
            below = same_rng.random() < 0.5
            magnification = 0.5 + 0.5 * same_rng.random() if below else 1 + same_rng.random()
        window = round(32 / magnification)  # image pixels in the crop
        slope = (crop[0, 16, 20] - crop[0, 16, 10]).item() / 10
        assert slope == pytest.approx(window / 32, abs=1e-5)  # float32 of values up to 200


# ---- borders --------------------------------------------------------------------------------------


def test_a_border_has_no_label_and_is_not_inside(tmp_path):
    home, _ = data_trees.voc(tmp_path, sbd=False)
    data = VocData(home, **{**OPTIONS, "crop": (64, 64)}, scale=(1.0, 1.0), pad=True, mirror=False)
    pictures, labels = data.labelled(3, np.random.default_rng(0))
    assert pictures.shape == (3, 3, 64, 64)
    grey = (pictures == 0.45).all(1)
    assert (grey.sum((1, 2)) == 64 * 64 - 50 * 38).all()
    assert (labels[grey] == 255).all()
    weak, inside = data.unlabelled(3, np.random.default_rng(0))
    assert (inside.sum((1, 2)) == 50 * 38).all()
    assert torch.equal((weak == 0.45).all(1), ~inside)


@pytest.mark.parametrize("scale", [0.5, 0.77, 1.0, 1.3, 2.0])
def test_the_mean_is_exactly_0_after_normalisation(scale):
    """At any magnification, resizing blends image and border at the image's edge."""
    image = torch.rand(3, 20, 37, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.7
    label = torch.zeros(20, 37, dtype=torch.int64)
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    blended, exact = 0, 0
    for seed in range(20):
        options = {"scale": (scale, scale), "border": 255}
        mean, grey = (
            augment.random_crop(
                image, label, (64, 64), np.random.default_rng(seed), border_colour=colour, **options
            )[0]
            for colour in ("mean", "grey")
        )
        inside = (torch.ones(1, 20, 37), torch.zeros(20, 37).long())
        # The same window of an image of ones with a border of 0.45. Pixels of 0.45 are pure border.
        share = augment.random_crop(
            inside[0].expand(3, -1, -1), label, (64, 64), np.random.default_rng(seed), **options
        )[0]
        outside = (share - 0.45).abs().amax(0) < 1e-6
        normalised = (mean - MEAN) / std
        assert (normalised[:, outside] == 0).all()
        assert (normalised[:, ~outside] != 0).all()
        exact += int(outside.sum())
        whole = (share - 1).abs().amax(0) < 1e-6
        blended += int((~outside & ~whole).sum())
        # The border's colour does not affect the inside. 3e-7: three roundings of numbers up to 1.
        torch.testing.assert_close(mean[:, whole], grey[:, whole], rtol=0, atol=3e-7)
    assert exact > 1000
    assert blended > 0 or scale == 1.0


@pytest.mark.parametrize("size", [(5, 7), (8, 7), (5, 10), (8, 10), (3, 3), (6, 8)])
def test_a_border_puts_the_image_in_the_middle(size):
    image = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)) + 1
    sides = augment.border_sides(image, size)
    framed = augment.with_border(image, sides, "mean")
    height, width = max(5, size[0]), max(7, size[1])
    assert framed.shape == (2, 3, height, width)
    first_row, first_column = (height - 5) // 2, (width - 7) // 2
    for row in range(height):
        for column in range(width):
            y, x = row - first_row, column - first_column
            there = 0 <= y < 5 and 0 <= x < 7
            expected = image[:, :, y, x] if there else MEAN[:, 0, 0].expand(2, 3)
            assert torch.equal(framed[:, :, row, column], expected)


def test_grey_gives_the_bits_of_a_plain_padding():
    """Compares with torch.nn.functional.pad, and a crop and resize written here."""
    image = torch.rand(3, 20, 37, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(20, 37, dtype=torch.int64)
    crop, _ = augment.random_crop(
        image, label, (32, 32), np.random.default_rng(3), scale=(0.5, 0.5), border=255
    )
    padded = F.pad(image, (13, 14, 22, 22), value=0.45)  # to the window, 64 x 64
    expected = F.interpolate(padded[None], (32, 32), mode="bilinear", align_corners=False)[0]
    assert torch.equal(crop, expected)


def test_without_a_border_the_window_shrinks():
    image = torch.rand(3, 20, 30)
    label = torch.zeros(20, 30, dtype=torch.int64)
    crop, cut = augment.random_crop(image, label, (40, 40), np.random.default_rng(0))
    assert crop.shape == (3, 40, 40)
    assert not cut.any()


# ---- arguments ------------------------------------------------------------------------------------


def test_the_laws_are_arguments_of_the_data(tmp_path):
    home, _ = data_trees.voc(tmp_path, sbd=False)
    options = {**OPTIONS, "crop": (64, 64), "scale": (0.5, 2.0), "pad": True, "mirror": False}
    data = VocData(home, **options, scale_distribution="balanced", border_colour="mean")
    rules = {"scale_distribution": "balanced", "border_colour": "mean"}
    assert rules.items() <= data.description().items()
    assert (
        VocData(home, **options).description().items() >= {"scale_distribution": "uniform"}.items()
    )
    pictures, _ = data.labelled(8, np.random.default_rng(0))
    assert (pictures == MEAN).all(1).any()
    # The first draw after the choice of 8 images is the coin of the first image.
    same_rng = np.random.default_rng(0)
    chosen = same_rng.integers(len(data.labelled_samples), size=8)
    pair = data.labelled_samples[chosen[0]].read()
    rules |= {"scale": (0.5, 2.0), "border": 255}
    assert torch.equal(pictures[0], augment.random_crop(*pair, (64, 64), same_rng, **rules)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (2.0, 0.5)}, r"scale must be two limits .*, got \[2\.0, 0\.5\]"),
        (
            {"scale_distribution": "log"},
            r"scale_distribution must be one of uniform, balanced, got 'log'",
        ),
        ({"border_colour": "red"}, r"border_colour must be one of grey, mean, got 'red'"),
        (
            {"scale": (1.1, 2.0), "scale_distribution": "balanced"},
            r"scale must include 1 with scale_distribution balanced, got \[1\.1, 2\.0\]",
        ),
    ],
)
def test_folder_refuses_laws_that_are_none(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        FolderData(tmp_path, **OPTIONS, **options)


# ---- scenes ---------------------------------------------------------------------------------------


def test_scenes_have_what_a_folder_has():
    data = DigitScenes(3, 5, seed=0, evaluated=2)
    assert data.pixels.sum() == 3 * 64 * 64
    assert data.border_colour in augment.BORDER_COLOURS
    for samples in (data.val, data.test):
        assert [sample.name for sample in samples] == ["000", "001"]
        for image, label in images.batches(samples):
            assert image.shape == (1, 3, 64, 64)
            assert label.shape == (1, 64, 64)
    assert not torch.equal(data.val[0].image, data.test[0].image)
    weak, inside = data.unlabelled(2, np.random.default_rng(0))
    assert weak.shape[-2:] == inside.shape[-2:]
    assert inside.all()
