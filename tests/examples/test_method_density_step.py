"""The density step: direction and loss against loops in float64, its bank in the checkpoint and on two ranks."""

import math
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from method_steps import batch_of  # noqa: E402
from processes import on_ranks  # noqa: E402
from semi_supervised import distributed, methods  # noqa: E402
from semi_supervised.settings import Settings  # noqa: E402
from semi_supervised.views import Views  # noqa: E402
from test_examples import assert_same, state_of  # noqa: E402
from test_method_losses import LABELS, B, H, W, pixels, softmax  # noqa: E402
from test_method_runs import make_trainer  # noqa: E402

D, SIZE = 6, (2, 3)  # of the features
NAME = {"name": "density_step"}
OPTIONS = {"weight": 0.7, "threshold": 0.6, "step": 0.4, "bank_capacity": 64}


class FromFeatures(nn.Module):
    """A network with the same features for all images."""

    def __init__(self, features, classes):
        super().__init__()
        self.features = nn.Parameter(features)
        self.classifier = nn.Conv2d(D, classes, 1).double()

    def forward(self, images):
        return F.interpolate(self.classifier(self.features), (H, W), mode="bilinear")


class Step:
    """One step on given features and a filled bank, in place of a trainer. Class 2 is not ready."""

    def __init__(self, options=OPTIONS, case="three", ignored=False, filled=True):
        classes, ignore, present = LABELS[case]
        torch.manual_seed(1)
        self.teacher = 2 * torch.randn(2 * B, classes, H, W, dtype=torch.float64)
        batch = batch_of((H, W), present, ignore, ignored)
        self.settings = Settings(method={**NAME, **options}, batch=B, cutmix=1.0, seed=3)
        self.views = Views(batch, np.random.default_rng(0), self.settings, (3, 0, 0))
        self.network = FromFeatures(torch.randn(2 * B, D, *SIZE, dtype=torch.float64), classes)
        self.data = SimpleNamespace(num_classes=classes, ignore_index=ignore)
        self.trainer = SimpleNamespace(
            settings=self.settings,
            data=self.data,
            device=torch.device("cpu"),
            student=self.network,
            teach=lambda images: self.teacher[-len(images) :],
            classify=self.classify,
            autocast=lambda *precisions: nullcontext(),
        )
        kind, self.options = methods.choose(self.settings.method)
        self.method = kind(self.trainer, self.options)
        bank = self.method.bank
        if filled:
            counts = torch.tensor([40, 50, 5])[:classes]
            rows, nothing = torch.randn(classes, 50, D), torch.zeros(classes, 50)
            bank.push_rows(rows, nothing[..., None], nothing, counts)

    def classify(self, images, labels):
        logits = self.network(images)
        total = F.cross_entropy(
            logits[:B], labels, ignore_index=self.data.ignore_index, reduction="sum"
        )
        return logits, total / (labels != self.data.ignore_index).sum().clamp(min=1)

    def losses(self):
        return self.method.losses(self.views)


def directions(step, features, labels):
    """Returns r, row by row, for features [N, D] and a label each."""
    bank = step.method.bank
    found = []
    for h, label in zip(features.double().numpy(), labels.tolist(), strict=True):
        r = np.zeros(D)
        if label != step.data.ignore_index and bank.counts[label] >= 32:
            rows = bank.features[label, : bank.counts[label]].double().numpy()
            cosines = rows @ h / np.linalg.norm(h)
            best = np.argsort(-cosines)
            d = np.zeros(D)
            for k in (8, 16, 32):
                for m in best[:k]:
                    d += (rows[m] - cosines[m] * h / np.linalg.norm(h)) / k / 3
            r = -step.options.step * np.linalg.norm(h) * d / np.linalg.norm(d)
        found.append(r)
    return torch.tensor(np.array(found))


