"""The published network: shapes, parameter counts, dilations, dropout, and a float64 forward pass that is compared with
functional calls.

Shapes and counts are checked for the real ResNet-101 on PyTorch's meta device.
"""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from dgcl_ops import FeatureTap

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from semi_supervised.deeplab_published import PublishedDeepLab

DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
RATES = {16: (6, 12, 18), 8: (12, 24, 36)}


def on_meta(classes=21, **options):
    with torch.device("meta"):
        return PublishedDeepLab(classes, **options)


def small(stride=16, **options):
    torch.manual_seed(0)
    rates = RATES[stride]
    return PublishedDeepLab(
        5, encoder="resnet50", output_stride=stride, atrous_rates=rates, **options
    )


# ---- structure -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stride", "side", "sides"),
    [
        (16, 513, (129, 65, 33, 33)),
        (8, 769, (193, 97, 97, 97)),
        (8, 800, (201, 101, 101, 101)),  # an evaluation window; max pooling rounds up
        (16, 512, (129, 65, 33, 33)),
    ],
)
def test_shapes(stride, side, sides):
    network = on_meta(output_stride=stride, auxiliary=True).eval()
    images = torch.empty(2, 3, side, side, device="meta")
    maps = network.backbone(images)
    widths = (256, 512, 1024, 2048)
    assert [tuple(x.shape) for x in maps] == [
        (2, w, s, s) for w, s in zip(widths, sides, strict=True)
    ]
    with FeatureTap(network, "classifier") as tap:
        logits, second = network(images, auxiliary=True)
        assert tap.pop().shape == (2, 256, sides[0], sides[0])
    assert logits.shape == second.shape == (2, 21, side, side)
    assert network(torch.empty(1, 3, 375, 500, device="meta")).shape == (1, 21, 375, 500)


def norm(channels):
    return 2 * channels


def conv(inputs, outputs, kernel, bias=False):
    return inputs * outputs * kernel**2 + bias * outputs


def expected_backbone(depths):
    """Returns name and number of elements of each tensor, layer by layer."""
    sizes = {"conv1.0.weight": 3 * 64 * 9, "conv1.3.weight": 64 * 64 * 9}
    sizes["conv1.6.weight"] = 64 * 128 * 9
    norms = {"conv1.1": 64, "conv1.4": 64, "bn1": 128}
    inputs = 128
    for i, (depth, width) in enumerate(zip(depths, (64, 128, 256, 512), strict=True), 1):
        for j in range(depth):
            block = f"layer{i}.{j}"
            sizes[f"{block}.conv1.weight"] = inputs * width
            sizes[f"{block}.conv2.weight"] = width * width * 9
            sizes[f"{block}.conv3.weight"] = width * 4 * width
            norms |= {f"{block}.bn1": width, f"{block}.bn2": width, f"{block}.bn3": 4 * width}
            if j == 0:
                sizes[f"{block}.downsample.0.weight"] = inputs * 4 * width
                norms[f"{block}.downsample.1"] = 4 * width
            inputs = 4 * width
    for name, width in norms.items():
        sizes |= dict.fromkeys([f"{name}.weight", f"{name}.bias"], width)
        sizes |= dict.fromkeys([f"{name}.running_mean", f"{name}.running_var"], width)
        sizes[f"{name}.num_batches_tracked"] = 1
    return sizes


@pytest.mark.parametrize("encoder", list(DEPTHS))
def test_the_backbone_has_the_public_names_and_sizes(encoder):
    network = on_meta(encoder=encoder)
    state = network.backbone.state_dict()
    assert {name: x.numel() for name, x in state.items()} == expected_backbone(DEPTHS[encoder])
    parameters = sum(p.numel() for p in network.backbone.parameters())
    if encoder == "resnet101":
        # ResNet-101 has 44,549,160. Subtract the classifier and the 7x7 stem with its batch norm. Add the deep stem
        # with three, and 64 more input channels for two convolutions of the first block.
        stem = conv(3, 64, 7) + norm(64)
        deep = conv(3, 64, 3) + conv(64, 64, 3) + conv(64, 128, 3) + 2 * norm(64) + norm(128)
        wider = conv(64, 64, 1) + conv(64, 256, 1)
        assert parameters == 44_549_160 - 2_049_000 - stem + deep + wider == 42_623_936


