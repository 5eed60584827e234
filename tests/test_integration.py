"""dgcl_ops.integration: the feature tap, the projection head, and the rule for DDP's buffers."""

import copy
import gc
import io
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dgcl_ops.integration import FeatureTap, ProjectionHead, ddp_ignore_bank
from dgcl_ops.memory import MemoryBank


class Segmenter(nn.Module):
    """Backbone, then a decoder whose last convolution is the classifier."""

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


# --------------------------------------------------------------------------------- FeatureTap


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
        ValueError, match=r"FeatureTap.pop: .*\[B, D, H, W\] .* got \[4, 9\] at '0'"
    ):
        tap.pop()


def test_tap_names_what_is_near():
    model = Segmenter()
    with pytest.raises(ValueError, match=r"got 'classifier'; near names: 'decoder.classifier'"):
        FeatureTap(model, "classifier")
    with pytest.raises(ValueError, match=r"inside Segmenter, got 'decodr.norm'.*'decoder.norm'"):
        FeatureTap(model, "decodr.norm")
    with pytest.raises(ValueError, match=r"near names: 'backbone', 'decoder'"):
        FeatureTap(model, "xyzzy")
    with pytest.raises(ValueError, match=r"got ''; near names: 'backbone', 'decoder'"):
        FeatureTap(model, "")
    with pytest.raises(ValueError, match=r"got 'decoder.forward'"):
        FeatureTap(model, "decoder.forward")
    with pytest.raises(ValueError, match="near names: none"):
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
        ((nn.Identity(), ""), {"feature_stride": 0}, ValueError, "stride must be positive, got 0"),
        ((nn.Identity(), ""), {"feature_stride": 2.0}, TypeError, "stride must be an int, got 2.0"),
        ((nn.Identity(), ""), {"pool_to": (2,)}, ValueError, r"pair \(h, w\), got \(2,\)"),
        ((nn.Identity(), ""), {"pool_to": (2, 0)}, ValueError, "pool_to must be positive, got 0"),
        ((nn.Identity(), ""), {"pool_to": (2, 2), "feature_stride": 2}, ValueError, "exclude each"),
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


# ----------------------------------------------------------------------------- ProjectionHead


def test_head_is_the_per_pixel_network():
    torch.manual_seed(0)
    head = ProjectionHead(5, 7, 3)
    x = torch.randn(2, 5, 4, 6)
    got = head(x)
    assert got.shape == (2, 3, 4, 6)
    first, norm, _, last = head.layers
    pixels = x.permute(0, 2, 3, 1).reshape(-1, 5)
    hidden = pixels @ first.weight[..., 0, 0].T
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + norm.eps).sqrt()
    rows = hidden.relu() @ last.weight[..., 0, 0].T + last.bias
    expected = rows.view(2, 4, 6, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_head_defaults_and_gradients():
    head = ProjectionHead(8)
    assert head.layers[0].weight.shape == (256, 8, 1, 1)
    x = torch.randn(1, 8, 3, 3, requires_grad=True)
    out = head(x)
    assert out.shape == (1, 256, 3, 3)
    out.square().mean().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_head_compiles():
    head = ProjectionHead(4, 6, 2).eval()
    x = torch.randn(2, 4, 3, 3)
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), head(x))


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 5, 4), (2, 4, 3, 3)])
def test_head_shape_errors(shape):
    with pytest.raises(ValueError, match=r"ProjectionHead: .*\[B, 5, H, W\], got \["):
        ProjectionHead(5, 4, 3)(torch.zeros(shape))


def test_head_argument_errors():
    with pytest.raises(ValueError, match="ProjectionHead: in_channels must be positive, got 0"):
        ProjectionHead(0)
    with pytest.raises(TypeError, match=r"ProjectionHead: out_channels must be an int, got 2\.5"):
        ProjectionHead(1, out_channels=2.5)


# ---------------------------------------------------------------------------- ddp_ignore_bank


class WithBank(nn.Module):
    """A trainable model that holds a bank two levels down, and a buffer that is no bank's."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("running", torch.zeros(2))
        self.contrast = nn.Module()
        self.contrast.bank = MemoryBank(3, 4, capacity=6)

    def forward(self, x):
        return self.layer(x)


def test_ignore_names_every_bank_buffer_and_nothing_else():
    root = nn.Sequential(WithBank(), WithBank())
    root._ddp_params_and_buffers_to_ignore = ["0.running"]
    names = ddp_ignore_bank(root)
    expected = [n for n, _ in root.named_buffers() if ".contrast.bank." in n]
    assert sorted(names) == sorted(expected)
    assert len(names) >= 2 * 5
    assert root._ddp_params_and_buffers_to_ignore == ["0.running", *names]
    assert ddp_ignore_bank(root) == names  # calling again changes nothing
    assert len(root._ddp_params_and_buffers_to_ignore) == 1 + len(names)
    assert all(getattr(root.get_buffer(name), "_ddp_ignored", False) for name in names)
    assert not hasattr(root.get_buffer("0.running"), "_ddp_ignored")


def test_ignore_knows_a_shared_bank_by_all_its_names():
    root = WithBank()
    root.alias = root.contrast.bank
    names = ddp_ignore_bank(root)
    assert {"alias.features", "contrast.bank.features"} <= set(names)
    assert "features" in ddp_ignore_bank(root.contrast.bank)


def test_ignore_without_a_bank_and_with_a_wrong_root():
    plain = nn.Linear(2, 2)
    assert ddp_ignore_bank(plain) == []
    assert plain._ddp_params_and_buffers_to_ignore == []
    with pytest.raises(TypeError, match="ddp_ignore_bank: root must be a Module, got dict"):
        ddp_ignore_bank({})


def _two_ranks(rank, folder):
    """On each rank: fill the bank with rank + 1, run one DDP forward, keep what is there then."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    torch.save(
        {told: _one_forward(rank, told) for told in (False, True)}, f"{folder}/rank{rank}.pt"
    )
    # DDP's modules lie in reference cycles and hold the group, whose threads must not outlive the interpreter.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def _one_forward(rank, told):
    root = WithBank()
    names = ddp_ignore_bank(root) if told else []
    wrapped = DistributedDataParallel(root)
    bank = root.contrast.bank
    for buffer in bank.buffers():
        buffer.fill_(rank + 1)
    root.running.fill_(rank + 1)
    wrapped(torch.randn(5, 4)).sum().backward()
    with pytest.raises(TypeError, match="must be the module before it is wrapped"):
        ddp_ignore_bank(wrapped)
    return {
        "bank": {name: buffer.double().unique().tolist() for name, buffer in bank.named_buffers()},
        "running": root.running.tolist(),
        "gradient": root.layer.weight.grad.clone(),
        "names": names,
    }


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_ddp_overwrites_the_bank_of_rank_1_unless_told_not_to(tmp_path):
    mp.spawn(_two_ranks, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert all(values == [1.0] for values in second[False]["bank"].values())  # rank 0's, lost
    assert all(values == [2.0] for values in second[True]["bank"].values())  # its own
    assert all(values == [1.0] for values in first[True]["bank"].values())
    assert second[True]["names"] == first[True]["names"] != []
    for told in (False, True):  # other buffers and the gradients are synchronised as before
        assert second[told]["running"] == [1.0, 1.0]
        torch.testing.assert_close(first[told]["gradient"], second[told]["gradient"])
