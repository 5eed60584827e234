"""Runs of every method: views and batches in common, counted passes, exact resumption, two ranks."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from processes import on_ranks  # noqa: E402
from semi_supervised import checkpoint, distributed, methods  # noqa: E402
from semi_supervised.methods.base import Passes  # noqa: E402
from semi_supervised.network import SegmentationNetwork  # noqa: E402
from semi_supervised.scenes import DigitScenes  # noqa: E402
from semi_supervised.settings import SMALL, Settings  # noqa: E402
from semi_supervised.trainer import Trainer  # noqa: E402
from test_examples import Recorded, assert_same, state_of  # noqa: E402

CONTRAST = {**SMALL, "bank_capacity": 64}
PLAIN_CPS = {"name": "cps", "cutmix": False}
CHEAP = {"gct": {"detector_width": 4}}
METHODS = [*({"name": name, **CHEAP.get(name, {})} for name in methods.METHODS), PLAIN_CPS]
NEW = [each for each in METHODS if each["name"] not in ("dgcl", "self_training")]
# The methods that `make test` runs: without other state, with averages and a bank, and with an optimizer of its own.
SHORT = ("fixmatch", "u2pl", "gta_seg")


def each_of(chosen):
    """Parametrizes a test by method. Only those of SHORT are core."""
    marks = [[] if each["name"] in SHORT else [pytest.mark.long] for each in chosen]
    both = zip(chosen, marks, strict=True)
    return pytest.mark.parametrize(
        "method", [pytest.param(each, marks=own, id=str(each)) for each, own in both]
    )


EACH, EACH_NEW = each_of(METHODS), each_of(NEW)


def make_network():
    return SegmentationNetwork(11, widths=(8, 16), feature_dim=8)


def make_trainer(method, data=None, build=make_network, **changes):
    torch.manual_seed(0)
    basis = {"steps": 5, "warm_up": 2, "batch": 2, "contrast": CONTRAST}
    settings = Settings(method=method, **basis | changes)
    data = data or Recorded(DigitScenes(4, 6, seed=0))
    return Trainer(build(), data, settings, make_network=build)


def seen_by_the_student(method, **changes):
    """Returns the images that the student trains on in one step, and the data's batches."""
    trainer, seen = make_trainer(method, warm_up=0, **changes), []
    trainer.student.register_forward_hook(
        lambda _, inputs, logits: seen.append(inputs[0]) if logits.requires_grad else None
    )
    trainer.train_step()
    [images] = seen
    return images.split(2), trainer.data.batches


@pytest.mark.long
@pytest.mark.parametrize("mode", ["image", "batch"])
def test_methods_share_batches_and_views(mode):
    rules = {"cutmix": 1.0, "cutmix_mode": mode}
    (labelled, weak, strong), batches = seen_by_the_student({"name": "dgcl"}, **rules)
    (_, _, recoloured), _ = seen_by_the_student({"name": "dgcl"}, cutmix=0.0)
    expected = {
        "supervised": [labelled],
        "self_training": [labelled, weak, strong],
        "dgcl": [labelled, weak, strong],
        "fixmatch": [labelled, strong],
        "mean_teacher": [labelled, recoloured],
        "cutmix_seg": [labelled, strong],
        "unimatch": [labelled, weak, strong],
        "cps": [labelled, strong],
        "augseg": [labelled],
        "unimatch_v2": [labelled, strong],
        "density_step": [labelled, strong],
        "gta_seg": [labelled, strong],
        "gct": [labelled, recoloured],
        "cct": [labelled, weak],
        "ps_mt": [labelled, strong],
        "u2pl": [labelled, strong],
        "pcr": [labelled, strong],
        "reco": [labelled, strong],
    }
    others = {"unimatch": 1, "augseg": 1, "unimatch_v2": 1}  # further views
    assert expected.keys() == methods.METHODS.keys()
    for name, views in expected.items():
        found, drawn = seen_by_the_student({"name": name}, **rules)
        for ours, theirs in zip(drawn, batches, strict=True):
            assert all(map(torch.equal, ours, theirs))
        second = found[len(views) :]
        assert len(second) == others.get(name, 0)
        for ours, theirs in zip(found, views, strict=False):
            assert torch.equal(ours, theirs)
        for view in second:
            assert all(not torch.equal(view, each) for each in views)