def test_the_step_is_that_of_the_formula():
    step = Step()
    features = torch.randn(B, D, *SIZE, dtype=torch.float64)
    labels = torch.tensor([[[0, 1, 255], [2, 0, 0]], [[1, 1, 1], [255, 2, 0]]])
    moved = step.method.step_down(features, labels)
    rows = features.movedim(1, -1).reshape(-1, D)
    wanted = directions(step, rows, labels.flatten())
    assert wanted.any(1).sum() == 8
    torch.testing.assert_close(moved.movedim(1, -1).reshape(-1, D), wanted, rtol=1e-5, atol=1e-6)
    assert not moved.requires_grad

    narrow = step.method.step_down(features.float(), labels)
    assert narrow.dtype == torch.float32
    cosines = F.cosine_similarity(narrow.double(), moved, dim=1)
    assert (cosines[labels < 2] > 0.9999).all()
    shifted = torch.where(labels == 255, -1, labels)
    step.data.ignore_index = -1
    assert torch.equal(step.method.step_down(features, shifted), moved)


def test_the_step_leads_into_a_sparser_region():
    step = Step()
    features, labels = torch.randn(B, D, *SIZE), torch.zeros(B, *SIZE, dtype=torch.long)
    moved = step.method.step_down(features, labels)
    offsets = torch.tensor([0, B * math.prod(SIZE), B * math.prod(SIZE), B * math.prod(SIZE)])
    density = [
        step.method.bank.density_of(each.movedim(1, -1).reshape(-1, D), offsets)
        for each in (features, features + moved)
    ]
    assert (density[1] < density[0]).all()
    turned = F.cosine_similarity(features, features + moved, dim=1)
    torch.testing.assert_close(turned, torch.full_like(turned, math.cos(math.atan(0.4))))


def pseudo_labels(step):
    """Returns labels [B, H, W] of the mixed images, and place, label and whether it is kept for each pixel inside."""
    [sources] = step.views.strong.paste(torch.arange(B * H * W).view(B, H, W))
    judged = step.teacher[B:].movedim(1, -1).numpy()
    labels, counted = torch.full((B, H, W), step.data.ignore_index), []
    for at in pixels():
        source = np.unravel_index(int(sources[at]), (B, H, W))
        p = softmax(judged[source])
        if step.views.batch.inside[source]:
            counted.append((at, int(p.argmax()), p.max() >= step.options.threshold))
            if p.max() >= step.options.threshold:
                labels[at] = int(p.argmax())
    return labels, counted


