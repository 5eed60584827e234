"""A step never syncs: checks every dispatched operation in forward, backward and push.

The same operations sync on all devices: reading an element, a result with a size that depends on values, a copy to
another device. On the CPU they cost nothing and go unnoticed, so the dispatcher detects them here.
"""

import pytest
import torch
from loss_oracle import STRATEGIES, B, C, D, E, H, W, batch_of, draw_of, filled, loss_of
from recorded import pretend_graphs
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dgcl_ops.doctor.step import captured
from dgcl_ops.memory import MemoryBank
from dgcl_ops.pseudo_label_loss import PseudoLabelLoss

# The host reads their results, or the sizes of their results.
WAITING = {
    "_local_scalar_dense",
    "allclose",
    "argwhere",
    "bincount",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "nonzero_numpy",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
    "_unique",
    "_unique2",
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class Watch(TorchDispatchMode):
    """Records each operation, and raises on those that sync."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        self.seen.append(str(function))
        if name in WAITING:
            raise AssertionError(f"{function} syncs")
        if name in INDEXING and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            raise AssertionError(f"{function} with a mask syncs")
        result = function(*args, **kwargs)
        devices = {
            tensor.device
            for tensor in torch.utils._pytree.tree_leaves((args, kwargs, result))
            if isinstance(tensor, torch.Tensor)
        }
        if len(devices) > 1:
            raise AssertionError(f"{function} copies between {devices}")
        return result


def watched_step(module, batch) -> list[str]:
    batch = dict(batch)
    projections = batch.pop("projections").detach().clone().requires_grad_()
    with Watch() as watch:
        module(projections, **batch).backward()
        module.bank.push(batch["features"], projections, batch["labels"])
        module.bank.checksum()
        module.diagnostics()
    return watch.seen


SETTINGS = [{"anchors": anchors, "keys": keys} for anchors, keys in STRATEGIES] + [
    {"disjoint": True, "normalize_keys": True},
    {"keys": "average", "normalize_keys": True},
    {"refresh_every": 2, "grad_scale": 0.5, "exclude_classes": (0,)},
    {"start": "all_full", "backfill": False, "eps": 1e-6},
    {"metric": "l2"},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_no_step_waits(setting):
    module = loss_of(**setting)
    traces = [
        watched_step(module, batch)
        for batch in (
            batch_of(seed=0),  # nothing ready
            *(batch_of(seed=seed, counts=(14, 14, 14, 14, 14)) for seed in (1, 2, 3)),
            batch_of(seed=4),
            batch_of(seed=5, counts=(0, 0, 0, 0, 0)),  # nothing labelled
        )
    ]
    for name in (
        *("knn_density", "density_contrast", "density_contrast_backward", "memory_push"),
        *("gather_rows", "gather_rows_backward"),
    ):
        assert any(f"dgcl_ops.{name}.default" in seen for seen in traces[0]), name
    # The contents of a batch decide nothing on the host, so operations are always the same, in the same order.
    assert all(trace == traces[0] for trace in traces)


@pytest.mark.parametrize("training", [True, False])
def test_no_evaluation_and_no_half_precision_step_waits(training):
    module = filled(loss_of()).train(training)
    batch = batch_of(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        watched_step(module, batch)


def fake_step(setting, device):
    """A step on tensors without values, where reading one in any way raises an error."""
    with FakeTensorMode():
        module = loss_of(device=device, **setting)
        labels = torch.zeros(B, H, W, dtype=torch.uint8, device=device)
        projections = torch.zeros(B, E, H, W, device=device, requires_grad=True)
        features = torch.zeros(B, D, H, W, device=device)
        module(projections, labels, features, torch.zeros(B, H, W, device=device)).backward()
        module.bank.push(features, projections, labels)
        module.bank.checksum()
        assert projections.grad.shape == projections.shape
        return [tensor.device.type for tensor in module.diagnostics().values()]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_no_step_needs_values(setting, device):
    assert set(fake_step(setting, device)) == {device}


def test_values_are_missed_where_they_are_needed(monkeypatch):
    # tolist() bypasses the dispatcher, but fails without values.
    ready = MemoryBank.ready
    monkeypatch.setattr(MemoryBank, "ready", lambda bank: (ready(bank).tolist(), ready(bank))[1])
    with pytest.raises(DataDependentOutputException):
        fake_step({}, "cpu")


def test_pseudo_label_loss_does_not_wait():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    with Watch() as watch:
        PseudoLabelLoss()(logits, torch.randint(0, 3, (2, 4, 4))).backward()
    assert len(watch.seen) > 5


# ---- planted faults ---------------------------------------------------------------------------------

MASK = torch.tensor([True, False, True])
FAULTS = {
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool(x.any()),
    "python branch": lambda x: 1 if x[0] > 0 else 0,
    "float": lambda x: float(x[0]),
    "mask": lambda x: x[MASK],
    "mask assignment": lambda x: x.index_put_((MASK,), torch.ones(2)),
    "nonzero": lambda x: x.nonzero(),
    "where with one argument": lambda x: torch.where(x > 0),
    "unique": lambda x: x.unique(),
    "masked_select": lambda x: x.masked_select(MASK),
    "bincount": lambda x: x.long().abs().bincount(),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.tensor([1, 2, 0])),
    "equal": lambda x: torch.equal(x, x + 1),
    "copy to another device": lambda x: x.to("meta"),
    "copy into another device": lambda x: torch.zeros(3, device="meta").copy_(x),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_watch_sees(fault):
    with pytest.raises(AssertionError, match=r"syncs|copies between"), Watch():
        FAULTS[fault](torch.randn(3))


def test_the_watch_sees_a_fault_inside_a_backward():
    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float(gradient.sum())

    x = torch.randn(3, requires_grad=True)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Watch():
        Slow.apply(x).sum().backward()


def test_the_watch_sees_a_fault_inside_the_loss(monkeypatch):
    ready = MemoryBank.ready
    monkeypatch.setattr(MemoryBank, "ready", lambda bank: ready(bank) & bool(ready(bank).any()))
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        watched_step(loss_of(), batch_of())


def test_shapes_alone_decide_the_sizes_of_all_tables():
    module = loss_of()
    shapes = []
    for counts in [(0, 0, 0, 0, 0), (70, 0, 0, 0, 0), (1, 2, 3, 4, 5)]:
        batch = batch_of(counts=counts)
        assert batch["projections"].shape == (B, E, H, W)
        assert batch["features"].shape == (B, D, H, W)
        chosen = draw_of(module, batch)
        tables = (chosen.anchors, chosen.keys, chosen.negatives, chosen.push.pixels)
        shapes.append([table.index.shape for table in tables] + [chosen.candidates.pixels.shape])
    assert shapes[0] == shapes[1] == shapes[2]
    assert shapes[0] == [(C, 6), (C, 3), (C, 9), (C, 6), (70,)]


# ---- CUDA ---------------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_cuda_build = pytest.mark.skipif(
    not torch.backends.cuda.is_built(),
    reason="needs a CUDA build of PyTorch, with or without a GPU",
)
FULL = (14, 14, 14, 14, 14)


@needs_cuda_build
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_no_tensor_of_a_step_on_cuda_is_left_on_the_host(setting):
    """Forward and push on tensors without values, where mixing devices is an error. Autograd would need a GPU."""
    with FakeTensorMode(), torch.no_grad():
        module = loss_of(device="cuda", **setting)
        labels = torch.zeros(B, H, W, dtype=torch.uint8, device="cuda")
        projections = torch.zeros(B, E, H, W, device="cuda")
        features = torch.zeros(B, D, H, W, device="cuda")
        value = module(projections, labels, features, torch.zeros(B, H, W, device="cuda"))
        module.bank.push(features, projections, labels)
        results = [value, module.bank.checksum(), *module.diagnostics().values()]
    assert {tensor.device.type for tensor in results} == {"cuda"}


def steps_on_cuda(module, batches) -> None:
    for batch in batches:
        projections = batch["projections"].clone().requires_grad_()
        module(**{**batch, "projections": projections}).backward()
        module.bank.push(batch["features"], projections, batch["labels"])
        module.bank.checksum()
        module.diagnostics()


@pytest.fixture
def cuda_that_refuses_to_wait():
    """A function that makes PyTorch raise an error at a sync, until the end of the test."""
    yield lambda: (torch.cuda.synchronize(), torch.cuda.set_sync_debug_mode("error"))
    torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_pytorch_sees_no_step_wait(setting, cuda_that_refuses_to_wait):
    module = loss_of(device="cuda", **setting)
    batches = [on_device(batch_of(seed=seed, counts=FULL), "cuda") for seed in range(4)]
    steps_on_cuda(module, batches)  # libraries set themselves up
    cuda_that_refuses_to_wait()
    steps_on_cuda(module, batches)


@needs_gpu
def test_pytorch_sees_a_step_that_waits(monkeypatch, cuda_that_refuses_to_wait):
    module = loss_of(device="cuda")
    batches = [on_device(batch_of(), "cuda")]
    steps_on_cuda(module, batches)
    ready = MemoryBank.ready
    monkeypatch.setattr(MemoryBank, "ready", lambda bank: ready(bank) & bool(ready(bank).any()))
    cuda_that_refuses_to_wait()
    with pytest.raises(RuntimeError, match="synchroniz"):
        steps_on_cuda(module, batches)


def on_device(batch: dict, device: str) -> dict:
    return {name: tensor.to(device) for name, tensor in batch.items()}


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_step_can_be_a_cuda_graph(setting, device, monkeypatch):
    """One recorded step, replayed on other batches while the bank fills, gives the same results as eager steps."""
    if device == "cpu":
        pretend_graphs(monkeypatch)
    batches = [batch_of(seed=seed, counts=FULL) for seed in (1, 2, 3)]
    batches += [batch_of(seed=4), batch_of(seed=5, counts=(0, 0, 0, 0, 0))]
    eager, module = (loss_of(device=device, **setting) for _ in range(2))
    beginning = {name: part.clone() for name, part in module.state_dict().items()}
    given = on_device(batch_of(seed=9, counts=FULL), device)
    leaf = given["projections"].requires_grad_()

    def step():
        value = module(**given)
        return value.detach(), *torch.autograd.grad(value, leaf)

    replay = captured(step, device)
    with torch.no_grad():
        for name, part in module.state_dict().items():
            part.copy_(beginning[name])
    gradients = 0.0
    for batch in batches:
        with torch.no_grad():
            for name, part in given.items():
                part.copy_(batch[name])
        value, gradient = replay()
        batch = on_device(batch, device)
        batch["projections"].requires_grad_()
        expected = eager(**batch)
        torch.testing.assert_close(value, expected.detach())
        (wanted,) = torch.autograd.grad(expected, batch["projections"])
        torch.testing.assert_close(gradient, wanted)
        gradients += wanted.abs().sum().item()
        for name, part in eager.state_dict().items():
            assert torch.equal(module.state_dict()[name], part), name
    assert gradients > 0  # there was something to compare
