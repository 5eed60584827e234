"""The examples with their own loop: torchvision, segmentation_models.pytorch, Ignite, MONAI, point clouds."""

import pytest
import torch

STEPS = "3"


def learned(project):
    """Returns whether every parameter of the head has a nonzero gradient."""
    return all(p.grad is not None and p.grad.abs().sum() > 0 for p in project.parameters())


@pytest.mark.parametrize(
    "name", ["deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large"]
)
def test_torchvision(name, example, trains):
    _, project, contrast = example("torchvision_models").main(["--model", name, "--steps", STEPS])
    trains(project, contrast, steps=3)
    assert learned(project)


def test_torchvision_in_float16(example, trains, reached, monkeypatch):
    scales, steps = [], []
    scale, step = torch.amp.GradScaler.scale, torch.optim.SGD.step

    def watched_scale(self, loss):
        scales.append(self.get_scale())
        scaled = scale(self, loss)
        assert scaled == loss * scales[-1]
        return scaled

    def watched_step(self, *arguments):
        steps.append(all(p.grad.isfinite().all() for g in self.param_groups for p in g["params"]))
        return step(self, *arguments)

    monkeypatch.setattr(torch.amp.GradScaler, "scale", watched_scale)
    monkeypatch.setattr(torch.optim.SGD, "step", watched_step)
    arguments = ["--model", "lraspp_mobilenet_v3_large", "--amp", "--steps", STEPS]
    _, project, contrast = example("torchvision_models").main(arguments)
    trains(project, contrast, steps=3)
    assert {dtype for dtype, _ in reached} == {torch.float16}
    assert contrast.bank.features.dtype == torch.float32
    assert len(scales) == 3
    assert scales[0] > 1
    assert len(steps) > 0  # the scaler skips steps with non-finite gradients
    assert all(steps)
    assert learned(project)


@pytest.mark.parametrize("name", ["Unet", "DeepLabV3Plus", "FPN"])
def test_smp(name, example, trains, monkeypatch):
    module = example("smp_models")
    kept, labelled, seen = [], [], []
    entropy_filter, forward = module.entropy_filter, module.DensityContrastLoss.forward

    def watched_filter(logits, keep_fraction):
        labels = entropy_filter(logits, keep_fraction)
        kept.append((keep_fraction, float((labels != 255).float().mean())))
        return labels

    def watched_loss(self, projections, labels, features):
        labelled.append((labels[4:] != 255).float().mean())  # only the unlabelled half
        seen.append(features.shape[-2:])
        return forward(self, projections, labels, features)

    monkeypatch.setattr(module, "entropy_filter", watched_filter)
    monkeypatch.setattr(module.DensityContrastLoss, "forward", watched_loss)
    _, project, contrast = module.main(["--model", name, "--steps", STEPS])
    trains(project, contrast, steps=3)
    assert learned(project)
    assert seen == [(16, 16)] * 3  # U-Net's full-size map is pooled to the others' size
    assert len(kept) == 2 * 3
    for fraction, actual in kept:
        assert actual == pytest.approx(fraction, abs=0.01)
    reliable = [actual for _, actual in kept[1::2]]
    assert reliable == sorted(reliable)
    assert all(0 < fraction < 1 for fraction in labelled)


def test_ignite_with_a_compiled_model(example, trains):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # Inductor takes minutes to compile MobileViT for the CPU. Another backend has the same capture and autograd.
    arguments = ["--steps", STEPS, "--backend", "aot_eager"]
    compiled, project, contrast = example("ignite_mobilevit").main(arguments)
    trains(project, contrast, steps=3)
    assert learned(project)
    assert hasattr(compiled, "_orig_mod")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch._dynamo.utils.counters["graph_break"]


def test_monai_volumes(example, trains, monkeypatch):
    from monai.data import MetaTensor

    module = example("monai_unet")
    seen, forward, resize_labels = [], module.DensityContrastLoss.forward, module.resize_labels

    def watched_resize(labels, size):
        assert isinstance(labels, MetaTensor)
        assert labels.shape == (2, 1, 24, 24, 24)
        return resize_labels(labels, size)

    def watched_loss(self, projections, labels, features):
        seen.append([tuple(projections.shape), tuple(labels.shape), tuple(features.shape)])
        loss = forward(self, projections, labels, features)
        assert type(loss) is type(features) is torch.Tensor
        return loss

    monkeypatch.setattr(module, "resize_labels", watched_resize)
    monkeypatch.setattr(module.DensityContrastLoss, "forward", watched_loss)
    _, project, contrast = module.main(["--steps", STEPS])
    trains(project, contrast, steps=3)
    assert learned(project)
    assert seen == [[(2, 256, 12, 12, 12), (2, 12, 12, 12), (2, 32, 12, 12, 12)]] * 3


def test_point_clouds(example, trains):
    _, project, contrast = example("point_clouds").main(["--steps", STEPS])
    trains(project, contrast, steps=3)
    assert learned(project)
    assert contrast.diagnostics()["ignored_pixels"] > 0
