"""U2PL: its loss against a loop in float64, what enters its queues, its state, and its traps."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from method_steps import (  # noqa: E402
    LABELS,
    B,
    Step,
    contrast,
    cross_entropy,
    recorded,
    run_without_values,
    softmax,
)
from semi_supervised import methods  # noqa: E402
from semi_supervised.methods import representations as reps  # noqa: E402
from test_examples import assert_same, state_of  # noqa: E402
from test_method_runs import make_trainer  # noqa: E402

from dgcl_ops import MemoryBank  # noqa: E402

OPTIONS = {
    "weight": 0.7,
    "contrast_weight": 0.3,
    "unreliable": 0.5,
    "threshold": 0.2,
    "low_rank": 1,
    "high_rank": 3,
    "anchors": 6,
    "negatives": 4,
    "rows_per_push": 100,
    "queue": 100,
}


def make_step(case="four", **changes):
    """A step whose representations are the features, with a queue in float64."""
    options = {**OPTIONS, **({"high_rank": 2} if case == "two" else {}), **changes}
    ignored = options.pop("ignored", False)
    step = Step("u2pl", options, case, ignored)
    method, queue = step.method, step.method.queue
    method.head.project = method.teacher_head.module = nn.Identity()
    width, classes = step.student.shape[1], queue.num_classes
    sizes = {"capacity": queue.capacity, "rows_per_push": queue.rows_per_push}
    method.queue = MemoryBank(
        classes, width, 1, **sizes, backfill=False, dtype=torch.float64, seed=0
    )
    return step


class Loops:
    """The formula, pixel by pixel."""

    def __init__(self, step):
        self.step, self.options, self.ignore = step, step.options, step.trainer.data.ignore_index
        self.alpha = self.options.unreliable * (1 - step.trainer.progress())
        labels, inside = (x.numpy() for x in (step.views.batch.labels, step.views.batch.inside))
        weak, _ = step.logits(step.trainer.teacher.module, B)
        self.judged, self.small = step.logits(step.trainer.teacher.module, 2 * B)
        sources = step.sources()
        self.q = {at: weak[sources[at]].argmax() for at in step.pixels()}
        entropy = {}
        for b, i, j in step.pixels():
            if inside[sources[b, i, j]]:
                p = softmax(self.judged[B + b, i, j])
                entropy[b, i, j] = -(p * np.log(p)).sum()
        low, high = (
            np.quantile(list(entropy.values()), share) for share in (self.alpha, 1 - self.alpha)
        )
        self.kept = {at for at, value in entropy.items() if value < high}
        self.unsure = entropy.keys() - self.kept
        self.sure = {at for at, value in entropy.items() if value < low}
        self.labels = labels

    def unlabelled(self):
        logits, _ = self.step.logits(self.step.trainer.student, 2 * B)
        found = [cross_entropy(logits[B + b, i, j], self.q[b, i, j]) for b, i, j in self.kept]
        # the loss divides the numbers of pixels in float32
        inverse_share = np.float32(len(self.step.pixels())) / np.float32(len(self.kept))
        return np.mean(found) * float(inverse_share)

    def label(self, at, source):
        """The class that a pixel at the features' size certainly has, or None."""
        if at[0] < B:
            return None if self.labels[source] == self.ignore else self.labels[source]
        return self.q[source] if source in self.sure else None

    def rank(self, at, c):
        return (self.small[at] > self.small[at][c]).sum()

    def members(self, c):
        return [at for at, source in self.step.small_pixels() if self.label(at, source) == c]

    def queue(self, c):
        """The pixels that enter the queue of a class."""
        found, o = [], self.options
        for at, source in self.step.small_pixels():
            rank = self.rank(at, c)
            if at[0] < B:
                if self.labels[source] not in (c, self.ignore) and rank < o.low_rank:
                    found.append(at)
            elif source in self.unsure and o.low_rank <= rank < o.high_rank:
                found.append(at)
        return found

    def rows(self, features, pixels):
        maps = features.detach().numpy().transpose(0, 2, 3, 1)
        return np.array([maps[at] for at in pixels])


