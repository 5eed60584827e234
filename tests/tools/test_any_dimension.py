"""Labels, the entropy filter, FeatureTap, scores and pictures with maps of one, two, three and more dimensions."""

import numpy as np
import pytest
import torch
from torch import nn

from dgcl_ops import (
    DensityContrastLoss,
    FeatureTap,
    PseudoLabelLoss,
    entropy_filter,
    metrics,
    resize_labels,
    viz,
)
from dgcl_ops.labels import prediction_entropy

SIZES = [((7,), (3,)), ((5, 6), (2, 9)), ((4, 5, 6), (2, 5, 3)), ((2, 3, 4, 5), (3, 2, 4, 1))]


class Subclass(torch.Tensor):
    """A tensor subclass that only adds behaviour."""


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_resize_labels(old, new):
    labels = torch.randint(9, (2, *old))
    expected = labels
    for dim, side in enumerate(new, start=1):
        places = [i * old[dim - 1] // side for i in range(side)]
        expected = torch.stack([expected.select(dim, place) for place in places], dim)
    assert torch.equal(resize_labels(labels, new), expected)
    assert torch.equal(resize_labels(labels[0], new), expected[0])
    assert torch.equal(resize_labels(labels[:, None], torch.Size(new)), expected)
    got = resize_labels(labels.to(torch.uint8).as_subclass(Subclass), list(new))
    assert type(got) is torch.Tensor
    assert torch.equal(got.long(), expected)


def test_resize_keeps_every_integer_dtype():
    for dtype in (torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.bool):
        labels = torch.tensor([[0, 1], [1, 0]]).to(dtype)
        assert resize_labels(labels, (2, 4)).dtype == dtype


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.zeros((2, 2), int), TypeError, r"got ndarray; use torch\.from_numpy\(labels\)"),
        ([torch.zeros(2, 2)], TypeError, r"got list; use torch\.stack\(labels\)"),
        (torch.zeros(2, 1, 4, 4), TypeError, r"got torch\.float32; use labels\.long\(\)"),
        (torch.zeros(2, 3, 4, 4).long(), ValueError, r"got \[2, 3, 4, 4\]; for one-hot labels"),
        (torch.zeros(2, 1, 1, 4, 4).long(), ValueError, r"2 spatial dimensions, as size"),
        (torch.zeros(2, 1, 0, 4).long(), ValueError, r"at least one pixel, got \[2, 1, 0, 4\]"),
    ],
)
def test_resize_errors_name_the_fix(labels, error, message):
    with pytest.raises(error, match=f"^resize_labels: labels must .*{message}"):
        resize_labels(labels, (2, 2))


@pytest.mark.parametrize("shape", [(24,), (2, 3, 4), (2, 1, 3, 2, 2), ()])
def test_the_entropy_filter_is_that_of_2d_maps(shape):
    logits = torch.randn(2, 4, 4, 6) if shape else torch.randn(48, 4)[None].mT[..., None]
    valid = torch.rand(logits.shape[0], *logits.shape[2:]) > 0.3
    expected = entropy_filter(logits, 0.6, valid_mask=valid)
    assert 0 < (expected != 255).sum() < 48
    if shape:
        given, mask = logits.view(2, 4, *shape), valid.view(2, *shape)
        masks = (mask, mask[:, None])
    else:  # rows
        given, masks = logits[0, :, :, 0].T, (valid.flatten(),)
    for mask in masks:
        got = entropy_filter(given.as_subclass(Subclass), 0.6, valid_mask=mask)
        assert type(got) is torch.Tensor
        assert torch.equal(got.flatten(), expected.flatten())
    assert torch.equal(prediction_entropy(given).flatten(), prediction_entropy(logits).flatten())
    loss = PseudoLabelLoss()
    for labels in (got, got[:, None]):
        value = loss(given.as_subclass(Subclass), labels.as_subclass(Subclass))
        assert type(value) is torch.Tensor
        torch.testing.assert_close(value, loss(logits, expected))


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 1, 4, 4, 4), (8, 1)])
@pytest.mark.parametrize("function", [prediction_entropy, lambda x: entropy_filter(x, 1.0)])
def test_one_channel_has_no_entropy(function, shape):
    with pytest.raises(
        ValueError, match=r"at least 2 classes, .* torch\.cat\(\[-logits, logits\], 1\) / 2"
    ):
        function(torch.randn(shape))


