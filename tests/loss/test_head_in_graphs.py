"""A step with a ProjectionHead compiles, never syncs and can be a CUDA graph."""

import copy

import pytest
import torch
from loss_oracle import B, D, E, H, W, loss_of, snapshot
from recorded import pretend_graphs
from test_step_is_sync_free import Watch, needs_cuda_build
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from with_head import FULL, SETTINGS, head_of, run, without_projections

from dgcl_ops import ProjectionHead
from dgcl_ops.doctor.step import captured


@pytest.mark.parametrize("half", [False, True])
def test_compiled_steps_equal_eager_ones(half):
    eager = nn.ModuleDict({"loss": loss_of(), "head": head_of(torch.float32)})
    module = copy.deepcopy(eager)
    compiled = torch.compile(module["loss"], fullgraph=True, backend="aot_eager")
    for seed in range(5):
        batch = without_projections(seed, torch.float32, counts=FULL if seed < 4 else (0,) * 5)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            results = [
                run(compiled, module["head"], batch),
                run(eager["loss"], eager["head"], batch),
            ]
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
        for name, part in eager.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], part, msg=name)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_no_step_waits(setting):
    module, head = loss_of(**setting), head_of(torch.float32)
    traces = []
    for seed, counts in enumerate((FULL, FULL, FULL, (24, 12, 9, 1, 0), (0,) * 5)):
        batch = without_projections(seed, torch.float32, counts=counts)
        batch["features"].requires_grad_()
        with Watch() as watch:
            module(head, **batch).backward()
        head.zero_grad()
        traces.append(watch.seen)
    assert all(trace == traces[0] for trace in traces)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_no_step_needs_values(setting):
    with FakeTensorMode():
        module, head = loss_of(**setting), ProjectionHead(D, 8, E)
        features = torch.zeros(B, D, H, W, requires_grad=True)
        labels = torch.zeros(B, H, W, dtype=torch.uint8)
        module(head, labels, features, torch.zeros(B, H, W)).backward()
        assert features.grad.shape == features.shape


@needs_cuda_build
def test_no_tensor_of_a_step_on_cuda_is_left_on_the_host():
    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda"):
            head = ProjectionHead(D, 8, E)
        module = loss_of(device="cuda")
        labels = torch.zeros(B, H, W, dtype=torch.uint8, device="cuda")
        value = module(head, labels, torch.zeros(B, D, H, W, device="cuda"))
        buffers = (*module.buffers(), *head.buffers())
    assert {tensor.device.type for tensor in (value, *buffers)} == {"cuda"}


def test_a_step_can_be_a_cuda_graph(device, monkeypatch):
    if device == "cpu":
        pretend_graphs(monkeypatch)
    eager = nn.ModuleDict({"loss": loss_of(), "head": head_of(torch.float32)}).to(device)
    module = copy.deepcopy(eager)
    beginning = snapshot(module)
    batches = [
        {n: t.to(device) for n, t in without_projections(seed, torch.float32, counts=c).items()}
        for seed, c in enumerate((FULL, FULL, FULL, FULL, (24, 12, 9, 1, 0), (0,) * 5))
    ]
    given = {name: part.clone() for name, part in batches[0].items()}
    parameters = list(module["head"].parameters())

    def step():
        value = module["loss"](module["head"], **given)
        return value.detach(), *torch.autograd.grad(value, parameters)

    replay = captured(step, device)
    module.load_state_dict(beginning)
    values = []
    for batch in batches[1:]:
        for name, part in given.items():
            part.copy_(batch[name])
        value, *gradients = replay()
        expected, _, *wanted = run(eager["loss"], eager["head"], batch)
        torch.testing.assert_close([value, *gradients], [expected, *wanted])
        for name, part in eager.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], part, msg=name)
        values.append(float(value))
    assert max(values) > 0
    assert values[-1] == 0
