"""dgcl_ops.features: the tap on a model's features, at a path that is given."""

import copy
import io

import pytest
import torch
from torch import nn

from dgcl_ops.features import FeatureTap


class Segmenter(nn.Module):
    """A backbone, then a decoder that ends with the classifier."""

    def __init__(self, channels=4, classes=3):
        super().__init__()
        self.backbone = nn.Conv2d(3, channels, 3, padding=1, stride=2)
        self.decoder = nn.ModuleDict(
            {"norm": nn.BatchNorm2d(channels), "classifier": nn.Conv2d(channels, classes, 1)}
        )

    def features(self, images):
        return self.decoder["norm"](self.backbone(images)).relu()

    def forward(self, images):
        return self.decoder["classifier"](self.features(images))


def test_tap_returns_the_classifiers_input_with_its_graph():
    model, images = Segmenter().eval(), torch.randn(2, 3, 8, 10)
    tap = FeatureTap(model, "decoder.classifier")
    logits = model(images)
    features = tap.pop()
    assert torch.equal(features, model.features(images))
    assert torch.equal(model.decoder["classifier"](features), logits)
    tap.pop()  # the classifier's own call above was captured too
    features.square().sum().backward()
    assert model.backbone.weight.grad.abs().sum() > 0
    assert model.decoder["classifier"].weight.grad is None


def test_tap_last_forward_counts_and_pop_clears():
    model = Segmenter().eval()
    tap = FeatureTap(model, "decoder.classifier")
    first, second = torch.randn(2, 2, 3, 8, 8)
    model(first)
    model(second)
    assert torch.equal(tap.pop(), model.features(second))
    with pytest.raises(RuntimeError, match=r"FeatureTap.pop: nothing was captured at 'decoder.cl"):
        tap.pop()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_tap_under_compile_with_gradients(backend):
    torch.manual_seed(0)
    plain = Segmenter()
    model = copy.deepcopy(plain)
    tap = FeatureTap(model, "decoder.classifier")
    plain_tap = FeatureTap(plain, "decoder.classifier")
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for seed in range(3):
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        for net, one_tap in ((compiled, tap), (plain, plain_tap)):
            net.zero_grad()
            logits = net(images)
            (logits.mean() + one_tap.pop().square().mean()).backward()
        torch.testing.assert_close(model.backbone.weight.grad, plain.backbone.weight.grad)
        torch.testing.assert_close(
            model.decoder["classifier"].weight.grad, plain.decoder["classifier"].weight.grad
        )
    with pytest.raises(RuntimeError, match="nothing was captured"):
        tap.pop()


def test_tap_can_be_made_through_the_compiled_model():
    compiled = torch.compile(Segmenter().eval(), fullgraph=True, backend="eager")
    with FeatureTap(compiled, "decoder.classifier") as tap:
        compiled(torch.randn(1, 3, 4, 4))
        assert tap.pop().shape == (1, 4, 2, 2)


def test_tap_closes():
    model, images = Segmenter(), torch.randn(2, 3, 4, 4)
    with FeatureTap(model, "decoder.classifier") as tap:
        model(images)
        assert repr(tap) == "FeatureTap('decoder.classifier', full)"
    assert not model.decoder["classifier"]._forward_pre_hooks
    model(images)
    with pytest.raises(RuntimeError, match="the tap is closed"):
        tap.pop()
    tap.close()


def test_tap_takes_keyword_inputs():
    class Head(nn.Module):
        def forward(self, *, hidden):
            return hidden + 1

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = Head()

        def forward(self, x):
            return self.head(hidden=x)

    model, x = Model(), torch.randn(2, 3)
    tap = FeatureTap(model, "head")
    model(x)
    assert torch.equal(tap.pop(), x)


def test_copies_of_the_model_store_nothing():
    model, images = Segmenter(), torch.randn(2, 3, 4, 4)
    tap = FeatureTap(model, "decoder.classifier")
    model(images)  # full: the features sit in a graph, which cannot be deep-copied
    teacher = copy.deepcopy(model)
    teacher(images)
    (hook,) = teacher.decoder["classifier"]._forward_pre_hooks.values()
    assert hook.__self__ is not tap
    assert hook.__self__._features is None
    assert tap.pop().shape == (2, 4, 2, 2)
    with pytest.raises(RuntimeError, match="nothing was captured"):
        tap.pop()  # the teacher's forward did not reach it
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged(images)
    file = io.BytesIO()
    torch.save(tap, file)
    file.seek(0)
    assert repr(torch.load(file, weights_only=False)) == "FeatureTap('decoder.classifier', closed)"