@pytest.mark.parametrize(("classes", "expected"), [(21, 19_466_149), (19, 19_465_635)])
def test_the_head_has_19_5_million_parameters(classes, expected):
    parts = {
        "pyramid": 2 * (conv(2048, 256, 1) + norm(256)) + 3 * (conv(2048, 256, 3) + norm(256)),
        "coarse": conv(5 * 256, 256, 3) + norm(256),
        "fine": conv(256, 48, 1, bias=True) + norm(48),
        "fuse": conv(48 + 256, 256, 3, True) + conv(256, 256, 3, True) + 2 * norm(256),
        "classifier": conv(256, classes, 1, bias=True),
        "auxiliary": conv(1024, 256, 3, True) + norm(256) + conv(256, classes, 1, True),
    }
    network = on_meta(classes, auxiliary=True)
    found = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in network.named_children()
        if name != "backbone"
    }
    assert found == parts
    assert sum(parts.values()) - parts["auxiliary"] == expected


@pytest.mark.parametrize("stride", [16, 8])
def test_strides_and_dilations(stride):
    backbone = on_meta(output_stride=stride).backbone
    convs = [getattr(backbone, f"layer{i}") for i in (1, 2, 3, 4)]
    found = [[(b.conv2.stride[0], b.conv2.dilation[0]) for b in blocks] for blocks in convs]
    third = [(2, 1)] + 22 * [(1, 1)] if stride == 16 else [(1, 1)] + 22 * [(1, 2)]
    last = [(1, 2), (1, 4), (1, 8)] if stride == 16 else [(1, 4), (1, 8), (1, 16)]
    assert found == [3 * [(1, 1)], [(2, 1)] + 3 * [(1, 1)], third, last]
    stem = [backbone.conv1[i].stride[0] for i in (0, 3, 6)]
    assert stem == [2, 1, 1]


# ---- forward --------------------------------------------------------------------------------------


