"""The published configurations and network, with ResNet-50 instead of 101: a few steps on miniature data."""

import json
import sys
from pathlib import Path

import pytest
import torch

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import data_trees  # noqa: E402
import train_segmentation  # noqa: E402
from semi_supervised import settings  # noqa: E402
from semi_supervised.config import Config  # noqa: E402

SHORT = (
    "encoder=resnet50 epochs=null warm_up_epochs=null steps=3 warm_up=1 batch=2 labelled=1/4 workers=0 "
    "evaluate_every=9 contrast.bank_capacity=32 contrast.rows_per_push=32 contrast.start=per_class crop=[65,65] "
    "precision=float32"
)


@pytest.mark.parametrize("name", ["voc_1_16.yaml", "cityscapes_1_16.yaml"])
def test_a_published_configuration_trains_the_published_network(name, tmp_path, capsys):
    if name.startswith("voc"):
        home, sbd = data_trees.voc(tmp_path, size=(75, 65))
        where = [f"data={home}", f"sbd={sbd}"]
    else:
        root = data_trees.cityscapes(tmp_path, size=(96, 65))
        where = [f"data={root}", "evaluate_window=[65,65]"]
    overrides = [*SHORT.split(), *where]
    torch.manual_seed(0)
    network = Config(EXAMPLES / "configs" / name, overrides).make_network(21)
    assert type(network).__name__ == "PublishedDeepLab"
    assert network.align_corners
    city = name.startswith("cityscapes")
    assert (network.auxiliary is not None) is city
    assert bool(network.backbone.layer1[0].bn3.weight.eq(0).all()) is city
    assert network.backbone.layer4[-1].conv2.dilation == ((16, 16) if city else (8, 8))
    fixed = ["--config", EXAMPLES / "configs" / name, "--out", tmp_path / "out", "--device", "cpu"]
    train_segmentation.main([str(argument) for argument in (*overrides, *fixed)])
    assert "test images: mIoU" in capsys.readouterr().out
    [path] = (tmp_path / "out").glob("*/metrics.json")
    measured = json.loads(path.read_text())
    assert measured["history"][-1]["contrast"] > 0
    assert measured["evaluate_window"] == ([65, 65] if city else None)
    rules = {"scale_distribution": "balanced", "border_colour": "mean"}
    assert rules.items() <= measured["data"].items()


def test_head_learns_ten_times_as_fast():
    config = Config(EXAMPLES / "configs" / "voc_1_16.yaml", data="x")
    with torch.device("meta"):
        network = config.make_network(21)
    chosen = config.make_settings(9920, 4)
    projection = torch.nn.Conv2d(256, 256, 1)
    backbone, head = settings.optimizer(chosen, network, projection).param_groups
    assert (backbone["factor"], head["factor"]) == (1, 10)
    assert (head["momentum"], head["weight_decay"]) == (0.9, 1e-4)
    count = sum(len(group["params"]) for group in (backbone, head))
    assert count == len([*network.parameters(), *projection.parameters()])
    names = {id(p): name for name, p in network.named_parameters()}
    assert all(names[id(p)].startswith("backbone.") for p in backbone["params"])
    assert not any(names.get(id(p), "").startswith("backbone.") for p in head["params"])
