"""A tap in checkpoints, scripts, exports, quantisation and pickles, and on a module that is replaced."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dgcl_ops import FeatureTap, ProjectionHead

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Stage(nn.Module):
    """A classifier with a layer inside."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(8, 4, 1)

    def forward(self, maps):
        return self.layer(maps)


def network(last=None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), last or nn.Conv2d(8, 4, 1))


def tapped(last=None):
    model = network(last)
    return model, FeatureTap(model, "2")


# ---- gradient checkpointing ---------------------------------------------------------------------------


def test_checkpoint_without_reentry_is_right_and_leaves_the_tap_empty():
    model, tap = tapped()
    body, head = nn.Conv2d(3, 3, 1), ProjectionHead(8, 4, 4)
    gradients = []
    for run in (model, lambda maps: checkpoint(model, maps, use_reentrant=False)):
        logits = run(body(IMAGES))
        loss = logits.square().mean() + head(tap.pop()).square().mean()
        parameters = [*body.parameters(), *model.parameters(), *head.parameters()]
        gradients.append(torch.autograd.grad(loss, parameters))
        assert repr(tap) == "FeatureTap('2', empty)"
    torch.testing.assert_close(gradients[0], gradients[1])
    assert all(each.any() for each in gradients[0][:2])


def test_checkpoint_with_reentry_is_an_error():
    model, tap = tapped()
    body = nn.Conv2d(3, 3, 1)
    logits = checkpoint(model, body(IMAGES), use_reentrant=True)
    with pytest.raises(
        RuntimeError, match=r"'2' have no gradient.*checkpoint\(..., use_reentrant=Fa"
    ):
        tap.pop()
    logits.sum().backward()
    assert repr(tap) == "FeatureTap('2', empty)"
    # Also in the part of a model that is checkpointed, with the classifier deeper inside.
    outer = nn.Sequential(nn.Conv2d(3, 3, 1), model)
    checkpoint(lambda maps: outer[1](maps), outer[0](IMAGES), use_reentrant=True)
    with pytest.raises(RuntimeError, match="have no gradient"):
        tap.pop()


def test_features_without_a_gradient_that_nothing_hides_are_no_error():
    model, tap = tapped()
    body = nn.Conv2d(3, 3, 1)
    with torch.no_grad():  # a teacher's pass, with and without a checkpoint
        model(body(IMAGES))
        tap.pop()
        checkpoint(model, body(IMAGES), use_reentrant=True)
    assert not tap.pop().requires_grad
    for parameter in model.parameters():  # a frozen network
        parameter.requires_grad_(False)
    model(IMAGES)
    assert not tap.pop().requires_grad
    checkpoint(model, body(IMAGES), use_reentrant=True)
    with torch.no_grad():
        assert tap.pop().shape == (2, 8, 6, 6)


# ---- deployment ---------------------------------------------------------------------------------------


def scripted(model):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(model.eval()), file)
        file.seek(0)
        return torch.jit.load(file)


def test_script_closes_the_tap():
    model, tap = tapped()
    second = FeatureTap(model, "2", feature_stride=2)
    expected = model.eval()(IMAGES)
    with pytest.warns(
        UserWarning, match=r"script cannot compile a hook, so FeatureTap\('2', full\) is"
    ):
        assert torch.equal(scripted(model)(IMAGES), expected)
    for each in (tap, second):
        with pytest.raises(RuntimeError, match="the tap is closed"):
            each.pop()
    assert not model[2]._forward_pre_hooks
    assert torch.equal(scripted(model)(IMAGES), expected)


def test_script_of_a_copy_leaves_the_tap_alone():
    model, tap = tapped()
    teacher = copy.deepcopy(model)
    averaged = torch.optim.swa_utils.AveragedModel(copy.deepcopy(teacher)).module
    expected = model.eval()(IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for each in (teacher, averaged):
            assert torch.equal(scripted(each)(IMAGES), expected)
    assert repr(tap) == "FeatureTap('2', full)"


def test_script_calls_what_the_class_prepares():
    class Prepared(nn.Conv2d):
        def __prepare_scriptable__(self):
            plain = nn.Conv2d(8, 4, 1)
            plain.load_state_dict(self.state_dict())
            return plain

    model, _ = tapped(Prepared(8, 4, 1))
    expected = model.eval()(IMAGES)
    with pytest.warns(UserWarning, match="is closed"):
        assert torch.equal(scripted(model)(IMAGES), expected)


@pytest.mark.parametrize("last", [None, Stage()], ids=["leaf", "stage"])
@pytest.mark.parametrize("tool", ["strict export", "export", "trace", "fx"])
def test_exports_capture_nothing(tool, last):
    model, tap = tapped(last)
    expected = model.eval()(IMAGES)
    tap.pop()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        if tool == "trace":
            exported = torch.jit.trace(model, IMAGES, check_trace=False)
        elif tool == "fx":
            exported = torch.fx.symbolic_trace(model)
        else:
            exported = torch.export.export(model, (IMAGES,), strict="strict" in tool).module()
    assert repr(tap) == "FeatureTap('2', empty)"
    assert torch.equal(exported(IMAGES), expected)
    model(IMAGES)
    assert type(tap.pop()) is torch.Tensor


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantisation_takes_the_hook_along():
    quantisation = pytest.importorskip("torch.ao.quantization")
    if "x86" not in torch.backends.quantized.supported_engines:
        pytest.skip("needs PyTorch's quantised kernels for x86")
    model, tap = tapped()
    whole = nn.Sequential(quantisation.QuantStub(), model.eval(), quantisation.DeQuantStub())
    whole.qconfig = quantisation.get_default_qconfig()
    prepared = quantisation.prepare(whole)
    prepared(IMAGES)
    assert quantisation.convert(prepared)(IMAGES).shape == (2, 4, 6, 6)
    assert repr(tap) == "FeatureTap('2', empty)"  # of the model before, not of its copies
    model(IMAGES)
    assert tap.pop().shape == (2, 8, 6, 6)


def test_a_pickled_model_needs_the_package_only_with_a_tap(tmp_path):
    model, tap = tapped()
    path = tmp_path / "model.pt"
    with pytest.warns(
        UserWarning, match="loading this pickled model needs dgcl_ops; close the tap"
    ):
        torch.save(model, path)
    assert b"dgcl_ops" in path.read_bytes()
    loaded = torch.load(path, weights_only=False)
    assert torch.equal(loaded(IMAGES), model(IMAGES))
    assert torch.equal(scripted(loaded)(IMAGES), model(IMAGES))
    tap.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.save(model, path)
    assert b"dgcl_ops" not in path.read_bytes()


# ---- a module that was replaced -----------------------------------------------------------------------


def test_a_replaced_module_is_named():
    model, tap = tapped()
    model[2] = nn.Conv2d(8, 7, 1)
    model(IMAGES)
    with pytest.raises(RuntimeError, match="has another module there now; create the tap after"):
        tap.pop()
    del model[2]
    with pytest.raises(RuntimeError, match="has another module there now"):
        tap.pop()
    tap = FeatureTap(network(), "2")  # the model is gone, and nobody can say more
    with pytest.raises(RuntimeError, match="run the model before each pop"):
        tap.pop()