def composed(state, images, stride, rates, dropout):
    """Computes logits of both heads and the features by functional calls. Batch norms use the batch."""

    def batch_norm(x, name):
        return F.batch_norm(
            x, None, None, state[f"{name}.weight"], state[f"{name}.bias"], training=True
        )

    def convolve(x, name, stride=1, dilation=1):
        weight = state[f"{name}.weight"]
        padding = (weight.shape[-1] // 2) * dilation
        return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, padding, dilation)

    def unit(x, name, dilation=1):
        return F.relu(batch_norm(convolve(x, f"{name}.0", dilation=dilation), f"{name}.1"))

    def enlarge(x, like):
        return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)

    def drop(x):
        return F.dropout2d(x, 0.1, training=dropout)

    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    x = (images - torch.tensor(mean).double().view(1, 3, 1, 1)) / torch.tensor(std).double().view(
        1, 3, 1, 1
    )
    x = F.relu(batch_norm(convolve(x, "backbone.conv1.0", stride=2), "backbone.conv1.1"))
    x = F.relu(batch_norm(convolve(x, "backbone.conv1.3"), "backbone.conv1.4"))
    x = F.relu(batch_norm(convolve(x, "backbone.conv1.6"), "backbone.bn1"))
    x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
    coarser = {
        16: ([1] * 3, [1] * 4, [1] * 6, [2, 4, 8]),
        8: ([1] * 3, [1] * 4, [1, 2, 2, 2, 2, 2], [4, 8, 16]),
    }
    firsts = {16: (1, 2, 2, 1), 8: (1, 2, 1, 1)}
    maps = []
    for i in range(4):
        for j, dilation in enumerate(coarser[stride][i]):
            block, step = f"backbone.layer{i + 1}.{j}", firsts[stride][i] if j == 0 else 1
            y = F.relu(batch_norm(convolve(x, f"{block}.conv1"), f"{block}.bn1"))
            y = F.relu(batch_norm(convolve(y, f"{block}.conv2", step, dilation), f"{block}.bn2"))
            y = batch_norm(convolve(y, f"{block}.conv3"), f"{block}.bn3")
            if j == 0:
                x = batch_norm(convolve(x, f"{block}.downsample.0", step), f"{block}.downsample.1")
            x = F.relu(x + y)
        maps.append(x)
    whole = unit(F.adaptive_avg_pool2d(x, 1), "pyramid.pooled")
    branches = [enlarge(whole, x), unit(x, "pyramid.branches.0")]
    branches += [unit(x, f"pyramid.branches.{k + 1}", rate) for k, rate in enumerate(rates)]
    coarse = drop(unit(torch.cat(branches, 1), "coarse"))
    fine = unit(maps[0], "fine")
    y = torch.cat((fine, enlarge(coarse, fine)), 1)
    y = drop(F.relu(batch_norm(convolve(y, "fuse.0"), "fuse.1")))
    features = drop(F.relu(batch_norm(convolve(y, "fuse.4"), "fuse.5")))
    logits = enlarge(convolve(features, "classifier"), images)
    second = convolve(drop(unit(maps[2], "auxiliary")), "auxiliary.4")
    return logits, enlarge(second, images), features


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("stride", [16, 8])
def test_forward_against_functional_calls(stride, dropout):
    """In float64 and in training mode. With dropout, both draw the same masks in the same order."""
    network = small(stride, auxiliary=True).double().train()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():  # no batch norm has weight 1, bias 0
        if parameter.dim() == 1:
            noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data += 0.5 * noise
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.train(dropout)
    images = torch.rand(2, 3, 57, 73, generator=generator, dtype=torch.float64)
    with torch.no_grad(), FeatureTap(network, "classifier") as tap:
        torch.manual_seed(1)
        outputs = (*network(images, auxiliary=True), tap.pop())
        torch.manual_seed(1)
        expected = composed(network.state_dict(), images, stride, RATES[stride], dropout)
    for ours, theirs in zip(outputs, expected, strict=True):
        assert theirs.abs().max() > 0.1
        # The same calls, except for the mean of image pooling. 1e-10 allows for its rounding, through 10 layers.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_dropout_acts_on_the_features_that_are_tapped():
    network = small().train()
    images = torch.rand(2, 3, 65, 65, generator=torch.Generator().manual_seed(0))

    def dead(features):
        """Returns (image, channel) pairs that are 0 at every pixel."""
        return features.flatten(2).eq(0).all(2)

    with torch.no_grad(), FeatureTap(network, "classifier") as tap:
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout2d):
                module.eval()
        network(images)
        assert not dead(tap.pop()).any()
        network.train()
        network(images)
        first = dead(tap.pop())
        network(images)
        second = dead(tap.pop())
        network.eval()
        evaluated = [(network(images), tap.pop())[1] for _ in range(2)]
        assert torch.equal(*evaluated)
    # 512 channels, each dropped with probability 0.1: 51 on average, sigma 6.8.
    for drawn in (first, second):
        assert 51 - 5 * 6.8 < drawn.sum() < 51 + 5 * 6.8
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])  # each image has its own mask


def test_every_parameter_gets_a_gradient():
    network = small(auxiliary=True).train()
    images = torch.rand(2, 3, 65, 65, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(5, (2, 65, 65), generator=torch.Generator().manual_seed(1))
    logits, second = network(images, auxiliary=True)
    F.cross_entropy(second, labels).backward(retain_graph=True)
    for name, parameter in network.named_parameters():  # the second head reads stage 3
        read = re.match(r"auxiliary\.|backbone\.(conv1|bn1|layer[123])\.", name)
        assert (parameter.grad is not None) == bool(read), name
    F.cross_entropy(logits, labels).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


# ---- arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "resnet18"}, r"encoder must be one of .*resnet50.*, got 'resnet18'"),
        ({"output_stride": 32}, r"output_stride must be one of \(8, 16\), got 32"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta(**options)
