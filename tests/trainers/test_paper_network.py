"""DeepLabV3+ from segmentation_models.pytorch: shapes, weights, and steps of the published configurations."""

import sys
from pathlib import Path

import pytest
import torch

try:
    import torchvision
except (ImportError, RuntimeError) as error:  # its operators do not register with another PyTorch
    pytest.skip(f"needs torchvision: {error}", allow_module_level=True)
for package in (
    "segmentation_models_pytorch",
    "sklearn",
    "scipy",
    "yaml",
    "tqdm",
    "torchmetrics",
    "PIL",
):
    pytest.importorskip(package)

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "examples"), str(TESTS.parent / "examples")]

import data_trees  # noqa: E402
import train_segmentation  # noqa: E402
from semi_supervised.deeplab import DeepLabV3Plus  # noqa: E402
from test_method_rules import check_perturbed  # noqa: E402

SHORT = (
    "epochs=null warm_up_epochs=null steps=2 warm_up=1 batch=2 labelled=1/4 workers=0 evaluate_every=9 "
    "contrast.bank_capacity=32 contrast.rows_per_push=32 crop=[65,65] scale=[1.0,1.0] "
    "network=deeplabv3plus zero_init=null precision=float32"
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return DeepLabV3Plus(21)


def test_features_have_stride_4_on_odd_windows(network):
    tapped = []
    handle = network.classifier.register_forward_pre_hook(lambda _, x: tapped.append(x[0].shape))
    with torch.no_grad():
        for side, expected in ((65, 17), (513, 129)):
            logits = network.eval()(torch.rand(1, 3, side, side))
            assert logits.shape == (1, 21, side, side)
            assert tapped.pop() == (1, 256, expected, expected)
        network(torch.rand(1, 3, 70, 51))  # whole images can have any size
    handle.remove()
    assert network.classifier.in_channels == 256
    assert network.classifier.kernel_size == (1, 1)


def test_perturbed_maps_follow_the_others():
    check_perturbed(DeepLabV3Plus(3, encoder="resnet18", auxiliary=True))


def test_it_is_a_resnet_101(network):
    stages = [len(getattr(network.backbone, f"layer{i}")) for i in (1, 2, 3, 4)]
    assert stages == [3, 4, 23, 3]
    assert network.auxiliary is None


def test_output_stride_8_and_the_second_head():
    torch.manual_seed(0)
    network = DeepLabV3Plus(
        19, encoder="resnet18", output_stride=8, atrous_rates=(12, 24, 36), auxiliary=True
    )
    images = torch.rand(2, 3, 65, 65)
    assert network.backbone(images)[-1].shape[-2:] == (9, 9)
    logits, second = network(images, auxiliary=True)
    assert logits.shape == second.shape == (2, 19, 65, 65)
    (logits.mean() + second.mean()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_maps_are_enlarged_as_asked():
    torch.manual_seed(0)
    network = DeepLabV3Plus(5, encoder="resnet18", align_corners=True).eval()
    given = []
    network.classifier.register_forward_hook(lambda _, __, output: given.append(output))
    with torch.no_grad():
        logits = network(torch.rand(1, 3, 65, 65))
        network.align_corners = False
        assert not torch.equal(logits, network(torch.rand(1, 3, 65, 65)))
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        torch.testing.assert_close(logits[(..., *corner)], given[0][(..., *corner)])


def test_weights_come_from_a_file(network, tmp_path):
    """Returns weights with torchvision's names, including the classifier, which is ignored."""
    torch.manual_seed(1)
    whole = torchvision.models.resnet18(weights=None)
    torch.save(whole.state_dict(), tmp_path / "resnet18.pth")
    loaded = DeepLabV3Plus(21, encoder="resnet18", weights=tmp_path / "resnet18.pth")
    for name, tensor in whole.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(loaded.backbone.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match=r"weights: .*resnet18\.pth must hold the backbone's"):
        DeepLabV3Plus(21, encoder="resnet50", weights=tmp_path / "resnet18.pth")
    torch.save({"conv1.0.weight": torch.rand(64, 3, 3, 3)}, tmp_path / "deep.pth")
    with pytest.raises(ValueError, match=r"its stem has three 3x3 .* network deeplab_published"):
        DeepLabV3Plus(21, encoder="resnet18", weights=tmp_path / "deep.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"weights: .*text\.pth must hold the backbone's"):
        DeepLabV3Plus(21, encoder="resnet18", weights=tmp_path / "text.pth")
    with pytest.raises(FileNotFoundError, match=r"weights: there is no file .*none\.pth"):
        DeepLabV3Plus(21, encoder="resnet18", weights=tmp_path / "none.pth")


@pytest.mark.parametrize("name", ["voc_1_16.yaml", "cityscapes_1_16.yaml"])
def test_a_published_configuration_trains_this_network(name, tmp_path, capsys):
    if name.startswith("voc"):
        home, sbd = data_trees.voc(tmp_path, size=(75, 65))
        where = [f"data={home}", f"sbd={sbd}"]
    else:
        root = data_trees.cityscapes(tmp_path, size=(96, 65))
        where = [f"data={root}", "evaluate_window=[65,65]"]
    config = TESTS.parent / "examples" / "configs" / name
    fixed = ["--config", str(config), "--out", str(tmp_path / "out"), "--device", "cpu"]
    train_segmentation.main([*SHORT.split(), *where, *fixed])
    assert "test images: mIoU" in capsys.readouterr().out
