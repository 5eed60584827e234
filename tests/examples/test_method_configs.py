"""Each method's configurations with its program's numbers: a few steps on miniature trees with a small network."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from semi_supervised import config, methods  # noqa: E402
from semi_supervised.network import SegmentationNetwork  # noqa: E402
from test_paper_trainer import run, tree_of  # noqa: E402

FOLDER = EXAMPLES / "configs" / "methods"
SHARED = ("base_voc", "base_cityscapes")
FILES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem not in SHARED)
SHORT = (
    "epochs=null warm_up_epochs=null steps=4 warm_up=1 batch=2 crop=[32,32] labelled=1/4 workers=0 report_every=2 "
    "evaluate_every=9 precision=float32"
)
# Smaller than in the files, to save time.
SMALLER = {"u2pl": ["method.queue=1000"], "gct": ["method.detector_width=4"]}
# Unlabelled images of the 1/16 splits.
UNLABELLED = {"voc": 10_582 - 662, "cityscapes": 2975 - 186}
# Processes, steps, warm-up, rate of the backbone, factor of the head, decay of the teacher.
EXPECTED = {
    "supervised_voc": (2, 80 * 662 // 16, 0, 1e-3, 10, 0),
    "supervised_cityscapes": (4, 200 * 186 // 16, 0, 1e-2, 1, 0),
    "fixmatch_voc": (4, 80 * 1240, 0, 5e-4, 10, 0),
    "fixmatch_cityscapes": (4, 240 * 348, 0, 2.5e-3, 1, 0),
    "unimatch_voc": (4, 80 * 1240, 0, 5e-4, 10, 0),
    "unimatch_cityscapes": (4, 240 * 348, 0, 2.5e-3, 1, 0),
    "unimatch_v2_voc": (4, 60 * 620, 0, 5e-4, 10, 0.996),
    "unimatch_v2_cityscapes": (4, 180 * 348, 0, 2.5e-3, 1, 0.996),
    "mean_teacher_voc": (4, 32 * 1240, 0, 2.5e-3, 1, 0.99),
    "mean_teacher_cityscapes": (4, 128 * 348, 0, 2.5e-3, 1, 0.99),
    "cps_voc": (4, 32 * 1240, 0, 2.5e-3, 1, 0),
    "cps_cityscapes": (4, 128 * 348, 0, 2.5e-3, 1, 0),
    "cutmix_seg_voc": (1, 40_000, 0, 1e-6, 10, 0.99),
    "cutmix_seg_cityscapes": (1, 40_000, 0, 3e-6, 10, 0.99),
    "augseg_voc": (4, 80 * 620, 0, 1e-3, 10, 0.999),
    "augseg_cityscapes": (4, 240 * 174, 0, 1e-2, 1, 0.996),
    "density_step_voc": (4, 80 * 620, 620, 1e-3, 10, 0.999),
    "density_step_cityscapes": (8, 200 * 174, 1740, 1e-2, 1, 0.999),
    "gta_seg_voc": (4, 80 * 826, 826, 1e-3, 10, 0.999),
    "gta_seg_cityscapes": (8, 200 * 174, 174, 1e-2, 1, 0.999),
    "gct_voc": (4, 32 * 1240, 0, 2.5e-3, 1, 0),
    "gct_cityscapes": (4, 128 * 348, 0, 2.5e-3, 1, 0),
    "cct_voc": (4, 32 * 1240, 0, 2.5e-3, 1, 0),
    "cct_cityscapes": (4, 128 * 348, 0, 2.5e-3, 1, 0),
    "ps_mt_voc": (4, 80 * 310, 5 * 310, 1e-2, 1, 0.996),
    "ps_mt_cityscapes": (4, 320 * 174, 5 * 174, 4.5e-3, 1, 0.996),
    "u2pl_voc": (4, 80 * 620, 620, 1e-3, 10, 0.99),
    "u2pl_cityscapes": (8, 200 * 174, 0, 1e-2, 1, 0.99),
    "pcr_voc": (8, 80 * 620, 620, 1e-3, 10, 0.99),
    "pcr_cityscapes": (8, 200 * 174, 174, 1e-2, 1, 0.99),
    "reco_voc": (1, 40_000, 0, 2.5e-3, 1, 0.99),
    "reco_cityscapes": (1, 40_000, 0, 2.5e-3, 1, 0.99),
}
# Rate and weight decay of programs that minimise a part of the loss, and that part.
SCALED = {
    "fixmatch_voc": (1e-3, 1e-4, 1 / 2),
    "fixmatch_cityscapes": (5e-3, 1e-4, 1 / 2),
    "unimatch_voc": (1e-3, 1e-4, 1 / 2),
    "unimatch_cityscapes": (5e-3, 1e-4, 1 / 2),
    "unimatch_v2_voc": (1e-3, 1e-4, 1 / 2),
    "unimatch_v2_cityscapes": (5e-3, 1e-4, 1 / 2),
    "mean_teacher_voc": (1e-2, 1e-4, 1 / 4),
    "mean_teacher_cityscapes": (2e-2, 1e-4, 1 / 8),
    "cps_voc": (1e-2, 1e-4, 1 / 4),
    "cps_cityscapes": (2e-2, 1e-4, 1 / 8),
    "gct_voc": (1e-2, 1e-4, 1 / 4),
    "gct_cityscapes": (2e-2, 1e-4, 1 / 8),
    "cct_voc": (1e-2, 1e-4, 1 / 4),
    "cct_cityscapes": (2e-2, 1e-4, 1 / 8),
}


class Small(SegmentationNetwork):
    """A small network with a backbone and a second head, instead of the published one."""

    def __init__(self, num_classes, *, auxiliary: bool = False, **published):
        super().__init__(num_classes, widths=(8, 16), feature_dim=8)
        self.backbone = self.down
        self.auxiliary = nn.Conv2d(3, num_classes, 1) if auxiliary else None

    def forward(self, images, auxiliary=False, perturb=None):
        logits = super().forward(images, perturb)
        return (logits, self.auxiliary(images)) if auxiliary else logits


# Arguments of PublishedDeepLab, so that all keys of the files are accepted.
Small.__init__.__signature__ = config.inspect.signature(config.PublishedDeepLab.__init__)


def test_the_files_are_named_after_methods():
    for stem in FILES:
        name, dataset = stem.rsplit("_", 1)
        chosen = config.Config(FOLDER / f"{stem}.yaml", data="x")
        assert chosen.method_name == name
        assert chosen.values["dataset"] == dataset
        assert chosen.values["network"] == "deeplab_published"
    # dgcl and self_training have ../voc.yaml and ../cityscapes.yaml.
    others = methods.METHODS.keys() - {"dgcl", "self_training"}
    assert set(FILES) == {f"{name}_{dataset}" for name in others for dataset in UNLABELLED}
    assert EXPECTED.keys() == set(FILES)


@pytest.mark.parametrize("stem", FILES)
def test_the_numbers_are_those_of_the_program(stem):
    chosen = config.Config(FOLDER / f"{stem}.yaml", data="x")
    ranks, *expected = EXPECTED[stem]
    settings = chosen.make_settings(UNLABELLED[stem.rsplit("_", 1)[1]], ranks)
    found = settings.steps, settings.warm_up, settings.learning_rate, settings.head_factor
    assert [*found, settings.ema_maximum] == expected
    assert settings.batch >= 2  # the network's image pooling needs two images
    assert (settings.auxiliary_weight > 0) == chosen.values.get("auxiliary", False)
    text = " ".join((FOLDER / f"{stem}.yaml").read_text().replace("#", " ").split())
    assert "Labelled list: " in text
    assert ("Not reproduced at the published size." in text) != ("no published figures" in text)


@pytest.mark.parametrize("stem", SCALED)
def test_other_rates_and_decays_make_the_same_updates(stem):
    rate, decay, part = SCALED[stem]
    settings = config.Config(FOLDER / f"{stem}.yaml", data="x").make_settings(100, 1)
    ends = []
    for lr, weight_decay, scale in (
        (rate, decay, part),
        (settings.learning_rate, settings.weight_decay, 1),
    ):
        weights = nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
        rules = {"lr": lr, "weight_decay": weight_decay, "momentum": settings.momentum}
        optimizer = torch.optim.SGD([weights], **rules)
        for _ in range(20):
            optimizer.zero_grad()
            (scale * (weights - 3).square().sum()).backward()
            optimizer.step()
        ends.append(weights.detach())
    torch.testing.assert_close(*ends, rtol=1e-12, atol=0)


@pytest.mark.long
@pytest.mark.parametrize("stem", FILES)
def test_each_file_runs(stem, tmp_path, monkeypatch):
    monkeypatch.setitem(config.NETWORKS, "deeplab_published", Small)
    name, dataset = stem.rsplit("_", 1)
    where = [key for key in tree_of(dataset, tmp_path) if not key.startswith("evaluate")]
    if config.Config(FOLDER / f"{stem}.yaml", data="x").run.evaluate_window:
        where.append("evaluate_window=[24,24]")
    keys = SHORT.split() + SMALLER.get(name, [])
    run(f"methods/{stem}.yaml", tmp_path / "out", *keys, *where)
    measured = json.loads((tmp_path / "out" / f"{name}-seed-0" / "metrics.json").read_text())
    assert measured["method"] == name
    losses = [record["total"] for record in measured["history"] if "total" in record]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
