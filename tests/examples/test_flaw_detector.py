"""The flaw detector of GCT: its layers, its flaws without noise, its targets. Loops in float64 are the oracle."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from semi_supervised.methods.flaw_detector import (  # noqa: E402
    FlawDetector,
    blurred,
    true_flaws,
    without_noise,
)
from test_method_losses import softmax  # noqa: E402
from test_method_runs import make_trainer  # noqa: E402

B, C, H, W = 2, 3, 18, 35


def drawn(*shape, seed=0, scale=1.0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64) * scale


# ---- loops ----------------------------------------------------------------------------------------


def blurred_by_loops(image, share):
    """The two-dimensional kernel, pixel by pixel. image: [H, W]."""
    radii = [side // share // 2 for side in image.shape]  # 2 r + 1 is the side's share, or one more
    axes = []
    for radius in radii:
        sigma = 0.3 * ((2 * radius + 1 - 1) / 2 - 1) + 0.8
        axes.append(np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2)))
    kernel = np.outer(*axes) / np.outer(*axes).sum()
    around = np.pad(image, [(r, r) for r in radii], mode="reflect")
    rows, columns = kernel.shape
    return np.array(
        [
            [(around[i : i + rows, j : j + columns] * kernel).sum() for j in range(image.shape[1])]
            for i in range(image.shape[0])
        ]
    )


def scaled_by_loops(image):
    return (image - image.min()) / (image.max() - image.min() + 1e-9)


def dilated_by_loops(image):
    height, width = image.shape
    return np.array(
        [
            [image[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].max() for j in range(width)]
            for i in range(height)
        ]
    )


def clean_by_loops(flaws):
    image = blurred_by_loops(np.maximum(flaws, 0), 16)
    return scaled_by_loops(image) if image.max() > 0.1 else np.zeros_like(image)


def target_by_loops(logits, labels, counted):
    """logits: [H, W, C]."""
    flaws = np.zeros(labels.shape)
    for at in np.ndindex(labels.shape):
        if counted[at]:
            flaws[at] = (
                0.5 * np.abs(np.eye(logits.shape[-1])[labels[at]] - softmax(logits[at])).sum()
            )
    return scaled_by_loops(blurred_by_loops(dilated_by_loops(blurred_by_loops(flaws, 8)), 4))


@pytest.mark.parametrize(
    ("size", "share"), [((18, 35), 4), ((18, 35), 8), ((40, 33), 16), ((9, 3), 16)]
)
def test_the_blur_is_that_of_the_kernel(size, share):
    maps = drawn(2, 1, *size)
    expected = [blurred_by_loops(each[0].numpy(), share) for each in maps]
    np.testing.assert_allclose(blurred(maps, share)[:, 0], np.stack(expected), rtol=0, atol=1e-14)


def test_flaws_without_noise_are_those_of_the_loop():
    flaws = drawn(4, 1, H, W)
    flaws[1] *= 0.05  # nowhere above 0.1
    flaws[2] = -flaws[2].abs()
    flaws[3] = 0.5  # constant
    found = without_noise(flaws)
    expected = [clean_by_loops(each[0].numpy()) for each in flaws]
    np.testing.assert_allclose(found[:, 0], np.stack(expected), rtol=0, atol=1e-6)
    assert not found[1:3].any()
    assert found[0].min() == 0
    assert found[0].max() == pytest.approx(1)


@pytest.mark.parametrize("ignore", [255, -1])
def test_the_detectors_targets_are_those_of_the_loop(ignore):
    logits, labels = drawn(B, C, H, W, scale=3), drawn(B, H, W).gt(0).long()
    labels[0, :6] = ignore
    counted = labels != ignore
    found = true_flaws(logits.softmax(1), labels, counted)
    maps = logits.numpy().transpose(0, 2, 3, 1), labels.numpy(), counted.numpy()
    expected = [target_by_loops(*each) for each in zip(*maps, strict=True)]
    np.testing.assert_allclose(found[:, 0], np.stack(expected), rtol=0, atol=1e-12)


def test_a_pixel_without_a_label_is_no_flaw():
    """One-hot labels of such pixels are zeros, so every probability would count as wrong."""
    right = F.one_hot(torch.zeros(1, H, W, dtype=torch.int64), C).permute(0, 3, 1, 2) * 30.0
    labels = torch.zeros(1, H, W, dtype=torch.int64)
    labels[:, :9] = 255
    flaws = true_flaws(right.double().softmax(1), labels, labels != 255)
    assert flaws.max() < 1e-3
    assert true_flaws(right.double().softmax(1), labels * 0 + 1, labels == 0).max() > 0.9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_without_flaws_stay_zero_in_half_precision(dtype):
    labels, probabilities = torch.zeros(B, H, W, dtype=torch.int64), torch.full((B, C, H, W), 1 / 3)
    assert not true_flaws(probabilities.to(dtype), labels, labels == 1).any()
    assert not without_noise(torch.zeros(B, 1, H, W, dtype=dtype)).any()


# ---- the detector ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (56, 56), (64, 65)])
def test_the_detector_takes_images_of_any_size(size):
    detector = FlawDetector(C, width=4)
    flaws = detector(torch.rand(2, 3, *size), torch.rand(2, C, *size))
    assert flaws.shape == (2, 1, *size)
    flaws.square().mean().backward()
    assert all(weight.grad is not None for weight in detector.parameters())


def test_the_detector_is_that_of_the_paper():
    detector = FlawDetector(21)
    convolutions = [each for each in detector.modules() if isinstance(each, nn.Conv2d)]
    assert [each.in_channels for each in convolutions] == [24, 64, 128, 128, 256, 256, 512, 512]
    assert [each.out_channels for each in convolutions] == [64, 128, 128, 256, 256, 512, 512, 1]
    assert [each.stride[0] for each in convolutions] == [2, 2, 1, 2, 1, 2, 1, 2]
    assert {each.kernel_size for each in convolutions} == {(4, 4)}
    norm = detector.layers[1].train()
    x = torch.randn(3, 64, 5, 6)
    expected = torch.cat(
        (F.batch_norm(x[:, :32], None, None, training=True), F.instance_norm(x[:, 32:])), 1
    )
    torch.testing.assert_close(norm(x), expected)


def test_the_detector_learns_where_the_flaws_are():
    """The network is wrong in the left half of each image."""
    torch.manual_seed(0)
    trainer = make_trainer(
        {"name": "gct", "detector_width": 8, "detector_learning_rate": 3e-3}, steps=60
    )
    detector, own = trainer.method.detector, trainer.method.optimizers["detector"]
    labels = torch.randint(11, (2, 64, 96))
    logits = F.one_hot(labels, 11).permute(0, 3, 1, 2) * 8.0
    logits[..., :48] = logits[..., :48].roll(1, 1)
    images = torch.rand(2, 3, 64, 96)
    images[:, 0, :, :48] += 1
    probabilities = torch.cat((logits, logits)).softmax(1)
    losses = []
    for _ in range(40):
        phase = trainer.method.detector_phase(images, probabilities, labels)
        own.zero_grad()
        phase.losses["total"].backward()
        own.step()
        losses.append(phase.losses["detector"].item())
    assert losses[-1] < losses[0] / 10
    flaws = without_noise(detector(images, logits.softmax(1)))
    assert flaws[..., :32].min() > 0.6 > 0.4 > flaws[..., 64:].max()
