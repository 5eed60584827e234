"""Parts of the trainer: batches read ahead, ranks, hard pixels, a second head, borders, logs, counts."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from semi_supervised import distributed, evaluate, loading  # noqa: E402
from semi_supervised.deeplab import DeepLabV3Plus  # noqa: E402
from semi_supervised.deeplab_published import PublishedDeepLab, Pyramid  # noqa: E402
from semi_supervised.logs import Log  # noqa: E402
from semi_supervised.methods import dgcl  # noqa: E402
from semi_supervised.network import SegmentationNetwork  # noqa: E402
from semi_supervised.scenes import DigitScenes  # noqa: E402
from semi_supervised.settings import Settings, contrast_loss, hard_pixels  # noqa: E402
from semi_supervised.trainer import Trainer  # noqa: E402
from test_paper_trainer import TwoHeads  # noqa: E402


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
    helped.step = 1  # as after loading a checkpoint
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


class Dropping(SegmentationNetwork):
    def __init__(self, rate=0.5):
        torch.manual_seed(0)
        super().__init__(11, widths=(8, 16), feature_dim=8)
        self.smooth = nn.Sequential(self.smooth, nn.Dropout(rate))


def test_dropout_is_resumed_and_does_not_depend_on_the_workers(tmp_path):
    whole, helped, first, second = (make_trainer(Dropping(), workers=n) for n in (0, 1, 0, 0))
    for trainer in (whole, helped):
        trainer.run(record_every=1)
    first.run(until=3, record_every=1)
    first.save(tmp_path / "checkpoint.pt")
    torch.rand(1)  # another process has other random numbers
    second.load(tmp_path / "checkpoint.pt")
    second.run(record_every=1)
    assert whole.history == helped.history == second.history


def test_a_network_of_another_structure_is_refused(tmp_path):
    make_trainer(Dropping()).save(tmp_path / "checkpoint.pt")
    for other in (Dropping(0.1), SegmentationNetwork(11, widths=(8, 16), feature_dim=16)):
        with pytest.raises(ValueError, match=r"network must have the structure of the one in"):
            make_trainer(other).load(tmp_path / "checkpoint.pt")


def test_ranks_at_different_steps_do_not_start(monkeypatch):
    monkeypatch.setattr(distributed, "gather", lambda number: torch.tensor([0, 4]))
    with pytest.raises(RuntimeError, match=r"must start at the same step, got 0 on rank 0"):
        make_trainer().run()


def test_ranks_share_a_bank():
    data, settings = DigitScenes(1, 1, seed=0), Settings(contrast={"placement": "local"})
    contrast_loss(settings, data, 8, ranks=1)
    with pytest.raises(ValueError, match=r"placement must be 'replicated' or .* 2 ranks.*'local'"):
        contrast_loss(settings, data, 8, ranks=2)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_step_follows_the_schedules(monkeypatch, mode):
    trainer = make_trainer(teacher_mode=mode, learning_rate=0.5, head_factor=10.0)
    seen, kept = [], dgcl.entropy_filter

    def watched(logits, keep, **options):
        seen.append((keep, trainer.teacher.training))
        return kept(logits, keep, **options)

    monkeypatch.setattr(dgcl, "entropy_filter", watched)
    trainer.step = 3  # of 5, after 2 steps of warm-up: a third of the way
    trainer.train_step()
    keeps, modes = zip(*seen, strict=True)
    assert keeps == pytest.approx((1 - 0.2 * 2 / 3, 1 - 0.8 * 2 / 3))
    assert modes == (mode == "train",) * 2
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert rates == pytest.approx([0.5 * 0.4**0.9, 5 * 0.4**0.9])


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_confidence_is_the_teachers_of_the_same_pixels(view):
    contrast = {"bank_capacity": 64, "rows_per_push": 64, "max_candidates": 512}
    contrast |= {"anchors": "low_confidence", "keys": "high_confidence"}
    trainer = make_trainer(warm_up=0, cutmix=0.0, contrast=contrast, contrast_view=view)
    seen, called = [], trainer.contrast.forward
    judge = trainer.teacher if view == "strong" else trainer.teacher.module.classifier
    judge.register_forward_hook(lambda _, inputs, logits: seen.append(logits))
    trainer.contrast.forward = lambda *given: seen.append(given[3]) or called(*given)
    trainer.train_step()
    logits, confidence = seen
    largest = logits.softmax(1).amax(1)[:, None]
    expected = nn.functional.interpolate(largest, confidence.shape[-2:])[:, 0]
    assert len(confidence) == 4
    torch.testing.assert_close(confidence, expected, rtol=0, atol=0)


@pytest.mark.parametrize("view", ["weak", "strong"])
@pytest.mark.parametrize("anchors", ["low_density", "low_confidence"])
def test_the_teacher_returns_the_same_fields_with_and_without_confidence(view, anchors):
    contrast = {"bank_capacity": 64, "rows_per_push": 64, "max_candidates": 512, "anchors": anchors}
    trainer = make_trainer(warm_up=0, contrast=contrast, contrast_view=view)
    labels = trainer.method.teach(trainer.batches.take(0)[0])
    assert labels.classification.shape == (2, 56, 56)
    shape = (2, 28, 28) if view == "weak" else (2, 56, 56)
    assert labels.contrast.shape == shape
    for confidence in (labels.confidence, labels.labelled_confidence):
        assert confidence is None if anchors == "low_density" else confidence.shape == shape


class Pooling(SegmentationNetwork):
    """A network where a batch norm sees one value per image, as after image pooling."""

    min_batch = 2

    def __init__(self):
        super().__init__(11, widths=(8, 16), feature_dim=8)
        self.pyramid = Pyramid(8, ())
        self.smooth = nn.Sequential(self.smooth, self.pyramid)
        self.classifier = nn.Conv2d(self.pyramid.width, 11, kernel_size=1)


def test_a_batch_too_small_for_image_pooling_is_refused_before_training():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        Pooling().train()(torch.rand(1, 3, 16, 16))
    refused = (
        r"batch must be at least 2 with network {} and a warm-up, got 1: the batch norm after its image pooling sees "
        "one value per image"
    )
    for network in (Pooling(), PublishedDeepLab(11, encoder="resnet50")):
        with pytest.raises(ValueError, match=refused.format(type(network).__name__)):
            make_trainer(network, batch=1, warm_up=1)
    assert DeepLabV3Plus.min_batch == 2
    for sizes in ({"batch": 1, "warm_up": 0}, {"batch": 2, "warm_up": 1}):
        trainer = make_trainer(Pooling(), **sizes)
        trainer.run(until=2)
        assert trainer.step == 2


def test_the_strong_view_mixes_labels_and_confidence_with_the_images():
    contrast = {"bank_capacity": 64, "rows_per_push": 64, "max_candidates": 512}
    contrast |= {"anchors": "low_confidence", "keys": "high_confidence"}
    trainer = make_trainer(warm_up=0, cutmix=1.0, contrast=contrast, contrast_view="strong")
    seen, called = [], trainer.contrast.forward
    trainer.teacher.register_forward_hook(lambda _, images, logits: seen.append(logits[2:]))
    trainer.contrast.forward = lambda *given: seen.append(given) or called(*given)
    trainer.train_step()
    logits, (_, labels, _, confidence) = seen
    at_features = logits[:, :, ::2, ::2]  # nearest, at stride 2
    largest, guess = at_features.softmax(1).max(1)
    own, pasted = confidence[2:] == largest, confidence[2:] == largest.flip(0)
    assert (own | pasted).all()
    assert (own & ~pasted).any()
    assert (pasted & ~own).any()
    kept = labels[2:] != 255
    assert (labels[2:] == torch.where(own, guess, guess.flip(0)))[kept].all()
    assert (kept & ~own).any()


def test_hard_pixels_by_probability_and_by_number():
    probability = torch.tensor([[0.9, 0.2, 0.69], [0.71, 0.95, 1.0]])
    pixel_loss = -probability.log()
    assert hard_pixels(pixel_loss, 0.7, 1).tolist() == [[False, True, True], [False, False, False]]
    assert hard_pixels(pixel_loss, 0.7, 4).tolist() == [[True, True, True], [True, False, False]]
    assert hard_pixels(pixel_loss, 0.7, 100).all()


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
    kept = trainer.method.pseudo_label_loss
    trainer.method.pseudo_label_loss = lambda logits, labels: (
        seen.append(labels) or kept(logits, labels)
    )
    trainer.train_step()
    assert (seen[0][:, :, :20] == 255).all()
    assert (seen[0][:, :, 20:] != 255).any()


HISTORY = [{"step": 2, "total": 1.5, "density": 0.25}, {"step": 3, "validation": 40.0}]


def test_log_is_a_table_that_a_resumed_run_continues(tmp_path, monkeypatch):
    # as if it were not installed
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    Log(tmp_path, []).write(HISTORY[:1])
    log = Log(tmp_path, HISTORY[:1])
    log.write(HISTORY)
    log.close()
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "3"]
    assert (rows[0]["total"], rows[0]["validation"], rows[1]["validation"]) == ("1.5", "", "40.0")
    Log(tmp_path, HISTORY[:1])  # resumed at an earlier step
    assert (tmp_path / "log.csv").read_text().count("\n") == 2
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
    present = iou[:3]  # class 3 is absent
    assert evaluate.mean_iou(matrix) == pytest.approx(100 * present.mean().item())
