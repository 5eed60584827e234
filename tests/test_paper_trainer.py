"""Each published configuration, run for a few steps on a miniature tree with a small network in place of theirs."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("scipy")
pytest.importorskip("sklearn")
pytest.importorskip("tqdm")
pytest.importorskip("torchmetrics")
yaml = pytest.importorskip("yaml")
pytest.importorskip("PIL.Image")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import paper_trees  # noqa: E402
import train_segmentation  # noqa: E402
from semi_supervised import config, distributed, evaluate, loading  # noqa: E402
from semi_supervised.logs import Log  # noqa: E402
from semi_supervised.network import SegmentationNetwork  # noqa: E402
from semi_supervised.scenes import DigitScenes  # noqa: E402
from semi_supervised.settings import SMALL, Settings  # noqa: E402
from semi_supervised.trainer import Trainer, hard_pixels  # noqa: E402

CONFIGS = EXAMPLES / "configs"
PUBLISHED = sorted(path.name for path in CONFIGS.glob("*_1_*.yaml"))


class TwoHeads(SegmentationNetwork):
    """Stands in for the published network: a backbone of its own, a classifier, a second head."""

    def __init__(self, num_classes, *, auxiliary: bool = False, **published):
        super().__init__(num_classes, widths=(8, 16), feature_dim=8)
        self.backbone = self.down
        self.auxiliary = nn.Conv2d(3, num_classes, 1) if auxiliary else None
        self.published = published

    def forward(self, images, auxiliary=False):
        logits = super().forward(images)
        return (logits, self.auxiliary(images)) if auxiliary else logits


# What DeepLabV3Plus takes, so that the files are read with all their keys.
TwoHeads.__init__.__signature__ = config.inspect.signature(config.DeepLabV3Plus.__init__)

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
    monkeypatch.setitem(config.NETWORKS, "deeplabv3plus", TwoHeads)


def tree_of(name, root):
    """Overrides that name a miniature tree for this configuration."""
    if name.startswith("voc"):
        home, sbd = paper_trees.voc(root)
        return [f"data={home}", f"sbd={sbd}"]
    return [f"data={paper_trees.cityscapes(root)}"]


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
        "encoder": "resnet101",
        "optimizer": "sgd",
        "head_factor": 10,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "unlabelled_weight": 0.5,
        "contrast_weight": 0.5,
        "ema_maximum": 0.999,
        "teacher_mode": "train",
        "cutmix": 0.5,
        "jitter": 0,
        "projection_dim": 256,
    }
    assert shared.items() <= voc.values.items()
    assert shared.items() <= city.values.items()
    assert voc.values["crop"] == [513, 513]
    # 10,582 - 662 unlabelled images, 4 processes with batches of 4: 620 steps an epoch
    settings = voc.make_settings(9920, 4)
    assert (settings.steps, settings.warm_up, settings.learning_rate) == (80 * 620, 620, 1e-3)
    assert (settings.ohem, settings.auxiliary_weight) == (None, 0.0)
    settings = city.make_settings(2789, 8)
    assert (settings.steps, settings.warm_up, settings.learning_rate) == (200 * 174, 1740, 1e-2)
    assert (settings.ohem, settings.auxiliary_weight) == ([0.7, 100_000], 0.4)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configuration_runs(name, tmp_path, small_network, capsys):
    run(name, tmp_path / "out", *tree_of(name, tmp_path), *SHORT)
    printed = capsys.readouterr().out
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
        from test_examples import write_samples

        for seed, split in enumerate(("train", "val", "test")):
            write_samples(tmp_path / "data" / split, 4, seed)
        where = [f"data={tmp_path / 'data'}", "crop=[24,32]"]
    else:
        where = ["unlabelled=6", "evaluated=8"]
    run(name, tmp_path / "out", "labelled=2", "steps=4", "warm_up=1", "batch=2", *where)
    assert "2 labelled" in capsys.readouterr().out


# ---- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["learning_rat=1"],
            r"unknown key 'learning_rat' of dataset folder.*near names: learning_rate",
        ),
        (["sbd=x"], r"unknown key 'sbd' of dataset folder and network small"),
        (
            ["contrast.temprature=1"],
            r"unknown key 'temprature' of contrast; near names: temperature",
        ),
        (["steps"], r"an override must be key=value, got 'steps'"),
        (["steps=["], r"cannot read the value '\[' as YAML"),
        (["dataset=ade"], r"dataset must be one of folder, voc, cityscapes, scenes, got 'ade'"),
        (["network=unet"], r"network must be one of small, .*, got 'unet'"),
        (["dataset=voc"], r"dataset voc needs the key data"),
        (["data=x", "report_every=0"], r"report_every must be at least 1, got 0"),
        (["data=x", "epochs=few"], r"epochs must be of type int \| None, got 'few'"),
    ],
)
def test_wrong_keys_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        config.Config(CONFIGS / "folder.yaml", overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["epochs=2"], r"steps and epochs exclude each other, got 800"),
        (["epochs=2", "steps=null", "warm_up=1"], r"warm_up and warm_up_epochs exclude each other"),
        (["steps=0"], r"steps and batch must be at least 1, got 0 and 4"),
        (["batch=0"], r"steps and batch must be at least 1, got 800 and 0"),
        (["steps=many"], r"steps must be of type int, got 'many'"),
        (["seed=x"], r"seed must be of type int, got 'x'"),
        (["batch=many"], r"batch must be of type int, got 'many'"),
        (["bfloat16=1"], r"bfloat16 must be of type bool, got 1"),
        (["steps=2", "warm_up=true"], r"warm_up must be of type int, got True"),
    ],
)
def test_wrong_values_are_named(overrides, message):
    chosen = config.Config(CONFIGS / "folder.yaml", overrides, data="x")
    with pytest.raises(ValueError, match=message):
        chosen.make_settings(100, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"cannot read .*mine\.yaml as YAML"),
        ("- a", r"must hold keys with values, got list"),
        ("base: nowhere.yaml", r"there is no configuration .*nowhere\.yaml"),
    ],
)
def test_wrong_files_are_named(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        config.Config(path)


def test_values_are_read_as_people_write_them():
    texts = {"1e-3": 1e-3, "3": 3, "1/8": "1/8", "[1,2]": [1, 2], "true": True, "null": None}
    assert {text: config.value_of(text) for text in texts} == texts


def test_an_argument_of_the_contrast_is_added_to_those_there_are():
    override = ["contrast.exclude_classes=[0]"]
    chosen = config.Config(CONFIGS / "folder.yaml", override, data="x").make_settings(100, 1)
    assert chosen.contrast == {**SMALL, "exclude_classes": [0]}
    voc = config.Config(CONFIGS / "voc_1_2.yaml", override, data="x").make_settings(100, 1)
    assert voc.contrast == {"paper": "voc", "exclude_classes": [0]}


def test_a_warm_up_of_a_third_by_default():
    chosen = config.Config(CONFIGS / "folder.yaml", ["steps=30"], data="x")
    assert chosen.make_settings(100, 1).warm_up == 10


# ---- the trainer's features -----------------------------------------------------------------------


def make_trainer(network=None, data=None, workers=0, **changes):
    torch.manual_seed(0)
    contrast = {"bank_capacity": 64, "rows_per_push": 64, "max_candidates": 512}
    settings = Settings(**{"steps": 5, "warm_up": 2, "batch": 2, "contrast": contrast} | changes)
    network = network or SegmentationNetwork(11, widths=(8, 16), feature_dim=8)
    return Trainer(network, data or DigitScenes(4, 6, seed=0), settings, workers=workers)


def test_batches_do_not_depend_on_the_number_of_workers():
    alone, helped = make_trainer(), make_trainer(workers=2)
    for trainer in (alone, helped):
        trainer.run(record_every=1)
    assert alone.history == helped.history
    helped.step = 1  # as after a checkpoint: read ahead from there
    for ours, theirs in zip(helped.batches.take(1)[0], alone.batches.take(1)[0], strict=True):
        assert torch.equal(ours, theirs)
    helped.batches.close()


def test_ranks_draw_batches_of_their_own():
    data, settings = DigitScenes(4, 6, seed=0), Settings(batch=2)
    drawn = [loading.Steps(data, settings, rank)[3] for rank in (0, 0, 1)]
    same = [torch.equal(drawn[0][0].images, batch.images) for batch, _ in drawn]
    assert same == [True, True, False]
    alone = np.random.default_rng((settings.seed, 3))
    assert torch.equal(drawn[0][0].images, data.labelled(2, alone)[0])


def test_checkpoints_of_different_steps_are_refused(tmp_path, monkeypatch):
    make_trainer().save(tmp_path / "checkpoint.pt")
    monkeypatch.setattr(distributed, "agree", lambda number, device: False)
    with pytest.raises(ValueError, match=r"ranks' checkpoints .* must be of one step, got 0 here"):
        make_trainer().load(tmp_path / "checkpoint.pt")


def test_hard_pixels_by_probability_and_by_number():
    probability = torch.tensor([[0.9, 0.2, 0.69], [0.71, 0.95, 1.0]])
    surprise = -probability.log()
    assert hard_pixels(surprise, 0.7, 1).tolist() == [[False, True, True], [False, False, False]]
    assert hard_pixels(surprise, 0.7, 4).tolist() == [[True, True, True], [True, False, False]]
    assert hard_pixels(surprise, 0.7, 100).all()


def test_hard_pixels_are_the_mean_of_the_loss():
    trainer = make_trainer(ohem=[0.3, 1])
    logits, labels = torch.randn(2, 11, 4, 4), torch.randint(11, (2, 4, 4))
    labels[0, 0] = 255
    each = nn.functional.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    hard = (each >= -np.log(0.3)) & (labels != 255)
    assert 0 < hard.sum() < hard.numel()
    torch.testing.assert_close(trainer.supervised(logits, labels), each[hard].mean())


def test_second_head_adds_its_weighted_loss():
    trainer = make_trainer(TwoHeads(11, auxiliary=True), auxiliary_weight=0.4)
    images, labels, _, _ = trainer.batches.take(0)[0]
    logits, both = trainer.classify(images, labels)
    first, second = trainer.student(images, auxiliary=True)
    torch.testing.assert_close(logits, first)
    expected = trainer.supervised(first, labels) + 0.4 * trainer.supervised(second, labels)
    torch.testing.assert_close(both, expected)


@pytest.mark.parametrize(("auxiliary", "weight"), [(True, 0.0), (False, 0.4)])
def test_second_head_and_its_weight_go_together(auxiliary, weight):
    with pytest.raises(
        ValueError, match=rf"auxiliary_weight must be .*, got {weight} for TwoHeads"
    ):
        make_trainer(TwoHeads(11, auxiliary=auxiliary), auxiliary_weight=weight)


def test_published_contrast_divides_its_gradient_by_the_ranks():
    from semi_supervised.settings import contrast_loss

    data = DigitScenes(1, 1, seed=0)
    for contrast, expected in (({"paper": "voc"}, 0.25), ({}, 1.0)):
        settings = Settings(contrast={**contrast, "bank_capacity": 32, "rows_per_push": 8})
        assert contrast_loss(settings, data, 8, ranks=4).grad_scale == expected


def test_pixels_of_a_border_get_no_pseudo_label():
    class Bordered(DigitScenes):
        def unlabelled(self, count, rng):
            images, inside = super().unlabelled(count, rng)
            inside[:, :, :20] = False
            return images, inside

    seen = []
    trainer = make_trainer(data=Bordered(4, 6, seed=0), warm_up=0, cutmix=0.0)
    kept = trainer.pseudo_label_loss
    trainer.pseudo_label_loss = lambda logits, labels: seen.append(labels) or kept(logits, labels)
    trainer.train_step()
    assert (seen[0][:, :, :20] == 255).all()
    assert (seen[0][:, :, 20:] != 255).any()


HISTORY = [{"step": 2, "total": 1.5, "density": 0.25}, {"step": 3, "validation": 40.0}]


def test_log_is_a_table_that_a_resumed_run_continues(tmp_path, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", None
    )  # as where it is not installed
    Log(tmp_path, []).write(HISTORY[:1])
    log = Log(tmp_path, HISTORY[:1])
    log.write(HISTORY)
    log.close()
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "3"]
    assert (rows[0]["total"], rows[0]["validation"], rows[1]["validation"]) == ("1.5", "", "40.0")
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_tensorboard_gets_each_value_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Log(tmp_path, [])
    log.write(HISTORY[:1])
    log.write(HISTORY)
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    found = {
        name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]
    }
    assert found == {"total": [(2, 1.5)], "density": [(2, 0.25)], "validation": [(3, 40.0)]}


def test_confusion_matrix_counts_by_label_and_prediction():
    class Echo(nn.Module):
        """Predicts the class that the first channel holds."""

        def __init__(self):
            super().__init__()
            self.anything = nn.Parameter(torch.zeros(1))

        def forward(self, images):
            return nn.functional.one_hot(images[:, 0].long(), 4).permute(0, 3, 1, 2).float()

    rng = torch.Generator().manual_seed(0)
    predicted = torch.randint(3, (2, 5, 7), generator=rng)
    labels = torch.randint(3, (2, 5, 7), generator=rng)
    labels[0, :2] = 255
    expected = torch.zeros(4, 4, dtype=torch.int64)
    for truth, guess in zip(labels.flatten(), predicted.flatten(), strict=True):
        if truth != 255:
            expected[truth, guess] += 1
    images = predicted[:, None].expand(-1, 3, -1, -1).float()
    batches = [(images[i : i + 1], labels[i : i + 1]) for i in range(2)]
    matrix = evaluate.confusion_matrix(Echo(), batches, 4, 255)
    assert torch.equal(matrix, expected)
    diagonal = expected.diag().double()
    iou = diagonal / (expected.sum(0) + expected.sum(1) - diagonal)
    assert evaluate.mean_iou(matrix) == pytest.approx(
        100 * iou[:3].mean().item()
    )  # class 3: absent
