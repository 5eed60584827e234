"""The projection head on features of another dtype than its weights, with and without autocast."""

import pytest
import torch

from dgcl_ops import DensityContrastLoss, ProjectionHead


def head_of(dtype=torch.float32) -> ProjectionHead:
    torch.manual_seed(0)
    return ProjectionHead(8, 6, 8).to(dtype)


@pytest.mark.parametrize("shape", [(2, 8, 3, 4), (20, 8)], ids=["map", "rows"])
@pytest.mark.parametrize("weights", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_features_are_cast_to_the_weights(dtype, weights, shape):
    features = torch.randn(shape).to(dtype).requires_grad_()
    used = torch.rand(20) < 0.7
    for arguments in [()] if len(shape) == 4 else [(), (used,)]:
        projections = head_of(weights)(features, *arguments)
        assert projections.dtype == weights
        assert torch.equal(projections, head_of(weights)(features.to(weights), *arguments))
    (gradient,) = torch.autograd.grad(projections.square().sum(), features)
    assert gradient.dtype == dtype
    assert gradient.any()


def test_autocast_decides_where_it_is_on():
    features = torch.randn(2, 8, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        projections = head_of()(features)
        assert torch.equal(projections, head_of().layers(features))
    assert projections.dtype == torch.bfloat16


def test_the_network_alone_under_autocast():
    """The chosen rows and the whole map, from bfloat16 features."""
    network, images = torch.nn.Conv2d(3, 8, 1), torch.randn(2, 3, 16, 16)
    labels = torch.randint(4, (2, 16, 16))
    for call in (lambda head, _: head, lambda head, features: head(features)):
        with torch.autocast("cpu", torch.bfloat16):
            features = network(images)
        contrast = DensityContrastLoss(4, 8, bank_capacity=64, rows_per_push=32, seed=0)
        head = head_of()
        for _ in range(2):
            loss = contrast(call(head, features), labels, features)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss > 0
        assert head.layers[0].weight.grad.any()


def test_whole_numbers_are_refused():
    with pytest.raises(TypeError, match=r"features must have a float dtype, got torch\.int64"):
        head_of()(torch.ones(2, 8, 3, 4, dtype=torch.long))


def test_a_compiled_head():
    head = head_of().eval()
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    features = torch.randn(2, 8, 3, 4).bfloat16()
    assert torch.equal(compiled(features), head(features))