@pytest.mark.parametrize(
    "name", ["fixmatch", "mean_teacher", "cutmix_seg", "augseg", "density_step", "pcr", "reco"]
)
def test_the_teacher_sees_the_images_in_their_own_colours(name):
    trainer, seen = make_trainer({"name": name}, warm_up=0), []
    trainer.teacher.module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    trainer.train_step()
    batch, _ = trainer.batches.take(0)
    both = torch.cat((batch.images, batch.weak))
    expected = both if name == "mean_teacher" else batch.weak
    assert torch.equal(*seen, expected)


def test_the_perturbed_maps_of_unimatch_are_those_of_the_weak_view():
    trainer, seen = make_trainer({"name": "unimatch", "dropout": 0.0}, warm_up=0), []
    trainer.student.register_forward_hook(lambda _, inputs, logits: seen.append(logits))
    trainer.train_step()
    labelled, weak, *_, perturbed = seen[0].split(2)
    torch.testing.assert_close(perturbed, weak)
    assert not torch.allclose(perturbed, labelled)


def counted(trainer):
    """Returns the passes of one step, counted by hooks on the first layer of every network."""
    images = {True: 0, False: 0}

    def count(_, inputs, maps):
        images[maps.requires_grad] += len(maps)

    networks = (trainer.student, trainer.teacher.module, *trainer.method.networks.values())
    hooks = [
        each.down[0].register_forward_hook(count) for each in networks if hasattr(each, "down")
    ]
    trainer.train_step()
    for hook in hooks:
        hook.remove()
    return Passes(*(images[trained] / trainer.settings.batch for trained in (True, False)))


@EACH
def test_declared_passes_are_those_of_a_step(method):
    keys = methods.METHODS[method["name"]].keys
    for view in ("weak", "strong") if "contrast_view" in keys else ("weak",):
        trainer = make_trainer(method, warm_up=1, contrast_view=view)
        assert counted(trainer) == trainer.method.warm_up_passes
        assert counted(trainer) == trainer.method.passes(trainer.settings, trainer.method.options)


def test_equal_passes_are_other_steps():
    steps = {}
    for method in METHODS:
        settings = Settings(method=method, steps=12, warm_up=0, contrast_view="strong")
        steps[str(method)] = methods.passes_of(settings) // 12
    assert list(steps.values()) == [3, 8, 8, 7, 6, 12, 14, 9, 8, 7, 15, 8, 7, 12, 10, 7, 7, 7, 12]


