"""The projection head, and ddp_ignore_bank."""

import pytest
import torch
import torch.distributed as dist
from processes import on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dgcl_ops import ProjectionHead, ddp_ignore_bank
from dgcl_ops.memory import PLACEMENTS, MemoryBank

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


@pytest.mark.parametrize("shape", [(5,), (4, 6), (0, 5), (2, 4, 3), (2, 4, 3, 3)])
def test_head_shape_errors(shape):
    with pytest.raises(ValueError, match=r"ProjectionHead: .*\[B, 5, \*S\], got \["):
        ProjectionHead(5, 4, 3)(torch.zeros(shape))


def test_head_argument_errors():
    with pytest.raises(
        ValueError, match="ProjectionHead: in_channels must be a positive integer, got 0"
    ):
        ProjectionHead(0)
    with pytest.raises(
        TypeError, match=r"ProjectionHead: out_channels must be an integer, got 2\.5"
    ):
        ProjectionHead(1, out_channels=2.5)


# ---------------------------------------------------------------------------- ddp_ignore_bank


class WithBank(nn.Module):
    """A trainable model with a bank two levels down, and a buffer outside the bank."""

    def __init__(self, placement="replicated"):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("running", torch.zeros(2))
        self.contrast = nn.Module()
        self.contrast.bank = MemoryBank(3, 4, capacity=6, placement=placement)

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


def _one_forward(rank, placement, ignored):
    """Fills the bank with this rank's rows, and runs a batch in DDP. Returns the bank, and whether a push works."""
    root = WithBank(placement)
    names = ddp_ignore_bank(root) if ignored else []
    bank = root.contrast.bank
    push = {
        "features": rows_of(rank),
        "projections": rows_of(rank),
        "labels": torch.arange(3).repeat(3),
    }
    bank.push(**push)
    before = {name: buffer.clone() for name, buffer in bank.named_buffers()}
    wrapped = DistributedDataParallel(root)
    root.running.fill_(rank + 1)
    wrapped(torch.randn(5, 4)).sum().backward()
    with pytest.raises(TypeError, match="root is already wrapped in DistributedDataParallel"):
        ddp_ignore_bank(wrapped)
    after = {name: buffer.clone() for name, buffer in bank.named_buffers()}
    error = ""
    try:
        bank.push(**push)
    except RuntimeError as raised:
        error = str(raised)
    return {
        "before": before,
        "after": after,
        "error": error,
        "running": root.running.tolist(),
        "gradient": root.layer.weight.grad.clone(),
        "names": names,
    }


def rows_of(rank):
    """Three of each class, so that two ranks fill the rings."""
    return (torch.eye(3, 4) + rank).repeat(3, 1)


def _two_ranks(rank, folder):
    return {
        placement: {ignored: _one_forward(rank, placement, ignored) for ignored in (False, True)}
        for placement in PLACEMENTS
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("needs gloo")
    return on_ranks(2, tmp_path_factory.mktemp("ddp"), _two_ranks)


def same(ours, theirs):
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_ddp_leaves_an_ignored_bank_alone(ranks, placement):
    first, second = (each[placement][True] for each in ranks)
    for each in (first, second):
        assert same(each["before"], each["after"])
        assert not each["error"]
        assert each["before"]["features"].any()
    assert second["names"] == first["names"] != []


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_ddp_overwrites_a_bank_that_is_not_ignored(ranks, placement):
    first, second = (each[placement][False] for each in ranks)
    assert same(first["after"], second["after"])
    assert same(first["before"], first["after"])
    assert same(second["before"], second["after"]) == (placement == "replicated")
    for each in (first, second):  # the same bits; lost shards, and an error; lost rows
        assert ("shard was overwritten by another rank" in each["error"]) == (
            placement == "sharded"
        )
        assert bool(each["error"]) == (placement == "sharded")


def test_ddp_synchronises_the_rest_as_before(ranks):
    for placement in PLACEMENTS:
        for ignored in (False, True):
            first, second = (each[placement][ignored] for each in ranks)
            assert second["running"] == [1.0, 1.0]
            torch.testing.assert_close(first["gradient"], second["gradient"])
