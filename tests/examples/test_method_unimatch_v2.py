"""UniMatch V2: its loss against a loop in float64, and complementary channels."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from semi_supervised import methods  # noqa: E402
from semi_supervised.methods import unimatch_v2  # noqa: E402
from test_method_losses import LABELS, B, Loops, Step  # noqa: E402
from test_method_runs import make_trainer  # noqa: E402
from test_paper_trainer import TwoHeads  # noqa: E402

OPTIONS = {"weight": 0.7, "threshold": 0.6}
NAME = {"name": "unimatch_v2"}


@pytest.mark.parametrize("case", LABELS)
def test_the_loss_is_that_of_the_formula(case):
    step = Step("unimatch_v2", OPTIONS, case)
    loops, weight = Loops(step), step.options.weight
    views = [loops.sources(view) for view in (step.views.strong, step.views.another_strong())]
    assert views[0] != views[1]
    # Images 0 and 1 of each view. Image 0 has no dropout: its logits are the plain ones.
    _, first, second, dropped = loops.logits.reshape(4, B, *loops.logits.shape[1:])
    assert B == 2
    learned = [[first[0], dropped[0]], [second[0], dropped[1]]]
    losses = [
        loops.pseudo(np.stack(pair), view, loops.judged[B:], 0.6)
        for pair, view in zip(learned, views, strict=True)
    ]
    wanted = loops.supervised(loops.logits) + weight * sum(losses) / 2
    assert step.losses()["total"].item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.long
def test_gradients_are_those_of_the_loss():
    step = Step("unimatch_v2", OPTIONS)
    assert torch.autograd.gradcheck(lambda _: step.losses()["total"], [step.student])


def test_weight_zero_is_the_supervised_loss():
    losses = Step("unimatch_v2", {**OPTIONS, "weight": 0.0}).losses()
    assert losses["total"] == losses["supervised"] > 0


def test_without_a_pixel_that_counts_the_loss_is_a_connected_zero():
    step = Step("unimatch_v2", OPTIONS, ignored=True)
    losses = step.losses()
    assert all(loss == 0 for loss in losses.values())
    losses["total"].backward()
    assert not step.student.grad.any()


def test_two_maps_share_out_the_channels():
    torch.manual_seed(0)
    first, second = unimatch_v2.complements(torch.ones(50, 40, 2, 3), torch.ones(50, 40, 2, 3))
    assert torch.equal(first + second, torch.full_like(first, 2))
    assert set(first.unique().tolist()) == {0, 2}
    assert torch.equal(first, first[..., :1, :1].expand_as(first))  # whole channels
    assert 0.45 < first.mean() / 2 < 0.55
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("batch", [2, 3])
def test_half_of_the_pairs_have_complementary_maps(batch):
    """The last pairs do. The maps that the decoder reads again are those of the same images."""
    trainer, seen = make_trainer(NAME, warm_up=0, batch=batch), []
    for lateral in trainer.student.lateral:
        lateral.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    trainer.train_step()
    whole = batch // 2
    masks = []
    for maps in seen:
        labelled, first, second, *dropped = maps.split([batch] * 3 + [batch - whole] * 2)
        plain = first[whole:], second[whole:]
        for ours, theirs in zip(dropped, plain, strict=True):
            assert ((ours == 0) | (ours == 2 * theirs)).all()
        kept = [each.flatten(2).any(-1) for each in dropped]
        assert not (kept[0] & kept[1]).any()
        masks.append(kept[0])
        assert len(labelled) == batch
    assert len(masks) == 2
    assert masks[0].any()


def test_the_teacher_labels_the_weak_view():
    trainer, seen = make_trainer(NAME, warm_up=0), []
    trainer.teacher.module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    trainer.train_step()
    assert torch.equal(*seen, trainer.batches.take(0)[0].weak)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, r"unimatch_v2: threshold must lie in \[0, 1\], got 1\.5"),
        ({"dropout": 0.5}, r"unknown key 'dropout' of method unimatch_v2"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        methods.choose({**NAME, **options})


def test_the_network_must_take_perturb():
    message = r"method unimatch_v2 needs a network .* perturb.*TwoHeads does"
    with pytest.raises(ValueError, match=message):
        make_trainer(NAME, build=lambda: TwoHeads(11))
