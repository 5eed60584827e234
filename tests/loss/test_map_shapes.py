"""Maps with any number of spatial dimensions, subclasses of tensors, and labels as loaders return them."""

import numpy as np
import pytest
import torch

import dgcl_ops
from dgcl_ops import viz
from dgcl_ops.doctor.cases.tensors import VOLUMES

C, D = 3, 6
SPATIAL = [(1, 8, 8), (64,), (4, 2, 8), (2, 4, 2, 4), (1, 1, 64), (2, 2, 2, 2, 2, 2)]


class Subclass(torch.Tensor):
    """Like MONAI's MetaTensor and fastai's TensorImage: results of operations have the class, too."""


class Strict(torch.Tensor):
    """Refuses to be indexed, as MONAI's batches do with some indices."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        if function in (torch.Tensor.__getitem__, torch.Tensor.index_select):
            raise ValueError("metadata cannot be indexed")
        return super().__torch_function__(function, types, arguments, options or {})


def loss_of(**changes):
    small = {"bank_capacity": 64, "rows_per_push": 32, "scales": (2, 4), "num_anchors": 8}
    return dgcl_ops.DensityContrastLoss(
        C, D, num_keys=4, num_negatives=16, seed=0, **small | changes
    )


def batch():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, D, 8, 8, generator=generator)
    return maps, torch.randint(C, (2, 8, 8), generator=generator)


def run(maps, labels, features=None, confidence=None, **changes):
    """Losses, gradients [2, D, 64], and the bank after three steps."""
    loss, bits = loss_of(**changes), []
    for _ in range(3):
        leaf = maps.detach().requires_grad_()
        value = loss(leaf, labels, features, confidence)
        value.backward()
        assert type(value) is torch.Tensor
        gradient = leaf.grad.as_subclass(torch.Tensor)
        bits += [value.detach(), gradient.flatten(2) if gradient.dim() > 2 else gradient]
    return [*bits, loss.bank.features, loss.bank.density]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("keys", ["high_density", "average", "high_confidence"])
def test_every_shape_has_the_bits_of_2d_maps(keys):
    maps, labels = batch()
    scores = torch.rand(2, 8, 8)
    expected = run(maps, labels, maps + 1, scores, keys=keys)
    assert expected[-4] > 0 or expected[-6].any()
    for shape in SPATIAL:
        volume, classes = maps.view(2, D, *shape), labels.view(2, *shape)
        confidence = scores.view(2, *shape)
        assert same(run(volume, classes, volume + 1, confidence, keys=keys), expected)
        given = classes[:, None], volume + 1, confidence[:, None]
        assert same(run(volume, *given, keys=keys), expected)


def test_flat_rows_have_the_bits_of_their_map():
    maps, labels = batch()
    rows = maps.flatten(2).mT.flatten(0, 1)
    expected = run(maps, labels)
    for classes in (labels.flatten(), labels.flatten()[:, None]):
        got = run(rows, classes)
        got[1:6:2] = [gradient.view(2, 64, D).mT for gradient in got[1:6:2]]
        assert same(got, expected)


@pytest.mark.parametrize("name", VOLUMES)
def test_layouts(name):
    """The same numbers with other strides give the same bits."""
    size, turn = VOLUMES[name]
    maps = torch.randn(2, D, *size[2:])
    labels = torch.randint(C, (2, *size[2:]))
    assert same(run(turn(maps), labels), run(maps, labels))


def copied(call, shape):
    """Whether a call copies a tensor of that shape."""
    with torch.profiler.profile(record_shapes=True) as profile:
        call()
    events = profile.key_averages(group_by_input_shape=True)
    return any(e.key in ("aten::clone", "aten::copy_") and shape in e.input_shapes for e in events)


def test_tokens_are_read_in_place():
    tokens = torch.randn(2, 64, D)
    labels = torch.randint(C, (2, 64))
    maps = tokens.transpose(1, 2)
    assert maps.data_ptr() == tokens.data_ptr()
    assert same(run(maps, labels), run(maps.contiguous(), labels))
    loss = loss_of()
    assert not copied(lambda: loss(maps, labels), [2, D, 64])
    assert copied(maps.contiguous, [2, D, 64])


def test_a_push_takes_the_same_shapes():
    maps, labels = batch()
    banks = []
    for shape in ((8, 8), *SPATIAL):
        for classes in (labels.view(2, *shape), labels.view(2, 1, *shape)):
            bank = loss_of().bank
            volume = maps.view(2, D, *shape).as_subclass(Subclass)
            bank.push(volume, volume + 1, classes.as_subclass(Subclass))
            banks.append(bank)
    assert len({int(bank.checksum()) for bank in banks}) == 1
    assert all(type(bank.features) is torch.Tensor for bank in banks)


@pytest.mark.parametrize("kind", [Subclass, Strict])
def test_subclasses_are_plain_tensors_to_the_loss(kind):
    maps, labels = batch()
    expected = run(maps, labels)
    assert same(run(maps.as_subclass(kind), labels.as_subclass(kind)), expected)
    assert same(run(maps, labels.as_subclass(kind)), expected)
    assert same(run(maps.as_subclass(kind), labels, maps.as_subclass(kind)), expected)


def test_a_subclass_in_the_graph_receives_its_gradient():
    maps, labels = batch()
    loss, network = loss_of(), torch.nn.Conv2d(D, D, 1)
    for _ in range(2):
        network.zero_grad()
        loss(network(maps.as_subclass(Subclass)), labels).backward()
    assert network.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_projection_heads_of_any_dimension(dims):
    head = dgcl_ops.ProjectionHead(6, 5, 4)
    maps = torch.randn(2, 6, *(3, 4, 2, 3)[:dims])
    flat = maps.flatten(2)[..., None]
    head.eval()
    got = head(maps.as_subclass(Subclass))
    assert type(got) is torch.Tensor
    assert got.shape == (2, 4, *maps.shape[2:])
    torch.testing.assert_close(got.flatten(2)[..., None], head(flat))
    last = maps.movedim(1, -1).contiguous().movedim(-1, 1)
    torch.testing.assert_close(head(last), got)


def test_a_projection_head_has_the_bits_of_2d_maps():
    maps = torch.randn(2, 6, 5, 7)
    for shape in ((1, 5, 7), (1, 1, 5, 7)):
        heads = [dgcl_ops.ProjectionHead(6, 5, 4) for _ in range(2)]
        heads[1].load_state_dict(heads[0].state_dict())
        assert torch.equal(heads[0](maps), heads[1](maps.view(2, 6, *shape)).view(2, 4, 5, 7))
        state = heads[1].state_dict()
        assert all(torch.equal(value, state[key]) for key, value in heads[0].state_dict().items())


def test_a_head_of_the_loss_takes_volumes():
    features, labels = torch.randn(2, D, 2, 4, 8), torch.randint(C, (2, 1, 2, 4, 8))
    head = dgcl_ops.ProjectionHead(D, 8, 4)
    loss = loss_of(projection_dim=4)
    for _ in range(3):
        value = loss(head, labels, features.as_subclass(Subclass))
    value.backward()
    assert value > 0
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


class Picture:
    """Like a PIL image."""

    __array_interface__ = np.zeros((8, 8), np.uint8).__array_interface__


ONE_HOT = torch.nn.functional.one_hot(torch.randint(C, (2, 8, 8)), C)
KINDS = {
    "NumPy": (np.zeros((2, 8, 8), int), TypeError, r"got ndarray; use torch\.from_numpy\(labels\)"),
    "list": ([[0]], TypeError, r"got list; use torch\.tensor\(labels\)"),
    "tensors": ([torch.zeros(8, 8)], TypeError, r"got list; use torch\.stack\(labels\)"),
    "picture": (Picture(), TypeError, r"use torch\.from_numpy\(numpy\.array\(labels\)\)"),
    "None": (None, TypeError, r"labels must be an integer tensor, got NoneType$"),
    "float": (torch.zeros(2, 8, 8), TypeError, r"got torch\.float32; use labels\.long\(\)"),
    "float one-hot": (ONE_HOT.movedim(-1, 1).float(), TypeError, r"labels\.argmax\(1\) for one-hot"),
    "bool": (torch.zeros(2, 8, 8, dtype=torch.bool), TypeError, r"got torch\.bool; use labels\.long"),
    "one-hot": (ONE_HOT.movedim(-1, 1), ValueError, r"got \[2, 3, 8, 8\]; for one-hot labels use labels\.argmax\(1\)"),
    "one-hot, last": (ONE_HOT, ValueError, r"got \[2, 8, 8, 3\]; for one-hot labels use labels\.argmax\(-1\)"),
    "channel last": (ONE_HOT[..., :1], ValueError, r"got \[2, 8, 8, 1\]; use labels\.squeeze\(-1\)"),
    "flat": (torch.zeros(128).long(), ValueError, r"must have shape \[2, 8, 8\].*got \[128\]$"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_another_kind_are_errors_that_name_the_fix(kind):
    labels, error, message = KINDS[kind]
    maps = torch.randn(2, D, 8, 8)
    bank = loss_of().bank
    calls = {
        "DensityContrastLoss": lambda: loss_of()(maps, labels),
        "MemoryBank.push": lambda: bank.push(maps, maps, labels),
        "PseudoLabelLoss": lambda: dgcl_ops.PseudoLabelLoss()(maps, labels),
        "viz.density_map": lambda: viz.density_map(bank, maps, labels, (8, 8)),
    }
    for name, call in calls.items():
        with pytest.raises(error, match=f"^{name}: .*{message}"):
            call()
    assert int(bank.num_pushes) == 0


def test_other_mistakes_name_the_fix():
    maps, labels = batch()
    one, rows = maps[:1], maps.movedim(1, -1).flatten(0, 2)
    loss = loss_of()
    for given, message in (
        ((one, labels[0]), r"got \[8, 8\]; use labels\.unsqueeze\(0\)"),
        ((rows, labels), r"\[128\].*got \[2, 8, 8\]; use labels\.flatten\(\)"),
        ((maps, labels[:, ::2, ::2]), r"use dgcl_ops\.resize_labels"),
        ((maps, labels[:, None, ::2, ::2]), r"use dgcl_ops\.resize_labels"),
        ((maps.movedim(1, -1), labels), r"use projections\.movedim\(-1, 1\)"),
        ((maps.flatten(2).mT, labels.flatten(1)), r"use projections\.movedim\(-1, 1\)"),
        ((maps.view(2, D, 8, 1, 2, 1, 2, 1, 2), labels), r"\*S\] with 1 to 6 spatial dimensions"),
    ):
        with pytest.raises(ValueError, match=f"^DensityContrastLoss: .*{message}"):
            loss(*given)
    with pytest.raises(TypeError, match=r"features must be a torch\.Tensor, got ndarray"):
        loss(maps, labels, maps.numpy())
    with pytest.raises(TypeError, match=r"confidence must be a torch\.Tensor, got list"):
        loss_of(keys="high_confidence")(maps, labels, None, [1.0])
