"""PCR: its loss and its prototypes against loops in float64, their start, their state."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from method_steps import (  # noqa: E402
    LABELS,
    B,
    Step,
    cosine,
    cross_entropy,
    run_without_values,
    softmax,
)
from semi_supervised import distributed, methods  # noqa: E402
from semi_supervised.methods import representations as reps  # noqa: E402
from semi_supervised.methods.prototypes import Prototypes  # noqa: E402
from test_method_runs import make_trainer  # noqa: E402

from dgcl_ops import MemoryBank  # noqa: E402

OPTIONS = {"weight": 0.7, "prototype_weight": 0.6, "threshold": 0.7, "prototypes": 3, "rows": 50}


def make_step(case="four", missing=None, ignored=False, **changes):
    """A step in the middle of a run, with random prototypes of all classes but one."""
    step = Step("pcr", {**OPTIONS, **changes}, case, ignored)
    prototypes = step.method.prototypes.double()
    prototypes.vectors.normal_(generator=torch.Generator().manual_seed(2))
    prototypes.started[:] = True
    if missing is not None:
        prototypes.started[missing] = False
    return step


class Loops:
    """The formula, pixel by pixel."""

    def __init__(self, step):
        self.step, self.options, self.ignore = step, step.options, step.trainer.data.ignore_index
        self.labels, inside = (
            x.numpy() for x in (step.views.batch.labels, step.views.batch.inside)
        )
        self.prototypes = step.method.prototypes.vectors.clone().numpy()
        self.started = step.method.prototypes.started.clone().numpy()
        self.features = step.student.detach().numpy().transpose(0, 2, 3, 1)
        judged, _ = step.logits(step.trainer.teacher.module, B)
        sources = step.sources()
        self.inside = {at for at in step.pixels() if inside[sources[at]]}
        self.q = {at: judged[sources[at]].argmax() for at in self.inside}
        reached = {at: softmax(judged[sources[at]]).max() >= 0.7 for at in self.inside}
        self.kept = {at for at in self.inside if reached[at]}
        assert 0 < len(self.kept) < len(self.inside)

    def label(self, at, source):
        if at[0] < B:
            return None if self.labels[source] == self.ignore else self.labels[source]
        return self.q[source] if source in self.kept else None

    def linear(self):
        logits, _ = self.step.logits(self.step.trainer.student, 2 * B)
        found = [cross_entropy(logits[B + b, i, j], self.q[b, i, j]) for b, i, j in self.kept]
        return sum(found) / len(self.inside)

    def h(self, row):
        largest = [
            max(cosine(row, p) for p in of_class) if started else -1
            for of_class, started in zip(self.prototypes, self.started, strict=True)
        ]
        return np.array(largest) / self.options.temperature

    def by_prototypes(self, labelled):
        total = count = 0
        for at, source in self.step.small_pixels():
            if (at[0] < B) != labelled:
                continue
            c = self.label(at, source)
            count += c is not None if labelled else source in self.inside
            if c is not None and self.started[c]:
                total += cross_entropy(self.h(self.features[at]), c)
        return total / count

    def moved(self):
        """The prototypes after the step."""
        groups = {}
        for at, source in self.step.small_pixels():
            c, row = self.label(at, source), self.features[at]
            if c is not None:
                nearest = np.argmax([cosine(row, p) for p in self.prototypes[c]])
                key = (c, nearest if self.started[c] else None)
                groups.setdefault(key, []).append(row / np.linalg.norm(row))
        expected = self.prototypes.copy()
        for (c, k), rows in groups.items():
            if k is None:
                expected[c] = np.mean(rows, 0)
            else:
                expected[c, k] = 0.99 * expected[c, k] + 0.01 * np.mean(rows, 0)
        return expected


@pytest.mark.parametrize("missing", [None, 1])
@pytest.mark.parametrize("case", LABELS)
def test_the_loss_is_that_of_the_formula(case, missing):
    step = make_step(case, missing)
    loops, found = Loops(step), step.losses()
    labelled, unlabelled = (loops.by_prototypes(each) for each in (True, False))
    linear, supervised = loops.linear(), step.supervised()
    total = supervised + 0.6 * labelled + 0.7 * (linear + 0.6 * unlabelled)
    expected = {"total": total, "supervised": supervised, "unlabelled": linear}
    expected |= {"prototypes": labelled, "unlabelled_prototypes": unlabelled}
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-12), name
    assert found["kept"].item() == pytest.approx(len(loops.kept) / len(loops.inside))


@pytest.mark.parametrize("missing", [None, 1])
def test_prototypes_move_towards_the_means_of_their_pixels(missing):
    step = make_step(missing=missing)
    loops, before = Loops(step), step.method.prototypes.vectors.clone()
    step.losses()
    assert torch.equal(step.method.prototypes.vectors, before)  # only after the step
    step.method.after_step()
    after = step.method.prototypes
    np.testing.assert_allclose(after.vectors.numpy(), loops.moved(), rtol=1e-12)
    assert not torch.equal(after.vectors, before)
    assert after.started.all()


@pytest.mark.long
def test_gradients_are_those_of_the_loss():
    step = make_step(missing=1)
    total = lambda _: step.losses()["total"]
    assert torch.autograd.gradcheck(total, [step.student], fast_mode=True)


def test_without_weights_the_loss_is_the_supervised_one():
    losses = make_step(weight=0.0, prototype_weight=0.0).losses()
    assert losses["total"] == losses["supervised"] > 0
    assert losses["prototypes"] > 0


@pytest.mark.parametrize("started", [True, False])
def test_without_a_pixel_that_counts_the_loss_is_a_connected_zero(started):
    step = make_step(ignored=True)
    step.method.prototypes.started[:] = started
    losses, before = step.losses(), step.method.prototypes.vectors.clone()
    assert all(loss == 0 for loss in losses.values())
    losses["prototypes"].backward()
    assert step.student.grad is not None
    assert not step.student.grad.any()
    step.method.after_step()
    assert torch.equal(step.method.prototypes.vectors, before)
    assert step.method.prototypes.started.all() == started


@pytest.mark.parametrize("first", [True, False])
def test_a_step_does_not_wait_for_the_device(first):
    step = make_step()
    step.trainer.step = 0 if first else 1
    assert run_without_values(step)["prototypes"].shape == ()


def test_kmeans_finds_separate_groups():
    rng = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(2, 3, 16, generator=rng), dim=2)
    groups = torch.arange(30) % 3
    rows = centres[:, groups] + 0.02 * torch.randn(2, 30, 16, generator=rng)
    bank = MemoryBank(3, 16, 1, capacity=40, rows_per_push=30, backfill=False, seed=0)
    rows = torch.cat((rows, rows[:1]))
    counts = torch.tensor([30, 29, 0])
    bank.push_rows(rows, torch.zeros(3, 30, 1), torch.zeros(3, 30), counts)
    prototypes = Prototypes(3, 3, 16)
    prototypes.start(bank)
    assert prototypes.started.tolist() == [True, True, False]
    for c in range(2):
        unit = F.normalize(rows[c, : counts[c]], dim=1)
        means = torch.stack([unit[groups[: counts[c]] == k].mean(0) for k in range(3)])
        nearest = (means @ prototypes.vectors[c].T).argmax(1)
        assert sorted(nearest.tolist()) == [0, 1, 2]
        torch.testing.assert_close(prototypes.vectors[c][nearest], means)


def test_kmeans_with_fewer_rows_than_prototypes_repeats_them():
    bank = MemoryBank(1, 2, 1, capacity=8, rows_per_push=2, backfill=False, seed=0)
    rows = torch.eye(2)[None]
    bank.push_rows(rows, torch.zeros(1, 2, 1), torch.zeros(1, 2), torch.tensor([2]))
    prototypes = Prototypes(1, 4, 2)
    prototypes.start(bank)
    assert sorted(prototypes.vectors[0].tolist()) == [[0, 1], [0, 1], [1, 0], [1, 0]]


@pytest.mark.parametrize("warm_up", [0, 2])
def test_the_prototypes_start_at_the_end_of_the_warm_up(warm_up):
    trainer = make_trainer({"name": "pcr", "rows_per_push": 20}, warm_up=warm_up)
    prototypes, bank = trainer.method.prototypes, trainer.method.rows
    if warm_up:
        trainer.run(until=warm_up)
        assert bank.num_pushes == warm_up
        assert not prototypes.started.any()
    trainer.run(until=warm_up + 1)
    assert bank.num_pushes == warm_up + 1  # labelled pixels of the first step, too
    assert torch.equal(prototypes.started, bank.counts > 0)
    assert trainer.method.report() == {"started": prototypes.started.sum()}
    trainer.run(until=warm_up + 2)
    assert bank.num_pushes == warm_up + 1
    assert not bank.density.any()  # nothing was searched


def test_the_prototypes_start_from_labelled_pixels_only(monkeypatch):
    trainer, pushed = make_trainer({"name": "pcr", "threshold": 0.0}, warm_up=0), []
    monkeypatch.setattr(reps, "push", lambda bank, *given: pushed.append(given))
    seen = []
    monkeypatch.setattr(trainer.method.prototypes, "update", lambda *given: seen.append(given))
    trainer.train_step()
    [(rows, allowed)], [(both, members, _)] = pushed, seen
    half = len(both) // 2  # the labelled images come first
    assert torch.equal(rows, both[:half])
    assert torch.equal(allowed, members[:half])
    assert members[half:].any()


def test_prototypes_are_means_over_all_ranks(monkeypatch):
    torch.manual_seed(0)
    rows, members = torch.randn(40, 6).double(), F.one_hot(torch.arange(40) % 3, 4).bool()
    one, two = (Prototypes(4, 2, 6).double() for _ in range(2))
    for each in (one, two):
        each.vectors.copy_(torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(1)))
        each.started[:2] = True
    one.update(rows, members, 0.9)
    gathered = []
    with monkeypatch.context() as patched:
        # Two ranks with a half each: what the first sends is recorded, and the second receives both.
        patched.setattr(distributed, "gather", lambda x: gathered.append(x) or x[None])
        state = {name: tensor.clone() for name, tensor in two.state_dict().items()}
        two.update(rows[:20], members[:20], 0.9)
        two.load_state_dict(state)
        patched.setattr(distributed, "gather", lambda x: torch.stack((gathered.pop(0), x)))
        two.update(rows[20:], members[20:], 0.9)
    torch.testing.assert_close(one.vectors, two.vectors, rtol=1e-12, atol=0)
    assert one.started.tolist() == two.started.tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.5}, r"pcr: momentum must lie in \[0, 1\], got 1\.5"),
        ({"prototypes": 0}, r"pcr: prototypes must be at least 1, got 0"),
        ({"temperature": -1.0}, r"pcr: temperature must be finite and at least 1e-06, got -1"),
        ({"prototype_weight": -1.0}, r"pcr: prototype_weight must be finite and not neg.*got -1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        methods.choose({"name": "pcr", **options})
