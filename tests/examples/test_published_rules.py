"""The published rules of the trainer, each compared with an independent loop."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from scipy import stats  # noqa: E402
from semi_supervised import augment  # noqa: E402
from semi_supervised.methods import dgcl  # noqa: E402
from semi_supervised.scenes import DigitScenes  # noqa: E402
from test_trainer_parts import make_trainer  # noqa: E402

# Epochs of 3 steps. Steps 0 to 2: warm-up. Steps 3 to 5: the teacher is a copy. Then two epochs of averaging.
EPOCHS = {"steps": 12, "warm_up": 3, "epoch_steps": 3}


# ---- CutMix ---------------------------------------------------------------------------------------


def boxes_of(mixed) -> list[tuple[int, int, int, int] | None]:
    """Returns top, left, rows and columns of each image's box. Image i is filled with i, pasted pixels differ.

    Raises:
        AssertionError: If the pasted pixels are not a rectangle from the next image.
    """
    boxes = []
    for i, image in enumerate(mixed.numpy()):
        pasted = np.argwhere(image != i)
        if not len(pasted):
            boxes.append(None)
            continue
        (top, left), (bottom, right) = pasted.min(0), pasted.max(0)
        rows, columns = bottom - top + 1, right - left + 1
        assert len(pasted) == rows * columns
        assert set(image[image != i]) == {(i + 1) % len(mixed)}
        boxes.append((top, left, rows, columns))
    return boxes


def drawn(mode, height, width, times, probability=0.5):
    """Returns boxes of batches of 3 images, with one generator per batch."""
    labels = torch.arange(3)[:, None, None].expand(3, height, width)
    images = labels[:, None].expand(3, 2, height, width).float()
    batches = []
    for seed in range(times):
        rng = np.random.default_rng(seed)
        mixed, same = augment.cutmix(rng, images, labels, probability=probability, mode=mode)
        assert torch.equal(mixed[:, 1].long(), same)
        batches.append(boxes_of(same))
    return batches


@pytest.mark.parametrize(("height", "width"), [(24, 32), (33, 17), (5, 3)])
def test_a_batch_has_one_coin_and_boxes_of_half_of_the_area(height, width):
    batches = drawn("batch", height, width, times=400)
    changed = [[box is not None for box in boxes] for boxes in batches]
    assert {len(set(each)) for each in changed} == {1}  # all images or none
    # 400 coins: 0.4 to 0.6 is four standard deviations.
    assert 0.4 < np.mean(changed) < 0.6
    boxes = [box for boxes in batches for box in boxes if box]
    for top, left, rows, columns in boxes:
        assert width / 2 < columns < width
        assert abs(rows * columns - height * width / 2) <= columns / 2  # rows are whole
        assert top + rows <= height
        assert left + columns <= width


def test_widths_and_places_of_a_batchs_boxes_are_uniform():
    height, width = 16, 24
    boxes = [box for boxes in drawn("batch", height, width, 2000, probability=1.0) for box in boxes]
    widths = np.bincount([columns for *_, columns in boxes], minlength=width + 1)
    assert set(widths.nonzero()[0]) == set(range(13, 24))
    # The seeds are fixed. At this level a correct distribution fails for one choice of seeds in 10,000.
    assert stats.chisquare(widths[13:24]).pvalue > 1e-4
    tops = [top for top, _, rows, _ in boxes if rows == 10]
    lefts = [left for _, left, _, columns in boxes if columns == 20]
    for places, count in ((tops, height - 10 + 1), (lefts, width - 20 + 1)):
        assert stats.chisquare(np.bincount(places, minlength=count)).pvalue > 1e-4


def test_the_check_of_the_boxes_sees_the_other_mode():
    with pytest.raises(AssertionError):  # from the previous image
        drawn("image", 24, 32, times=10)


# ---- the teacher ----------------------------------------------------------------------------------


def weights(network):
    return [p.detach().double().numpy().copy() for p in network.parameters()]


def test_the_teacher_is_a_copy_until_an_epoch_after_the_warm_up_and_then_an_average():
    trainer = make_trainer(**EPOCHS, ema_from="warm_up", ema_maximum=0.8)
    expected, decays = None, []
    for step in range(12):
        trainer.train_step()
        student = weights(trainer.student)
        if step < 6:
            expected = student
        else:
            decay = min(1 - 1 / (step - 3 + 1), 0.8)
            decays.append(decay)
            expected = [decay * t + (1 - decay) * s for t, s in zip(expected, student, strict=True)]
        for ours, theirs in zip(weights(trainer.teacher), expected, strict=True):
            # float32 against float64, over six updates: 2**-24 each, of weights below 1
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=0 if step < 6 else 1e-6)
        if step > 6:
            assert any((t != s).any() for t, s in zip(expected, student, strict=True))
    assert decays == [0.75, 0.8, 0.8, 0.8, 0.8, 0.8]


def norms(network):
    return {name: m for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}


def test_the_teachers_own_averages_follow_its_own_passes():
    trainer = make_trainer(**EPOCHS, teacher_averages="own", ema_from="warm_up")
    seen = {}
    for name, module in norms(trainer.teacher.module).items():
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0].double().numpy()})
        )
    averages = {}
    for step in range(12):
        seen.clear()
        trainer.train_step()
        students = norms(trainer.student)
        for name, module in norms(trainer.teacher.module).items():
            if step < 3:
                assert not seen
                student = students[name]
                averages[name] = [
                    student.running_mean.numpy().copy(),
                    student.running_var.numpy().copy(),
                ]
            else:
                rows = seen[name].transpose(1, 0, 2, 3).reshape(module.num_features, -1)
                old = averages[name]
                moved = rows.mean(1), rows.var(1, ddof=1)
                averages[name] = [0.9 * a + 0.1 * b for a, b in zip(old, moved, strict=True)]
            current = module.running_mean.numpy(), module.running_var.numpy()
            for ours, theirs in zip(current, averages[name], strict=True):
                # float32 sums over a few thousand values
                np.testing.assert_allclose(ours, theirs, rtol=1e-4 if step > 2 else 0, atol=1e-5)
    first = next(iter(students))
    assert (students[first].running_mean.numpy() - averages[first][0]).any()


def test_the_students_averages_are_the_teachers_by_the_other_rule():
    trainer = make_trainer(**EPOCHS, teacher_averages="student")
    for _ in range(5):
        trainer.train_step()
        for ours, theirs in zip(
            trainer.teacher.module.buffers(), trainer.student.buffers(), strict=True
        ):
            assert torch.equal(ours, theirs)


# ---- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "progress"),
    [
        ("epoch", [0, 0, 0, 1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3]),
        ("step", [i / 9 for i in range(9)]),
    ],
)
def test_schedules_move_once_an_epoch_and_the_rate_each_step(monkeypatch, rule, progress):
    trainer = make_trainer(**EPOCHS, schedule_by=rule, learning_rate=0.01)
    kept, rates, inner = [], [], dgcl.entropy_filter

    def watched(logits, keep, **options):
        kept.append(keep)
        return inner(logits, keep, **options)

    monkeypatch.setattr(dgcl, "entropy_filter", watched)
    for _ in range(12):
        trainer.train_step()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert kept[0::2] == pytest.approx([1 - 0.2 * (1 - p) for p in progress])
    assert rates == pytest.approx([0.01 * (1 - step / 12) ** 0.9 for step in range(12)])
    assert kept[1::2] == pytest.approx([1 - max(0.8 * (1 - p), 0.1) for p in progress])


# ---- inputs of the contrast -----------------------------------------------------------------------


class Bordered(DigitScenes):
    """Data with a border that ends between two rows of the features."""

    def unlabelled(self, count, rng):
        images, inside = super().unlabelled(count, rng)
        inside[:, :21] = False
        return images, inside


def small_labels(labels, logits, inside, dropped):
    """Computes nearest labels and filtered pseudo labels in float64 loops."""
    _, classes, height, width = logits.shape
    rows, columns = (
        [i * full // small for i in range(small)]
        for full, small in zip(labels.shape[1:], (height, width), strict=True)
    )
    entropies, guesses, within = {}, {}, {}
    for b, image in enumerate(logits.astype(np.float64)):
        for i in range(height):
            for j in range(width):
                z = np.exp(image[:, i, j] - image[:, i, j].max())
                p = z / z.sum()
                entropies[b, i, j] = -sum(p[c] * np.log(p[c]) for c in range(classes))
                guesses[b, i, j] = int(p.argmax())
                within[b, i, j] = inside[b, rows[i], columns[j]]
    threshold = np.quantile([e for at, e in entropies.items() if within[at]], 1 - dropped)
    pseudo = np.full((len(logits), height, width), 255)
    for at, guess in guesses.items():
        if within[at] and entropies[at] < threshold:
            pseudo[at] = guess
    return np.concatenate((labels[:, rows][:, :, columns], pseudo))


def test_the_weak_view_is_the_unmixed_images_with_labels_of_the_features_size():
    trainer = make_trainer(
        data=Bordered(4, 6, seed=0), warm_up=0, cutmix=1.0, contrast_view="weak", jitter=0.0
    )
    small, seen, features, given = [], [], [], []
    trainer.teacher.module.classifier.register_forward_hook(lambda *call: small.append(call[-1]))
    trainer.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    trainer.student.classifier.register_forward_pre_hook(lambda _, x: features.append(x[0]))
    called = trainer.contrast.forward
    trainer.contrast.forward = lambda *inputs: given.append(inputs) or called(*inputs)
    batch, _ = trainer.batches.take(0)
    trainer.train_step()
    [(logits,), (images,), (features,)] = small, seen, features
    [(projections, labels, shown)] = given
    assert len(images) == len(features) == 6  # labelled, weak, strong in one call
    assert torch.equal(images[:2], batch.images.clamp(0, 1))
    assert torch.equal(images[2:4], batch.weak)
    assert not torch.equal(images[4:], batch.weak)
    assert len(projections) == len(labels) == 4
    assert torch.equal(shown, features[:4])
    unlabelled = logits[2:].numpy()
    expected = small_labels(batch.labels.numpy(), unlabelled, batch.inside.numpy(), dropped=0.8)
    np.testing.assert_array_equal(labels.numpy(), expected)
    assert 0.1 < np.mean(expected[2:] != 255) < 0.2  # a fifth of the pixels inside
    # The bank only holds rows of these images.
    rows = trainer.contrast.bank.features
    rows = nn.functional.normalize(rows[rows.any(-1)], dim=-1)
    unmixed = nn.functional.normalize(features[:4].permute(0, 2, 3, 1).flatten(0, 2), dim=-1)
    assert len(rows)
    assert (rows @ unmixed.T).amax(1).min() > 1 - 1e-6


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_classification_learns_from_the_strong_view(view):
    trainer = make_trainer(warm_up=0, cutmix=1.0, contrast_view=view)
    images, outputs, given, judged = [], [], [], []
    trainer.student.register_forward_pre_hook(lambda _, inputs: images.append(inputs[0]))
    trainer.student.register_forward_hook(lambda *call: outputs.append(call[-1]))
    trainer.teacher.register_forward_hook(lambda *call: judged.append(call[-1]))
    kept = trainer.method.pseudo_label_loss
    trainer.method.pseudo_label_loss = lambda *inputs: given.append(inputs) or kept(*inputs)
    batch, _ = trainer.batches.take(0)
    trainer.train_step()
    [(logits, labels)] = given
    if view == "weak":  # the strong view has other colours
        assert torch.equal(images[0][2:4], batch.weak)
    assert len(outputs[0]) == (6 if view == "weak" else 4)
    assert torch.equal(logits, outputs[0][-2:])
    # A kept label is the teacher's for this pixel: in the same image, or in the other one if it was pasted.
    guess = judged[0][2:].argmax(1)
    kept = labels != 255
    own, other = (labels == guess) & kept, (labels == guess.flip(0)) & kept
    assert (own | other)[kept].all()
    assert (own & ~other).any()
    assert (other & ~own).any()
    assert 0.7 < kept.float().mean() < 0.9  # a fifth is dropped
