"""Compiled training on two processes that share a bank, equal to eager training to the bit."""

import copy

import pytest
import torch
from loss_oracle import loss_of, run
from processes import on_ranks
from shared_bank import STEPS, batch_for
from torch import distributed as dist

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs gloo", allow_module_level=True)


def train(rank, folder) -> dict:
    return {
        "replicated": _train(rank, "replicated", fullgraph=True),
        "sharded": _train(rank, "sharded", fullgraph=False),
        "refused": _refused(rank),
    }


def _pair(placement, **options):
    eager = loss_of(placement=placement)
    module = copy.deepcopy(eager)
    return eager, module, torch.compile(module, backend="aot_eager", **options)


def _train(rank, placement, fullgraph) -> dict:
    eager, module, compiled = _pair(placement, fullgraph=fullgraph)
    result = {"value": [], "gradient": [], "bank": [], "loss": []}
    for step in range(STEPS):
        # With a sharded bank, the pieces around the sync may be compiled once more when shapes become dynamic.
        with torch._dynamo.config.patch(error_on_recompile=fullgraph):
            value, gradient = run(compiled, batch_for(rank, step, {}))
        expected, expected_gradient = run(eager, batch_for(rank, step, {}))
        module.bank.assert_synced()
        buffers = dict(eager.bank.named_buffers())
        result["value"].append(torch.equal(value, expected))
        result["gradient"].append(torch.equal(gradient, expected_gradient))
        result["bank"].append(
            all(torch.equal(b, buffers[n]) for n, b in module.bank.named_buffers())
        )
        result["loss"].append(float(value))
    return result


def _refused(rank) -> str:
    _, module, compiled = _pair("sharded", fullgraph=True)
    torch._dynamo.reset()
    try:
        run(compiled, batch_for(rank, 0, {}))
    except torch._dynamo.exc.Unsupported as error:
        return str(error) if module.bank.num_pushes == 0 else "pushed"
    return "compiled"


pytestmark = pytest.mark.long  # compiles on two processes


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    return on_ranks(2, tmp_path_factory.mktemp("compiled"), train)


@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_compiled_ranks_train_as_eager_ones(of_ranks, placement):
    """Replicated: one graph for all steps, including the collective. Sharded: pieces around the sync."""
    for result in of_ranks:
        for what in ("value", "gradient", "bank"):
            assert all(result[placement][what]), what
        assert any(loss > 0 for loss in result[placement]["loss"])


def test_a_sharded_bank_says_why_it_is_not_one_graph(of_ranks):
    for result in of_ranks:
        assert "a step with placement 'sharded' synchronises with the host" in result["refused"]
        assert "compile without fullgraph=True" in result["refused"]