@pytest.mark.parametrize(("height", "width"), [(16, 24), (17, 10), (2, 3)])
def test_tap_pools_to_a_stride(height, width):
    model = nn.Sequential(nn.Identity())
    tap = FeatureTap(model, "0", feature_stride=4)
    x = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    model(x)
    pooled = tap.pop()
    expected = torch.stack(
        [
            torch.stack([x[..., i : i + 4, j : j + 4].mean((-2, -1)) for j in range(0, width, 4)])
            for i in range(0, height, 4)
        ]
    )
    torch.testing.assert_close(pooled, expected.permute(2, 3, 0, 1))
    pooled.sum().backward()
    assert (x.grad > 0).all()


def test_tap_pools_to_a_size():
    model = nn.Sequential(nn.Identity())
    tap = FeatureTap(model, "0", pool_to=(2, 3))
    x = torch.randn(1, 2, 4, 9)
    model(x)
    torch.testing.assert_close(tap.pop(), x.unflatten(2, (2, 2)).unflatten(4, (3, 3)).mean((3, 5)))
    model(torch.randn(4, 9))
    with pytest.raises(
        ValueError,
        match=r"FeatureTap.pop: .*\[B, D, \*S\] with 2 spatial dimensions .* got \[4, 9\] at '0'",
    ):
        tap.pop()


def test_tap_names_what_is_near():
    model = Segmenter()
    with pytest.raises(ValueError, match=r"got 'classifier'; similar names: 'decoder.classifier'"):
        FeatureTap(model, "classifier")
    with pytest.raises(ValueError, match=r"inside Segmenter, got 'decodr.norm'.*'decoder.norm'"):
        FeatureTap(model, "decodr.norm")
    with pytest.raises(ValueError, match=r"similar names: 'backbone', 'decoder'"):
        FeatureTap(model, "xyzzy")
    with pytest.raises(ValueError, match=r"got ''; similar names: 'backbone', 'decoder'"):
        FeatureTap(model, "")
    with pytest.raises(ValueError, match=r"got 'decoder.forward'"):
        FeatureTap(model, "decoder.forward")
    with pytest.raises(ValueError, match="similar names: none"):
        FeatureTap(nn.Identity(), "head")


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("net", "0"), {}, TypeError, "model must be a Module, got str"),
        (
            (nn.DataParallel(nn.Sequential(nn.Identity())), "module.0"),
            {},
            TypeError,
            "DataParallel",
        ),
        ((nn.Sequential(nn.Identity()), 0), {}, TypeError, "module_path must be a string, got int"),
        (
            (nn.Identity(), ""),
            {"feature_stride": 0},
            ValueError,
            "stride must be a positive integer, got 0",
        ),
        (
            (nn.Identity(), ""),
            {"feature_stride": 2.0},
            TypeError,
            "stride must be an integer, got 2.0",
        ),
        ((nn.Identity(), ""), {"pool_to": ()}, ValueError, r"one to three sizes, .* got \(\)"),
        (
            (nn.Identity(), ""),
            {"pool_to": (2, 0)},
            ValueError,
            "pool_to must be a positive integer, got 0",
        ),
        (
            (nn.Identity(), ""),
            {"pool_to": (2, 2), "feature_stride": 2},
            ValueError,
            "mutually exclusive",
        ),
    ],
)
def test_tap_errors(arguments, options, error, message):
    with pytest.raises(error, match=f"FeatureTap: .*{message}"):
        FeatureTap(*arguments, **options)


def test_tap_needs_a_tensor():
    class Decoder(nn.Module):
        def forward(self, maps):
            return maps[-1]

    model = nn.Sequential(Decoder())
    tap = FeatureTap(model, "0")
    with pytest.raises(TypeError, match="first input of '0' must be a tensor, got list"):
        model([torch.zeros(1)])
    with pytest.raises(RuntimeError, match="nothing was captured"):
        tap.pop()