@pytest.mark.parametrize("case", LABELS)
def test_the_loss_is_that_of_the_formula(monkeypatch, case):
    step = make_step(case)
    drawn, negatives = (recorded(monkeypatch, reps, name) for name in ("draw", "draw_rows"))
    found = step.losses()
    loops, classes = Loops(step), step.trainer.data.num_classes
    [(anchors, _)], [negatives] = drawn, negatives
    places = [at for at, _ in step.small_pixels()]
    losses = []
    for c in range(classes):
        members, rows = loops.members(c), loops.rows(step.mixed, loops.queue(c))
        allowed = [at for at in members if softmax(loops.small[at])[c] > step.options.threshold]
        stored = step.method.queue.features[c, : len(rows)].numpy()
        assert step.method.queue.counts[c] == len(rows)
        unit = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
        by_first = (each[np.argsort(each[:, :1].flatten())] for each in (stored, unit))
        np.testing.assert_allclose(*by_first, rtol=1e-12)
        if not allowed or not len(rows):
            continue
        chosen = [places[n] for n in anchors[c]]
        assert set(chosen) <= set(allowed)
        key = loops.rows(step.mixed, members).mean(0)
        own = loops.rows(step.student, chosen)
        losses.append(contrast(own, key, negatives[c].numpy(), step.options.temperature))
        for row in negatives[c].reshape(-1, negatives.shape[-1]).numpy():
            assert np.abs(unit - row).sum(1).min() < 1e-12
    assert len(losses) >= 2
    assert len(losses) < classes or case != "absent"
    supervised, unlabelled = step.supervised(), loops.unlabelled()
    expected = {"supervised": supervised, "unlabelled": unlabelled, "contrast": np.mean(losses)}
    expected["total"] = supervised + 0.7 * unlabelled + 0.3 * np.mean(losses)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.long
def test_gradients_are_those_of_the_loss():
    step = make_step()

    def total(_):
        step.method.queue.reset()
        torch.manual_seed(0)
        return step.losses()["total"]

    assert torch.autograd.gradcheck(total, [step.student], fast_mode=True)


def test_without_weights_the_loss_is_the_supervised_one():
    losses = make_step(weight=0.0, contrast_weight=0.0).losses()
    assert losses["total"] == losses["supervised"] > 0
    assert losses["contrast"] > 0


def test_without_a_pixel_that_counts_the_loss_is_a_connected_zero():
    step = make_step(ignored=True)
    losses = step.losses()
    assert all(loss == 0 for loss in losses.values())
    assert not step.method.queue.counts.any()
    losses["contrast"].backward()
    assert step.student.grad is not None
    assert not step.student.grad.any()


def test_a_step_does_not_wait_for_the_device(monkeypatch):
    assert run_without_values(make_step())["contrast"].shape == ()
    waits = lambda allowed, number: (allowed.nonzero()[:number], allowed.sum(0))
    monkeypatch.setattr(reps, "draw", waits)
    with pytest.raises(DynamicOutputShapeException):
        run_without_values(make_step())


# ---- traps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", range(4))
def test_any_class_may_be_the_only_one_with_anchors(c):
    step = make_step()
    labels = step.views.batch.labels
    labels[labels != step.trainer.data.ignore_index] = c
    step.views.batch.inside[:] = False
    step.method.queue.features.normal_()
    step.method.queue.counts.fill_(5)
    loss = step.losses()["contrast"]
    loss.backward()
    assert loss > 0
    assert step.student.grad[:B].any()
    assert not step.student.grad[B:].any()


def test_labelled_pixels_enter_the_queues_of_other_classes_only():
    step = make_step(low_rank=3, high_rank=4)
    step.views.batch.inside[:] = False
    step.losses()
    labels = step.views.batch.labels[:, ::2, ::2].flatten()
    ranks = step.trainer.teacher.module.classifier(step.mixed[:B]).movedim(1, -1).flatten(0, 2)
    ranks = ranks.argsort(dim=1, descending=True).argsort(dim=1)
    for c in range(4):
        expected = ((labels != c) & (labels != 255) & (ranks[:, c] < 3)).sum()
        assert step.method.queue.counts[c] == expected > 0


