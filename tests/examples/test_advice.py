"""What a run measures for advise.py: right pseudo labels, counts of labelled images. Also runs the whole program."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

for package in ("matplotlib", "scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)
from PIL import Image  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import advise  # noqa: E402
import data_trees  # noqa: E402
import train_segmentation  # noqa: E402
from semi_supervised import advice  # noqa: E402
from semi_supervised.settings import Settings  # noqa: E402
from semi_supervised.trainer import Trainer  # noqa: E402


class Colours(nn.Module):
    """The features are the colours of every second pixel times a tint. Logits at full size favour class 0."""

    def __init__(self):
        super().__init__()
        self.tint = nn.Parameter(torch.tensor([1.0, 2.0, 0.5]))
        self.classifier = nn.Conv2d(3, 3, 1)

    def forward(self, images):
        features = images[..., ::2, ::2] * self.tint[:, None, None]
        logits = F.interpolate(self.classifier(features), images.shape[-2:], mode="nearest")
        return logits + torch.tensor([1.0, 0.0, 0.0])[:, None, None]


class Drawn:
    """Three images of random colours with random labels. Their first rows have no labels."""

    num_classes, ignore_index, labelled_samples = 3, 255, ()
    pixels = images = np.ones(3, dtype=np.int64)

    def __init__(self):
        draw = torch.Generator().manual_seed(0)
        self.val = self.test = []
        for height, width in ((12, 16), (8, 20), (10, 10)):
            label = torch.randint(3, (height, width), generator=draw)
            label[0] = 255
            image = torch.rand(3, height, width, generator=draw)
            self.val.append(SimpleNamespace(read=lambda pair=(image, label): pair))

    def description(self):
        return {}


def constructed(view: str, density_of: str) -> Trainer:
    """Returns a run whose teacher, student and bank differ. Class 2 has no density."""
    torch.manual_seed(0)
    contrast = {"scales": (1,), "bank_capacity": 2, "rows_per_push": 2, "min_rows": 2}
    settings = Settings(
        method={"name": "self_training"},
        batch=2,
        contrast=contrast,
        contrast_view=view,
        density_of=density_of,
        projection_dim=3,
    )
    trainer = Trainer(Colours(), Drawn(), settings)
    with torch.no_grad():
        trainer.teacher.module.tint.fill_(1)
        trainer.teacher.module.classifier.weight.copy_(torch.eye(3)[:, :, None, None] * 3)
        trainer.teacher.module.classifier.bias.zero_()
    bank = trainer.contrast.bank
    bank.features.copy_(F.normalize(torch.randn(bank.features.shape), dim=-1))
    bank.counts.copy_(torch.tensor([2, 2, 1]))
    return trainer


def direct(trainer: Trainer) -> dict[str, list[int]]:
    """Computes the same counts in float64, pixel by pixel."""
    tint = trainer.student.tint.detach()
    rows = trainer.contrast.bank.features.double().numpy()
    shift = np.array([trainer.settings.contrast_view == "strong", 0, 0])
    pixels = []
    for group in (trainer.data.val[:2], trainer.data.val[2:]):
        found = []
        for sample in group:
            image, label = sample.read()
            colours = image[:, ::2, ::2]
            features = (colours * tint[:, None, None])[None]
            if trainer.settings.density_of == "projections":
                with torch.no_grad():
                    features = trainer.method.head.module.eval()(features)
            points = zip(
                colours.flatten(1).T.double().numpy(),
                features[0].flatten(1).T.double().numpy(),
                label[::2, ::2].flatten().tolist(),
                strict=True,
            )
            for colour, feature, true in points:
                logits = 3 * colour + shift
                probability = np.exp(logits) / np.exp(logits).sum()
                c = int(logits.argmax())
                density = max(feature @ row / np.linalg.norm(feature) for row in rows[c])
                found.append((-(probability * np.log(probability)).sum(), c, true, density))
        limit = np.quantile([entropy for entropy, *_ in found], 0.9)  # the contrast drops 10 %
        pixels += [rest for entropy, *rest in found if entropy < limit]
    pixels = [each for each in pixels if each[1] != 255]
    counts = {"pixels": [], "right": [], "sparse_pixels": [], "sparse_right": []}
    for c in range(3):
        own = sorted((density, label == true) for label, true, density in pixels if label == c)
        sparse = own[: -(-len(own) // 5)] if c < 2 else []
        numbers = len(own), sum(r for _, r in own), len(sparse), sum(r for _, r in sparse)
        for name, number in zip(counts, numbers, strict=True):
            counts[name].append(int(number))
    return counts


@pytest.mark.parametrize("density_of", ["features", "projections"])
@pytest.mark.parametrize("view", ["weak", "strong"])
def test_right_pseudo_labels_equal_a_direct_count(view, density_of):
    trainer = constructed(view, density_of)
    measured = advice.measure(trainer, torch.eye(3, dtype=torch.int64))
    assert measured["pseudo_labels"] == direct(trainer)
    assert measured["bank"]["ready"] == [True, True, False]
    assert measured["validation_miou"] == 100


def test_at_most_so_many_pixels_of_a_group_are_counted():
    trainer = constructed("weak", "features")
    counts = advice.pseudo_labels(trainer, advice.batches(trainer.data.val), per_group=10)
    assert sum(counts["pixels"]) == 20


# ---- a real run -----------------------------------------------------------------------------------


def test_three_calls_and_the_advice(tmp_path, capsys):
    for seed, (split, count) in enumerate({"train": 8, "val": 2, "test": 3}.items()):
        data_trees.folder(tmp_path / "data" / split, count, seed)
    fixed = "steps=8 warm_up=3 batch=2 crop=[24,32] widths=[8,16] feature_dim=8 feature_stride=2"
    fixed = [*fixed.split(), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "runs")]
    fixed += ["--labelled", "4", "--device", "cpu", "--seeds", "0", "1"]
    for chosen in ("method.name=supervised", "method.name=self_training", "method.name=dgcl"):
        train_segmentation.main([chosen, *fixed])
    capsys.readouterr()
    advise.main([str(tmp_path / "runs")])
    text = capsys.readouterr().out
    assert "6 runs, 3 classes, 2 validation images" in text
    assert "(2 seeds)" in text

    run = tmp_path / "runs" / "self_training-seed-1"
    metrics = json.loads((run / "metrics.json").read_text())
    labels = [
        np.array(Image.open(tmp_path / "data" / "train" / "labels" / name))
        for name in metrics["data"]["labelled"]
    ]
    shown = [[int((label == c).sum()) for label in labels] for c in range(3)]
    assert metrics["advice"]["labelled_pixels"] == [sum(counts) for counts in shown]
    assert metrics["advice"]["labelled_images"] == [np.count_nonzero(counts) for counts in shown]
    assert metrics["advice"]["bank"]["pushes"] == 5  # steps after the warm-up
    assert 0 < sum(metrics["advice"]["pseudo_labels"]["pixels"]) <= 2 * 20 * 16