def nearest(labels):
    """Returns the labels at the features' size, as a list."""
    rows, columns = ([i * n // m for i in range(m)] for n, m in ((H, SIZE[0]), (W, SIZE[1])))
    return [int(each[i, j]) for each in labels for i in rows for j in columns]


@pytest.mark.parametrize("case", LABELS)
def test_the_loss_is_that_of_the_formula(case):
    step = Step(case=case)
    views, network = step.views, step.network
    labels, counted = pseudo_labels(step)
    features = network.features.detach()
    rows = features[B:].movedim(1, -1).reshape(-1, D)
    moved = directions(step, rows, torch.tensor(nearest(labels)))
    moved = moved.view(B, *SIZE, D).movedim(-1, 1)
    assert moved.any()
    total = 0
    for h in (features[B:], features[B:] + moved):
        logits = F.interpolate(network.classifier(h), (H, W), mode="bilinear")
        logits = logits.detach().movedim(1, -1).numpy()
        found = [-math.log(softmax(logits[at])[q]) for at, q, kept in counted if kept]
        total += sum(found) / len(counted) / 2
    _, supervised = step.classify(None, views.batch.labels)
    # The search runs on float32 rows.
    losses = step.losses()
    assert losses["total"].item() == pytest.approx(supervised.item() + 0.7 * total, rel=1e-7)
    assert losses["moved"] == pytest.approx(moved.any(1).double().mean())


@pytest.mark.long
def test_gradients_are_those_of_the_loss_with_the_step_held_fixed():
    step = Step()
    moved = step.method.step_down(
        step.network.features[B:].detach(), torch.zeros(B, *SIZE, dtype=torch.long)
    )
    step.method.step_down = lambda features, labels: moved
    inputs = [step.network.features, step.network.classifier.weight]
    assert torch.autograd.gradcheck(lambda *_: step.losses()["total"], inputs)


def test_weight_zero_is_the_supervised_loss():
    losses = Step({**OPTIONS, "weight": 0.0}).losses()
    assert losses["total"] == losses["supervised"] > 0


def test_without_a_pixel_that_counts_the_loss_is_a_connected_zero():
    step = Step(ignored=True)
    losses = step.losses()
    assert all(loss == 0 for loss in losses.values())
    losses["total"].backward()
    assert not step.network.features.grad.any()


def test_without_a_ready_class_nothing_moves():
    step = Step(filled=False)
    losses = step.losses()
    assert losses["moved"] == 0
    assert losses["stepped"] == losses["unlabelled"] > 0
    assert torch.equal(losses["kept"], Step().losses()["kept"])


def test_the_bank_takes_the_pixels_with_a_label():
    step = Step(filled=False)
    step.losses()
    counts = step.method.bank.counts
    labels, _ = pseudo_labels(step)
    small = nearest(torch.cat((step.views.batch.labels, labels)))
    assert counts.tolist() == [small.count(c) for c in range(3)]
    assert 0 < counts.sum() < len(small)
    rows = F.normalize(step.network.features.detach(), dim=1).movedim(1, -1).reshape(-1, D)
    for c in range(3):
        wanted = rows[[label == c for label in small]].float()
        assert torch.cdist(step.method.bank.features[c, : counts[c]], wanted).amin(0).max() < 1e-3
    empty = Step(ignored=True, filled=False)
    empty.losses()
    assert empty.method.bank.counts.sum() == 0


RULES = {"steps": 6, "warm_up": 1}
FAST = {**NAME, "threshold": 0.0, "bank_capacity": 64}  # ready after the first step


def test_the_bank_is_in_the_checkpoint(tmp_path):
    whole, first, second = (make_trainer(FAST, **RULES) for _ in range(3))
    whole.run(record_every=1)
    first.run(until=3, record_every=1)
    first.save(tmp_path / "c.pt")
    assert "bank.features" in {f"bank.{name}" for name in torch.load(tmp_path / "c.pt")["bank"]}
    second.load(tmp_path / "c.pt")
    second.run(record_every=1)
    assert whole.history == second.history
    assert whole.history[-1]["moved"] > 0
    assert_same(state_of(whole), state_of(second))
    state = torch.load(tmp_path / "c.pt")
    state["bank"]["counts"] = state["bank"]["counts"] - 1000
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"(?s)c\.pt: .*MemoryBank: the stored counts"):
        make_trainer(FAST, **RULES).load(tmp_path / "c.pt")


def run_on_a_rank(rank, folder):
    """Trains, resumes in the middle and returns the whole state."""
    whole = make_trainer(FAST, **RULES)
    whole.run(until=3)
    whole.save(folder / "checkpoint.pt")  # raises if the banks differ
    whole.run()
    resumed = make_trainer(FAST, **RULES)
    resumed.load(folder / "checkpoint.pt")
    resumed.run()
    assert_same(state_of(whole), state_of(resumed))
    distributed.barrier()
    return state_of(whole)


@pytest.mark.long
@pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo for two ranks"
)
def test_two_ranks_have_one_bank(tmp_path):
    first, second = on_ranks(2, tmp_path, run_on_a_rank)
    other = {name.split(".")[-1] for name in first if not torch.equal(first[name], second[name])}
    assert other == {"running_mean", "running_var"}
    assert first[".bank.counts"].sum() > 64


def test_the_hook_is_gone_after_a_step():
    trainer = make_trainer(FAST, **RULES)
    trainer.run(until=3)
    assert not trainer.student.classifier._forward_pre_hooks
    assert len(trainer.student(torch.rand(2, 3, 16, 16))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, r"density_step: threshold must lie in \[0, 1\], got 1\.5"),
        ({"step": -1.0}, r"density_step: step must be finite and not negative, got -1"),
        ({"bank_capacity": 0}, r"density_step: bank_capacity must be at least 1, got 0"),
        ({"rows_per_push": 0}, r"density_step: rows_per_push must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        methods.choose({**NAME, **options})