def test_the_rank_must_exist():
    message = r"method u2pl: low_rank must be below the number of classes 11, got 11: no class"
    with pytest.raises(ValueError, match=message):
        make_trainer({"name": "u2pl", "low_rank": 11})
    make_trainer({"name": "u2pl", "low_rank": 10})
    with pytest.raises(ValueError, match=r"low_rank must be below the number of classes 2, got 3"):
        Step("u2pl", {}, "two")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unreliable": 1.5}, r"u2pl: unreliable must lie in \[0, 1\], got 1\.5"),
        ({"low_rank": 0}, r"u2pl: low_rank must be at least 1, got 0"),
        ({"high_rank": 3}, r"u2pl: high_rank must be above low_rank 3, got 3"),
        ({"anchors": 0}, r"u2pl: anchors must be at least 1, got 0"),
        ({"temperature": 0.0}, r"u2pl: temperature must be finite and at least 1e-06, got 0\.0"),
        ({"queue": 1.5}, r"u2pl: queue must be of type int, got 1\.5"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        methods.choose({"name": "u2pl", **options})


def test_the_queue_holds_the_newest_rows_and_costs_no_search():
    trainer = make_trainer({"name": "u2pl", "queue": 50, "rows_per_push": 20}, warm_up=0)
    trainer.run(until=4)
    queue = trainer.method.queue
    assert queue.counts.max() == 50
    assert not queue.density.any()
    assert trainer.method.report() == {"queue": queue.counts.float().mean()}
    norms = queue.features.norm(dim=2)[queue.valid_slots()]
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_the_teachers_head_follows_and_shares_no_storage():
    trainer = make_trainer({"name": "u2pl"}, ema_maximum=0.5, warm_up=1, steps=4)
    method = trainer.method
    pairs = lambda: zip(
        method.head.module.parameters(), method.teacher_head.module.parameters(), strict=True
    )
    trainer.run(until=2)  # the average of the first updates is the student itself
    old = [average.clone() for _, average in pairs()]
    trainer.run(until=3)
    for before, (own, average) in zip(old, pairs(), strict=True):
        assert own.data_ptr() != average.data_ptr()
        torch.testing.assert_close(average, before.lerp(own, 0.5))
    assert not torch.equal(*next(pairs()))


def test_a_checkpoint_with_another_queue_is_refused_and_changes_nothing(tmp_path):
    trainer = make_trainer({"name": "u2pl", "queue": 50})
    trainer.run(until=3)
    trainer.save(tmp_path / "c.pt")
    other = make_trainer({"name": "u2pl", "queue": 50})
    before = {name: tensor.clone() for name, tensor in state_of(other).items()}
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    state["queue"]["counts"][0] = -1
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"(?s)c\.pt: .*counts and heads"):
        other.load(tmp_path / "c.pt")
    assert_same(before, state_of(other))


# ---- random pixels --------------------------------------------------------------------------------


def test_pixels_are_drawn_uniformly_from_those_allowed():
    torch.manual_seed(0)
    allowed = torch.zeros(10, 3, dtype=torch.bool)
    allowed[[1, 4, 9], 0] = allowed[7, 1] = True
    pixels, counts = reps.draw(allowed, 9000)
    assert counts.tolist() == [3, 1, 0]
    drawn = torch.bincount(pixels[0], minlength=10)
    assert drawn.nonzero().flatten().tolist() == [1, 4, 9]
    assert (drawn[[1, 4, 9]] - 3000).abs().max() < 200  # 4 standard deviations are 179
    assert (pixels[1] == 7).all()
    assert 0 <= pixels[2].min() <= pixels[2].max() < 10


def test_pushed_rows_are_other_ones_in_random_order():
    rows = torch.eye(8)
    allowed = torch.zeros(8, 2, dtype=torch.bool)
    allowed[2:, 0], allowed[5, 1] = True, True
    bank = MemoryBank(2, 8, 1, capacity=8, rows_per_push=4, backfill=False, seed=0)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        bank.reset()
        reps.push(bank, rows, allowed)
        assert bank.counts.tolist() == [4, 1]
        chosen = bank.features[0, :4].argmax(1).tolist()
        assert len(set(chosen)) == 4
        assert min(chosen) >= 2
        assert bank.features[1, 0].argmax() == 5
        seen |= set(chosen)
    assert seen == set(range(2, 8))
