"""ReCo: its loss against a loop in float64, and which negatives it draws."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from method_steps import (  # noqa: E402
    LABELS,
    B,
    Step,
    contrast,
    cosine,
    cross_entropy,
    recorded,
    run_without_values,
    softmax,
)
from semi_supervised import methods  # noqa: E402
from semi_supervised.methods import representations as reps  # noqa: E402

OPTIONS = {"weight": 0.7, "contrast_weight": 0.3, "threshold": 0.6, "weak_threshold": 0.4}
OPTIONS |= {"anchors": 6, "negatives": 7}


def make_step(case="four", ignored=False, **changes):
    """A step whose representations are the features."""
    step = Step("reco", {**OPTIONS, **changes}, case, ignored)
    step.method.head.project = nn.Identity()
    return step


@pytest.mark.parametrize("case", LABELS)
def test_the_loss_is_that_of_the_formula(monkeypatch, case):
    step = make_step(case)
    drawn, others = (recorded(monkeypatch, reps, name) for name in ("draw", "draw_similar"))
    found = step.losses()
    [(anchors, _)], [others] = drawn, others
    labels, inside = (x.numpy() for x in (step.views.batch.labels, step.views.batch.inside))
    judged, _ = step.logits(step.trainer.teacher.module, B)
    logits, _ = step.logits(step.trainer.student, 2 * B)
    sources = step.sources()
    seen = {at: judged[sources[at]] for at in step.pixels() if inside[sources[at]]}
    losses, shares = [], []
    for b in range(B):
        of_image = [at for at in seen if at[0] == b]
        shares.append(np.mean([softmax(seen[at]).max() >= 0.6 for at in of_image]))
        for at in of_image:
            own = logits[B + b, at[1], at[2]]
            losses.append(shares[b] * cross_entropy(own, seen[at].argmax()))
    assert len(set(shares)) == B
    unlabelled = np.mean(losses)

    known, places = {}, [at for at, _ in step.small_pixels()]
    for at, source in step.small_pixels():
        if at[0] < B and labels[source] != step.trainer.data.ignore_index:
            known[at] = labels[source]
        if at[0] >= B and source in seen and softmax(seen[source]).max() >= 0.4:
            known[at] = seen[source].argmax()
    full = {at: (at[0], *source[1:]) for at, source in step.small_pixels()}
    rows = step.student.detach().numpy().transpose(0, 2, 3, 1)
    contrasts = []
    for c in range(step.trainer.data.num_classes):
        members = [at for at in known if known[at] == c]
        hard = [at for at in members if softmax(logits[full[at]])[c] < 0.6]
        if not hard or len(members) == len(known):
            continue
        own, negatives = ([places[n] for n in table[c]] for table in (anchors, others))
        assert set(own) <= set(hard)
        assert all(known[at] != c for at in negatives)
        key = np.mean([rows[at] for at in members], 0)
        shared = [[rows[at] for at in negatives]] * len(own)
        contrasts.append(contrast([rows[at] for at in own], key, shared, 0.5))
    assert len(contrasts) >= 2
    expected = {"supervised": step.supervised(), "unlabelled": unlabelled}
    expected |= {"contrast": np.mean(contrasts), "kept": np.mean(shares)}
    expected["total"] = expected["supervised"] + 0.7 * unlabelled + 0.3 * expected["contrast"]
    for name, value in expected.items():  # shares are counted in float32
        assert found[name].item() == pytest.approx(value, rel=1e-6), name
    for name in ("supervised", "contrast"):
        assert found[name].item() == pytest.approx(expected[name], rel=1e-12), name


@pytest.mark.long
def test_gradients_are_those_of_the_loss():
    step = make_step()

    def total(_):
        torch.manual_seed(0)
        return step.losses()["total"]

    # Anchors, keys and negatives come from the same maps, and only the anchors have a gradient.
    step.losses()["contrast"].backward()
    assert step.student.grad.any()
    step.method.options = methods.choose({"name": "reco", **OPTIONS, "contrast_weight": 0.0})[1]
    assert torch.autograd.gradcheck(total, [step.student], fast_mode=True)


def test_the_gradient_of_the_contrast_is_that_of_the_anchors(monkeypatch):
    step, given = make_step(), []
    function = reps.density_contrast

    def record(rows, keys, negatives, *args, **kwargs):
        assert not keys.requires_grad
        assert not negatives.requires_grad
        given.append((rows, keys, negatives, args, kwargs))
        return function(rows, keys, negatives, *args, **kwargs)

    monkeypatch.setattr(reps, "density_contrast", record)
    step.losses()
    [(rows, keys, negatives, args, kwargs)] = given
    rows = rows.detach().requires_grad_()
    loss = lambda rows: function(rows, keys, negatives, *args, **kwargs)
    assert torch.autograd.gradcheck(loss, [rows], fast_mode=True)


def test_without_weights_the_loss_is_the_supervised_one():
    losses = make_step(weight=0.0, contrast_weight=0.0).losses()
    assert losses["total"] == losses["supervised"] > 0
    assert losses["contrast"] > 0


def test_without_a_pixel_that_counts_the_loss_is_a_connected_zero():
    step = make_step(ignored=True)
    losses = step.losses()
    assert all(loss == 0 for loss in losses.values())
    losses["contrast"].backward()
    assert step.student.grad is not None
    assert not step.student.grad.any()


def test_a_step_does_not_wait_for_the_device():
    assert run_without_values(make_step())["contrast"].shape == ()


def test_one_class_alone_has_no_negatives():
    step = make_step()
    labels = step.views.batch.labels
    labels[labels != 255] = 2
    step.views.batch.inside[:] = False
    assert step.losses()["contrast"] == 0


def test_negatives_come_from_similar_classes_in_proportion():
    torch.manual_seed(0)
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 40 + [4] * 2 + [9] * 6)
    labels = labels[torch.randperm(len(labels))]
    members = reps.pixels_of(labels, 5)
    keys = torch.randn(5, 6, dtype=torch.float64)
    number = 40_000
    drawn = reps.draw_similar(members, keys, 0.5, number)
    for c in range(5):
        counts = torch.bincount(labels[drawn[c]], minlength=10)
        weights = np.array(
            [
                np.exp(cosine(keys[c].numpy(), keys[k].numpy()) / 0.5) * (k not in (c, 3))
                for k in range(5)
            ]
        )
        expected = weights / weights.sum()
        assert counts[5:].sum() == 0
        # 5 standard deviations
        error = 5 * np.sqrt(expected * (1 - expected) / number) + 1e-12
        assert (np.abs(counts[:5].numpy() / number - expected) <= error).all()
    of_two = drawn[0][labels[drawn[0]] == 2]
    each = torch.bincount(of_two)[(labels == 2).nonzero().flatten()] / len(of_two)
    assert (each - 1 / 40).abs().max() < 5 * (1 / 40 / len(of_two)) ** 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weak_threshold": 1.5}, r"reco: weak_threshold must lie in \[0, 1\], got 1\.5"),
        ({"negatives": 0}, r"reco: negatives must be at least 1, got 0"),
        ({"contrast_weight": "1"}, r"reco: contrast_weight must be of type float, got '1'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        methods.choose({"name": "reco", **options})
