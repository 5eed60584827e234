"""Each published configuration runs for a few steps on a miniature tree with a small network."""

import csv
import json
import sys
from pathlib import Path

import pytest
from torch import nn

pytest.importorskip("scipy")
pytest.importorskip("sklearn")
pytest.importorskip("tqdm")
pytest.importorskip("torchmetrics")
pytest.importorskip("yaml")
pytest.importorskip("PIL.Image")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import data_trees  # noqa: E402
import train_segmentation  # noqa: E402
from semi_supervised import config  # noqa: E402
from semi_supervised.network import SegmentationNetwork  # noqa: E402

CONFIGS = EXAMPLES / "configs"
PUBLISHED = sorted(path.name for path in CONFIGS.glob("*_1_*.yaml"))


class TwoHeads(SegmentationNetwork):
    """A small network with a backbone, a classifier and a second head, instead of the published one."""

    def __init__(self, num_classes, *, auxiliary: bool = False, **published):
        super().__init__(num_classes, widths=(8, 16), feature_dim=8)
        self.backbone = self.down
        self.auxiliary = nn.Conv2d(3, num_classes, 1) if auxiliary else None

    def forward(self, images, auxiliary=False):
        logits = super().forward(images)
        return (logits, self.auxiliary(images)) if auxiliary else logits


# Arguments of PublishedDeepLab, so that all keys of the files are accepted.
TwoHeads.__init__.__signature__ = config.inspect.signature(config.PublishedDeepLab.__init__)

SHORT = [
    "epochs=null",
    "warm_up_epochs=null",
    "steps=6",
    "warm_up=2",
    "batch=2",
    "crop=[32,32]",
    "labelled=1/4",
    "projection_dim=8",
    "workers=0",
    "report_every=2",
    "evaluate_every=3",
    "contrast.bank_capacity=32",
    "contrast.rows_per_push=32",
]


@pytest.fixture
def small_network(monkeypatch):
    monkeypatch.setitem(config.NETWORKS, "deeplab_published", TwoHeads)


def tree_of(name, root):
    """Returns overrides with a miniature tree for a configuration."""
    if name.startswith("voc"):
        home, sbd = data_trees.voc(root)
        return [f"data={home}", f"sbd={sbd}"]
    return [f"data={data_trees.cityscapes(root)}", "evaluate_window=[24,24]"]


def run(name, out, *overrides, options=()):
    arguments = ["--config", CONFIGS / name, "--device", "cpu", "--out", out, *options, *overrides]
    train_segmentation.main([str(argument) for argument in arguments])


# ---- the files ------------------------------------------------------------------------------------


def test_there_is_a_file_for_each_share():
    names = {f"{d}_1_{n}.yaml": f"1/{n}" for d in ("voc", "cityscapes") for n in (2, 4, 8, 16)}
    assert sorted(names) == PUBLISHED
    for name, share in names.items():
        assert config.Config(CONFIGS / name, data="x").values["labelled"] == share


def test_the_files_carry_the_published_setting(small_network):
    voc, city = (
        config.Config(CONFIGS / f"{name}_1_16.yaml", data="x") for name in ("voc", "cityscapes")
    )
    shared = {
        "network": "deeplab_published",
        "encoder": "resnet101",
        "align_corners": True,
        "scale": [0.5, 2.0],
        "scale_distribution": "balanced",
        "mirror": True,
        "pad": True,
        "border_colour": "mean",
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "unlabelled_weight": 0.5,
        "contrast_weight": 0.5,
        "contrast_view": "weak",
        "ema_maximum": 0.999,
        "ema_from": "warm_up",
        "teacher_mode": "train",
        "teacher_averages": "own",
        "cutmix": 0.5,
        "cutmix_mode": "batch",
        "jitter": 0,
        "schedule_by": "epoch",
        "precision": "float16",
        "projection_dim": 256,
    }
    assert shared.items() <= voc.values.items()
    assert shared.items() <= city.values.items()
    for values, expected in (
        (voc.values, ([513, 513], 16, [6, 12, 18], {"paper": "voc"}, 4, 10)),
        (city.values, ([769, 769], 8, [12, 24, 36], {"paper": "cityscapes"}, 2, 1)),
    ):
        names = ("crop", "output_stride", "atrous_rates", "contrast", "batch", "head_factor")
        assert tuple(values[name] for name in names) == expected
    of_city = {"zero_init": True, "evaluate_window": [800, 800]}
    assert of_city.items() <= city.values.items()
    assert not of_city.keys() & voc.values.keys()
    # 10,582 - 662 unlabelled images, 4 processes with batches of 4: 620 steps per epoch
    settings = voc.make_settings(9920, 4)
    assert (settings.steps, settings.warm_up, settings.learning_rate) == (80 * 620, 620, 1e-3)
    assert settings.epoch_steps == 620
    assert (settings.ohem, settings.auxiliary_weight) == (None, 0.0)
    settings = city.make_settings(2789, 8)
    assert (settings.steps, settings.warm_up, settings.learning_rate) == (200 * 174, 1740, 1e-2)
    assert settings.epoch_steps == 174
    assert (settings.ohem, settings.auxiliary_weight) == ([0.7, 100_000], 0.4)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configuration_runs(name, tmp_path, small_network, capsys):
    run(name, tmp_path / "out", *tree_of(name, tmp_path), *SHORT)
    printed = capsys.readouterr().out
    assert "no labelled image contains the classes" in printed  # since the trees are small
    assert "stays 0; set contrast.start=per_class to change this" in printed
    assert "validation images: mIoU" in printed
    assert "test images: mIoU" in printed
    folder = tmp_path / "out" / "weight-0.5-seed-0"
    with open(folder / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "3", "4", "6"]
    assert rows[1]["validation"]
    assert float(rows[-1]["total"]) > 0
    measured = json.loads((folder / "metrics.json").read_text())
    assert len(measured["class_iou"]) == (21 if name.startswith("voc") else 19)


@pytest.mark.parametrize("name", ["scenes.yaml", "camvid.yaml"])
def test_other_configurations_run(name, tmp_path, capsys):
    if name == "camvid.yaml":
        for seed, split in enumerate(("train", "val", "test")):
            data_trees.folder(tmp_path / "data" / split, 4, seed)
        where = [f"data={tmp_path / 'data'}", "crop=[24,32]"]
    else:
        where = ["unlabelled=6", "evaluated=8"]
    options = ["--labelled", "2"]
    run(name, tmp_path / "out", "steps=4", "warm_up=1", "batch=2", *where, options=options)
    assert "2 labelled" in capsys.readouterr().out