def test_the_page_has_the_passes_of_each_method():
    rows = {}
    for line in (EXAMPLES.parent / "docs" / "methods.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = cells[0].split("`")[1:2]
        if len(cells) == 3 and name and name[0] in methods.METHODS:
            rows[name[0]] = cells[2]
    for name, kind in methods.METHODS.items():
        _, options = methods.choose({"name": name})
        views = [Settings(contrast_view=view) for view in ("strong", "weak")]
        units = dict.fromkeys(str(kind.passes(settings, options).units) for settings in views)
        assert rows[name] == " or ".join(units)
    assert rows.keys() == methods.METHODS.keys()


@EACH_NEW
def test_resume_equals_uninterrupted(method, tmp_path):
    whole, first, *others = (make_trainer(method, teacher_averages="own") for _ in range(4))
    whole.run(record_every=1)
    for stopped, second in zip((1, 3), others, strict=True):  # in the warm-up, and after it
        first.run(until=stopped, record_every=1)
        first.save(tmp_path / "checkpoint.pt")
        torch.rand(1)  # another process has other random numbers
        second.load(tmp_path / "checkpoint.pt")
        second.run(record_every=1)
        assert whole.history == second.history
        assert_same(state_of(whole), state_of(second))
    with pytest.raises(ValueError, match=r"method must be \{.*\} as in the checkpoint .*'dgcl'"):
        make_trainer({"name": "dgcl"}, teacher_averages="own").load(tmp_path / "checkpoint.pt")


def test_options_are_compared_with_their_defaults(tmp_path):
    make_trainer({"name": "fixmatch"}).save(tmp_path / "c.pt")
    make_trainer({"name": "fixmatch", "threshold": 0.95}).load(tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"method must be .*0\.95.* as in the checkpoint .*0\.5"):
        make_trainer({"name": "fixmatch", "threshold": 0.5}).load(tmp_path / "c.pt")


@pytest.mark.parametrize("name", ["supervised", "unimatch", "cps", "cct", "ps_mt"])
def test_a_teacher_that_does_not_run_takes_the_students_averages(name):
    trainer = make_trainer({"name": name}, teacher_averages="own", ema_maximum=0.0)
    trainer.run()
    assert_same(trainer.student.state_dict(), trainer.teacher.module.state_dict())


@EACH
def test_averages_share_no_storage_with_their_source(method):
    trainer = make_trainer(method, ema_from="warm_up")
    trainer.run(until=3)
    networks = checkpoint.networks(trainer).values()
    tensors = [t.data_ptr() for network in networks for t in network.state_dict().values()]
    assert len(set(tensors)) == len(tensors)


def test_weight_zero_of_two_methods_with_the_same_images_is_the_same_training():
    ends = []
    for name in ("fixmatch", "cutmix_seg"):
        trainer = make_trainer({"name": name, "weight": 0.0})
        trainer.run()
        ends.append(trainer.student.state_dict())
    assert_same(*ends)


def test_the_second_network_has_other_weights_and_changes_nothing_else():
    alone, drawn = make_trainer({"name": "fixmatch"}), torch.rand(1)
    pair = make_trainer({"name": "cps"})
    assert torch.equal(torch.rand(1), drawn)
    assert_same(alone.student.state_dict(), pair.student.state_dict())
    second = pair.method.networks["second"]
    assert not torch.equal(second.classifier.weight, pair.student.classifier.weight)
    of_another_seed = make_trainer({"name": "cps"}, seed=1).method.networks["second"]
    assert not torch.equal(second.classifier.weight, of_another_seed.classifier.weight)
    groups = pair.optimizer.param_groups
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(p) for each in (pair.student, second) for p in each.parameters()}


class FewLabels:
    """Two classes, one of which has no label; -1 where there is none."""

    num_classes, ignore_index = 2, -1

    def labelled(self, count, rng):
        labels = torch.from_numpy(rng.integers(-1, 1, (count, 16, 16)))
        return torch.from_numpy(rng.random((count, 3, 16, 16), dtype="f4")), labels

    def unlabelled(self, count, rng):
        inside = torch.ones(count, 16, 16, dtype=torch.bool)
        inside[0] = False
        return torch.from_numpy(rng.random((count, 3, 16, 16), dtype="f4")), inside


@EACH
def test_two_classes_and_other_ignored_labels_train(method):
    build = lambda: SegmentationNetwork(2, widths=(8,), feature_dim=8)
    if method["name"] == "u2pl":
        method = {**method, "low_rank": 1}  # there are no others
    trainer = make_trainer(method, FewLabels(), build, warm_up=1, balance=0.0)
    trainer.run(record_every=1)
    for record in trainer.history:
        assert all(map(torch.isfinite, map(torch.tensor, record.values())))


@EACH
def test_gradients_reach_every_weight_under_autocast(method):
    """PyTorch 2.10 keeps weights that autocast has cast without a gradient, as in a pass that only labels."""
    trainer = make_trainer(method, warm_up=0, precision="bfloat16")
    trainer.train_step()
    for network in (trainer.student, trainer.method.networks.get("second", trainer.student)):
        for name, weight in network.named_parameters():
            assert weight.grad is not None, name
            assert weight.grad.any(), name


# ---- two ranks ------------------------------------------------------------------------------------


def run_on_a_rank(rank, folder):
    """Trains every method but dgcl and self_training for two steps, and resumes those with more than a student."""
    found = {}
    for number, method in enumerate(NEW):
        whole = make_trainer(method, steps=2, warm_up=1)
        whole.run(until=1)
        parts = whole.method
        resumes = parts.networks or parts.state or parts.optimizers
        if resumes:
            whole.save(folder / "checkpoint.pt")
        whole.run()
        if resumes:
            resumed = make_trainer(method, steps=2, warm_up=1)
            resumed.load(folder / "checkpoint.pt")
            resumed.run()
            assert_same(state_of(whole), state_of(resumed))
        for name, part in checkpoint.parts(whole).items():
            for key, tensor in part.state_dict().items():
                found[f"{number} {name} {key}"] = tensor
    distributed.barrier()
    return found


@pytest.mark.long
@pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo for two ranks"
)
def test_two_ranks_end_with_one_set_of_weights(tmp_path):
    first, second = on_ranks(2, tmp_path, run_on_a_rank)
    assert first.keys() == second.keys()
    other = {name.split(".")[-1] for name in first if not torch.equal(first[name], second[name])}
    assert other == {"running_mean", "running_var"}  # each rank has its own averages
    assert len({name.split()[0] for name in first}) == len(NEW)
