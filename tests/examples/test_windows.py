"""Evaluation in overlapping windows, compared with a loop over pixels. The network's logits depend on the window."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

for package in ("matplotlib", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import data_trees  # noqa: E402
import train_segmentation  # noqa: E402
from semi_supervised import evaluate  # noqa: E402
from semi_supervised.config import RunKeys  # noqa: E402


class Place(nn.Module):
    """A network with logits that depend on the pixel, its place in the window, and the window's mean."""

    def __init__(self, dtype=None):
        super().__init__()
        self.dtype = dtype
        self.anything = nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        height, width = images.shape[-2:]
        row = torch.arange(height, dtype=images.dtype)[:, None].expand(height, width)
        column = torch.arange(width, dtype=images.dtype).expand(height, width)
        whole = images.mean((1, 2, 3))[:, None, None]
        red, green, blue = images.unbind(1)
        logits = torch.stack((red * row + whole, green * column - whole, blue + row * column), 1)
        return logits.to(self.dtype)


def grid(side, window):
    """Returns where windows start, by the formulas of the published program."""
    step = math.ceil(window * 2 / 3)
    count = math.ceil((side - window) / step) + 1
    return [min(i * step + window, side) - window for i in range(count)]


def oracle(images, window, colour, dtype=None):
    """Computes pixel by pixel the mean logits over the windows that cover it."""
    batch, _, height, width = images.shape
    full = [max(side, least) for side, least in zip((height, width), window, strict=True)]
    top, left = (full[0] - height) // 2, (full[1] - width) // 2
    framed = torch.tensor(colour, dtype=images.dtype)[:, None, None].repeat(batch, 1, *full)
    framed[:, :, top : top + height, left : left + width] = images
    network, found = Place(dtype), {}
    for y in grid(full[0], window[0]):
        for x in grid(full[1], window[1]):
            found[y, x] = network(framed[:, :, y : y + window[0], x : x + window[1]].clone()).to(
                images
            )
    logits = torch.zeros(batch, 3, height, width, dtype=images.dtype)
    for row in range(height):
        for column in range(width):
            covering = [
                each[:, :, top + row - y, left + column - x]
                for (y, x), each in found.items()
                if 0 <= top + row - y < window[0] and 0 <= left + column - x < window[1]
            ]
            logits[:, :, row, column] = sum(covering) / len(covering)
    return logits


@pytest.mark.parametrize("colour", ["grey", "mean"])
@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((9, 12), (9, 12)),  # equal: one window
        ((7, 20), (9, 12)),  # lower than a window: a border above and below
        ((20, 5), (9, 12)),
        ((4, 5), (9, 12)),  # smaller in both directions
        ((21, 28), (9, 12)),  # 9 + 2 steps of 6, 12 + 2 steps of 8
        ((22, 27), (9, 12)),  # the last windows are pushed back
        ((10, 13), (9, 12)),  # by all but one pixel
        ((23, 31), (10, 7)),  # sides not divisible by 3: steps of 7 and 5
        ((6, 8), (2, 2)),
    ],
)
def test_logits_are_the_mean_over_the_windows(size, window, colour):
    colours = {"grey": (0.45, 0.45, 0.45), "mean": (0.485, 0.456, 0.406)}
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)).double()
    network = Place()
    with torch.no_grad():
        logits = evaluate.Windows(network, window, colour)(images)
    expected = oracle(images, window, colours[colour])
    # Sums of at most 9 windows' float64 logits, up to 120 in size.
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    assert set(network.seen) == {(2, 3, *window)}  # one window at a time
    counts = (len(grid(max(a, b), b)) for a, b in zip(size, window, strict=True))
    assert len(network.seen) == math.prod(counts)


def test_the_starts_are_the_published_ones():
    assert evaluate.starts(1024, 800) == [0, 224]
    assert evaluate.starts(2048, 800) == [0, 534, 1068, 1248]
    for window in (2, 3, 7, 12, 800):
        for side in range(window, 3 * window + 5):
            assert evaluate.starts(side, window) == grid(side, window)


def test_half_precision_is_summed_in_float32():
    images = torch.rand(1, 3, 30, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = evaluate.Windows(Place(torch.float16), (9, 12), "grey")(images)
    assert logits.dtype == torch.float32
    expected = oracle(images, (9, 12), (0.45, 0.45, 0.45), torch.float16)
    # Sums of equal float16 numbers, up to 500. Summed in float16 they would be off by 0.1.
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_predictions_and_counts_go_through_the_windows():
    images = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(3, (1, 20, 30), generator=torch.Generator().manual_seed(1))
    expected = oracle(images, (9, 12), (0.45, 0.45, 0.45)).argmax(1)
    network = evaluate.as_evaluated(Place(), (9, 12), "grey")
    assert torch.equal(evaluate.predict(network, images), expected)
    assert not torch.equal(evaluate.predict(network.network, images), expected)
    matrix = evaluate.confusion_matrix(network, [(images, labels)], 3, 255)
    assert matrix.diag().sum() == (labels == expected).sum()
    whole = Place()
    assert evaluate.as_evaluated(whole, None, "grey") is whole


@pytest.mark.parametrize("window", [[800], [1, 8], [8, 8, 8]])
def test_a_window_is_a_height_and_a_width(window):
    with pytest.raises(ValueError, match=r"evaluate_window must be a height and a width, each"):
        RunKeys("folder", "small", evaluate_window=window)
    with pytest.raises(TypeError, match=r"evaluate_window must be of type .*, got 800"):
        RunKeys("folder", "small", evaluate_window=800)


def test_a_run_evaluates_by_windows(tmp_path, monkeypatch):
    """Validation (twice), test and overlays use windows. Features and densities use whole images and do not change."""
    for seed, (split, count) in enumerate({"train": 8, "val": 2, "test": 3}.items()):
        data_trees.folder(tmp_path / "data" / split, count, seed)
    seen = []
    forward = evaluate.Windows.forward

    def watched(self, images):
        assert not self.network.training
        seen.append(tuple(images.shape[-2:]))
        return forward(self, images).roll(1, dims=1)  # other classes: the figures must follow

    monkeypatch.setattr(evaluate.Windows, "forward", watched)
    measured = {}
    for window in ("null", "[16,24]"):
        keys = "steps=4 warm_up=2 batch=2 crop=[24,32] evaluate_every=2 labelled=4"
        place = ["--data", tmp_path / "data", "--out", tmp_path / window, "--device", "cpu"]
        arguments = [*keys.split(), f"evaluate_window={window}", *place]
        train_segmentation.main([str(argument) for argument in arguments])
        [path] = (tmp_path / window).glob("*/metrics.json")
        measured[window] = json.loads(path.read_text())
        assert seen == ([] if window == "null" else [(32, 40)] * (2 + 2 + 3 + 3))
    whole, windows = measured["null"], measured["[16,24]"]
    assert whole["evaluate_window"] is None
    assert windows["evaluate_window"] == [16, 24]
    assert whole["class_iou"] != windows["class_iou"]
    same = (*evaluate.SCORES, "history")
    assert {name: whole[name] for name in same} == {name: windows[name] for name in same}