def test_the_advice_for_one_channel_is_right():
    logits = torch.randn(2, 1, 5, 5, dtype=torch.float64)
    two = torch.cat([-logits, logits], 1) / 2
    torch.testing.assert_close(two.softmax(1)[:, 1:], logits.sigmoid())
    assert torch.equal(entropy_filter(two, 1.0), (logits[:, 0] > 0).long())


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@pytest.mark.parametrize("dims", CONVOLUTIONS)
def test_tap_pools_any_dimension(dims):
    model = nn.Module()
    model.final_conv = CONVOLUTIONS[dims](2, 3, 1)
    maps = torch.randn(2, 2, *(4, 6, 8)[:dims])
    means = maps
    for dim in range(2, 2 + dims):
        means = means.unflatten(dim, (-1, 2)).mean(dim + 1)
    for options in ({"feature_stride": 2}, {"pool_to": means.shape[2:]}):
        with FeatureTap(model, **options) as tap:
            assert tap.channels == 2
            model.final_conv(maps.as_subclass(Subclass))
            got = tap.pop()
            assert type(got) is torch.Tensor
            torch.testing.assert_close(got, means)


def test_tap_refuses_other_dimensions():
    model = nn.Sequential(nn.Identity())
    for options, rule in (({"feature_stride": 2}, "one to three"), ({"pool_to": (2, 2, 2)}, "3")):
        with FeatureTap(model, "0", **options) as tap:
            model(torch.zeros(1, 2, 2, 2, 2, 2))
            with pytest.raises(ValueError, match=rf"with {rule} spatial dimensions for pooling"):
                tap.pop()


def test_scores_of_subclasses_and_of_maps():
    features = torch.randn(40, 3)
    labels = torch.arange(40) % 2
    expected = metrics.silhouette_score(features, labels)
    got = metrics.silhouette_score(features.as_subclass(Subclass), labels[:, None])
    assert type(got) is torch.Tensor
    assert torch.equal(got, expected)
    with pytest.raises(ValueError, match=r"use features\.movedim\(1, -1\)\.flatten\(0, -2\)"):
        metrics.silhouette_score(features.T.view(1, 3, 5, 8), labels)
    with pytest.raises(TypeError, match=r"silhouette_score: labels .*torch\.from_numpy\(labels\)"):
        metrics.silhouette_score(features, labels.numpy())
    with pytest.raises(TypeError, match=r"density_statistics: labels .*torch\.tensor\(labels\)"):
        metrics.density_statistics(torch.zeros(2), [0, 1], 2)


def test_pictures_of_volumes():
    loss = DensityContrastLoss(2, 4, scales=(2,), bank_capacity=64, rows_per_push=32, seed=0)
    maps, labels = torch.randn(2, 4, 3, 4, 5), torch.randint(2, (2, 3, 4, 5))
    for _ in range(2):
        loss(maps, labels)
    slices = viz.density_map(loss.bank, maps, labels[:, None], (6, 8, 10))
    assert slices.shape == (2, 6, 8, 10)
    flat = viz.density_map(loss.bank, maps[:, :, 1], labels[:, 1], (4, 5))
    volume = viz.density_map(loss.bank, maps, labels, (3, 4, 5))
    torch.testing.assert_close(volume[:, 1], flat)
    with pytest.raises(ValueError, match=r"density_map: features must have .* size \(6, 8\)"):
        viz.density_map(loss.bank, maps, labels, (6, 8))
    pytest.importorskip("matplotlib")
    images, names = torch.rand(2, 1, 3, 4, 5), ("a", "b")
    figure = viz.plot_panels(images[:, :, 1], {"labels": labels[:, 1]}, {"d": volume[:, 1]}, names)
    assert len(figure.axes) == 7  # with the colour bar
    with pytest.raises(ValueError, match=r"plot_panels: .*such as images\[:, :, z\] and labels\[:"):
        viz.plot_panels(images, {"labels": labels}, {}, names)
    with pytest.raises(ValueError, match=r"class_image: labels must .* such as labels\[z\]"):
        viz.class_image(labels[0], 2)
    with pytest.raises(ValueError, match=r"density_image: image must .* such as image\[:, z\]"):
        viz.density_image(images[0], volume[0])
