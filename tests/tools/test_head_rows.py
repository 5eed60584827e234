"""The projection head on rows [M, D], with and without padding."""

import copy

import pytest
import torch
from torch import nn

from dgcl_ops import ProjectionHead

M, D, E = 40, 5, 3


def head_of(dtype=torch.float64, momentum=0.1) -> ProjectionHead:
    torch.manual_seed(0)
    head = ProjectionHead(D, 7, E).to(dtype)
    norm = head.layers[1]
    norm.momentum = momentum
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return head


def plain(head: ProjectionHead) -> nn.Sequential:
    """The same network of PyTorch's layers for rows."""
    first, norm, _, last = head.layers
    layers = nn.Sequential(
        nn.Linear(D, 7, bias=False), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, E)
    ).to(first.weight.dtype)
    with torch.no_grad():
        layers[0].weight.copy_(first.weight[..., 0, 0])
        layers[3].weight.copy_(last.weight[..., 0, 0])
        layers[3].bias.copy_(last.bias)
    layers[1].load_state_dict(norm.state_dict())
    layers[1].momentum = norm.momentum
    return layers.train(head.training)


def rows_of(seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(M, D, generator=generator, dtype=dtype)
    used = torch.rand(M, generator=generator) < 0.6
    return rows, used


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_used_rows_are_those_of_pytorch(training, momentum):
    """Values, gradients and statistics over three steps. What padding holds has no effect."""
    head = head_of(momentum=momentum).train(training)
    expected = plain(head)
    for seed in range(3):
        rows, used = rows_of(seed)
        rows[~used] *= 1e3
        rows.requires_grad_()
        chosen = rows[used].detach().requires_grad_()
        got, wanted = head(rows, used)[used], expected(chosen)
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
        weights = torch.randn(wanted.shape, dtype=wanted.dtype)
        got_gradients = torch.autograd.grad((got * weights).sum(), [rows, *head.parameters()])
        wanted_gradients = torch.autograd.grad(
            (wanted * weights).sum(), [chosen, *expected.parameters()]
        )
        assert not got_gradients[0][~used].any()
        for mine, theirs in zip(
            (got_gradients[0][used], *got_gradients[1:]), wanted_gradients, strict=True
        ):
            torch.testing.assert_close(mine.view_as(theirs), theirs, rtol=1e-10, atol=1e-12)
        for name, theirs in expected[1].named_buffers():
            mine = head.layers[1].get_buffer(name)
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
    assert head.layers[1].num_batches_tracked == (3 if training else 0)


def test_gradcheck():
    head = head_of()
    rows, used = rows_of()
    rows = rows[:9].clone().requires_grad_()

    def run(rows, *parameters):
        names = [name for name, _ in head.named_parameters()]
        values = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(head, values, (rows, used[:9]))[used[:9]]

    assert 1 < used[:9].sum() < 9
    assert torch.autograd.gradcheck(run, (rows, *head.parameters()))


def test_rows_are_the_pixels_of_a_map():
    head = head_of()
    maps = torch.randn(2, D, 3, 4, dtype=torch.float64)
    rows = maps.permute(0, 2, 3, 1).flatten(0, 2)
    expected = copy.deepcopy(head)(maps).permute(0, 2, 3, 1).flatten(0, 2)
    for arguments in ((rows,), (rows, torch.ones(24, dtype=torch.bool))):
        each = copy.deepcopy(head)
        torch.testing.assert_close(each(*arguments), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("number", [0, 1])
def test_few_used_rows(number):
    """None leave the statistics as they are. One has variance 0."""
    head = head_of()
    head(rows_of()[0])
    norm = head.layers[1]
    before = {name: part.clone() for name, part in norm.named_buffers()}
    rows, _ = rows_of(2)
    rows.requires_grad_()
    used = torch.arange(M) < number
    projections = head(rows, used)
    assert projections.isfinite().all()
    gradients = torch.autograd.grad(projections[used].sum(), [rows, *head.parameters()])
    assert all(each.isfinite().all() for each in gradients)
    if number == 0:
        assert not any(each.any() for each in gradients)
        for name, part in norm.named_buffers():
            assert torch.equal(part, before[name]), name
    else:
        assert norm.num_batches_tracked == 2
        torch.testing.assert_close(norm.running_var, 0.9 * before["running_var"])


def test_half_precision_statistics_are_those_of_float32():
    head = head_of(torch.float32)
    rows, used = rows_of(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        projections = head(rows, used)
        hidden = head.layers[0](rows[used][:, :, None, None])[..., 0, 0]
    assert projections.dtype == torch.bfloat16
    assert head.layers[1].running_mean.dtype == torch.float32
    torch.testing.assert_close(head.layers[1].running_mean, 0.1 * hidden.float().mean(0))


def test_hooks_and_replaced_layers_are_called():
    head = head_of()
    seen = []
    for layer in (head.layers[0], head.layers[2], head.layers[3]):
        layer.register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    head(*rows_of())
    assert seen == ["Conv2d", "ReLU", "Conv2d"]


def test_other_norms_are_refused_only_with_padding():
    head = nn.SyncBatchNorm.convert_sync_batchnorm(head_of()).eval()
    rows, used = rows_of()
    assert head(rows).shape == (M, E)
    with pytest.raises(
        TypeError,
        match=r"ProjectionHead: used is supported with BatchNorm2d only, got SyncBatchNorm; .*head\(features\)",
    ):
        head(rows, used)


@pytest.mark.parametrize(
    ("features", "used"),
    [
        (torch.zeros(4, D), torch.ones(3, dtype=torch.bool)),
        (torch.zeros(4, D), torch.ones(4)),
        (torch.zeros(1, D, 2, 2), torch.ones(4, dtype=torch.bool)),
    ],
)
def test_used_errors(features, used):
    with pytest.raises(ValueError, match=r"ProjectionHead: used must have shape \[M\] .*, got "):
        ProjectionHead(D, 4, E)(features, used)
