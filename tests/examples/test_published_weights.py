"""The published network's weights: initial values, a file with the public names, and errors for other files."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from semi_supervised.deeplab_published import PublishedDeepLab


def small(**options):
    return PublishedDeepLab(5, encoder="resnet50", **options)


def state_of_a_backbone():
    with torch.device("meta"):
        shapes = {name: x.shape for name, x in small().backbone.state_dict().items()}
    return {name: torch.rand(shape) for name, shape in shapes.items()}


def test_convolutions_of_the_backbone_start_normal_by_their_outputs():
    torch.manual_seed(0)
    network = small()
    for name, x in network.backbone.state_dict().items():
        if x.dim() == 4:
            sigma = math.sqrt(2 / (x.shape[0] * x.shape[2] * x.shape[3]))
            count = x.numel()
            # 5 sigma for the mean and the standard deviation of `count` numbers.
            assert abs(x.mean()) < 5 * sigma / math.sqrt(count), name
            assert abs(x.std() / sigma - 1) < 5 / math.sqrt(2 * count), name
        elif name.endswith(("running_var", "weight")):
            assert x.eq(1).all(), name
        else:
            assert x.eq(0).all(), name


def test_zero_init_makes_each_block_start_as_the_identity():
    network = small(zero_init=True)
    for name, x in network.backbone.named_parameters():
        if x.dim() == 1 and name.endswith("weight"):
            assert x.eq(0 if re.search(r"layer\d\.\d+\.bn3\.", name) else 1).all(), name
    x = torch.rand(1, 256, 9, 9)
    assert torch.equal(network.backbone.layer1[1](x), x)


@pytest.mark.parametrize("counters", [True, False])
def test_weights_come_from_a_file_by_the_public_names(counters, tmp_path):
    state = state_of_a_backbone()
    given = {name: x for name, x in state.items() if x.dim()}
    given |= {"fc.weight": torch.rand(1000, 2048), "fc.bias": torch.rand(1000)}
    if counters:  # num_batches_tracked; older files have none
        given |= {name: torch.tensor(7) for name, x in state.items() if not x.dim()}
    torch.save(given, tmp_path / "resnet50.pth")
    loaded = small(zero_init=True, weights=tmp_path / "resnet50.pth").backbone.state_dict()
    for name in state:
        assert torch.equal(loaded[name], given.get(name, torch.tensor(0))), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.update({"conv1.weight": torch.rand(64, 3, 7, 7)}),
            r"its stem is one 7x7 convolution \(conv1\.weight\), as in torchvision; .*three 3x3 conv.*conv1\.0\.weight",
        ),
        (lambda s: s.pop("layer3.5.conv2.weight"), r"it has no layer3\.5\.conv2\.weight$"),
        (lambda s: s.pop("bn1.running_mean"), r"it has no bn1\.running_mean$"),
        (
            lambda s: s.update({"layer3.6.conv1.weight": torch.rand(1)}),
            r"the backbone has no layer3\.6\.conv1\.weight$",
        ),
        (
            lambda s: s.update({"conv1.0.weight": torch.rand(32, 3, 3, 3)}),
            r"conv1\.0\.weight must be \[64, 3, 3, 3\], got \[32, 3, 3, 3\]$",
        ),
        (lambda s: s.update({3: torch.rand(1)}), r"got a Tensor named 3$"),
        (lambda s: s.update({"bn1.bias": None}), r"got a NoneType named 'bn1\.bias'$"),
        (
            lambda s: s["layer4.2.bn3.bias"].fill_(math.nan),
            r"layer4\.2\.bn3\.bias must hold finite floats$",
        ),
        (
            lambda s: s.update({"bn1.bias": torch.ones(128, dtype=torch.int64)}),
            r"bn1\.bias must hold finite floats$",
        ),
    ],
)
def test_a_file_of_other_weights_is_refused(change, message, tmp_path):
    path = tmp_path / "other.pth"
    state = state_of_a_backbone()
    change(state)
    torch.save(state, path)
    with pytest.raises(
        ValueError, match=r"weights: .*other\.pth must hold the backbone's"
    ) as error:
        small(weights=path)
    assert re.search(message, str(error.value))


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights: there is no file .*none\.pth"):
        small(weights=tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "word.pth").write_text("hello")  # a KeyError in the unpickler
    (tmp_path / "empty.pth").touch()
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("text", "word", "empty", "list"):
        with pytest.raises(ValueError, match=rf"weights: .*{name}\.pth must hold the backbone's"):
            small(weights=tmp_path / f"{name}.pth")
