"""Compiled training on two processes that share a bank, equal to eager training to the bit."""

import copy

import pytest
import torch
from loss_oracle import loss_of, run
from processes import on_ranks
from shared_bank import SHARED, STEPS, batch_for
from torch import distributed as dist

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs gloo", allow_module_level=True)


def train(rank, folder) -> dict:
    return {
        "replicated": _train(rank, "replicated", fullgraph=True),
        "sharded": _train(rank, "sharded", fullgraph=False),
        "overlapped": _train(rank, "overlapped", fullgraph=False),
        "refused": _refused(rank, "sharded"),
        "refused overlap": _refused(rank, "overlapped"),
        "read": _read(rank),
    }


def _pair(shared, **options):
    eager = loss_of(**SHARED[shared])
    module = copy.deepcopy(eager)
    return eager, module, torch.compile(module, backend="aot_eager", **options)


def _train(rank, shared, fullgraph) -> dict:
    eager, module, compiled = _pair(shared, fullgraph=fullgraph)
    result = {"value": [], "gradient": [], "bank": [], "loss": []}
    for step in range(STEPS):
        # With a sharded bank, the pieces around the sync may be compiled once more when shapes become dynamic.
        with torch._dynamo.config.patch(error_on_recompile=fullgraph):
            value, gradient = run(compiled, batch_for(rank, step, {}))
        expected, expected_gradient = run(eager, batch_for(rank, step, {}))
        result["value"].append(torch.equal(value, expected))
        result["gradient"].append(torch.equal(gradient, expected_gradient))
        result["loss"].append(float(value))
        if shared == "overlapped" and (rank + step) % 2:
            continue  # the next step finishes the exchange
        if shared != "overlapped":
            module.bank.assert_synced()
        buffers = dict(eager.bank.named_buffers())
        result["bank"].append(
            all(torch.equal(b, buffers[n]) for n, b in module.bank.named_buffers())
        )
    return result


def _read(rank) -> list:
    """Compiled reads of a bank, pending or not: [what they read, what is there]."""
    eager, module, _ = _pair("overlapped")

    def of_bank(bank):
        return bank.num_pushes + bank.ready().sum()

    read = torch.compile(of_bank, backend="aot_eager")
    result = []
    for step in range(5):
        for loss in (module, eager):
            run(loss, batch_for(rank, step, {}))
        if step != 2:
            result.append([int(read(module.bank)), int(of_bank(eager.bank))])
        result.append([int(read(module.bank)), int(of_bank(eager.bank))])
    return result


def _refused(rank, shared) -> str:
    _, module, compiled = _pair(shared, fullgraph=True)
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


@pytest.mark.parametrize("shared", list(SHARED))
def test_compiled_ranks_train_as_eager_ones(of_ranks, shared):
    """Replicated: one graph for all steps, including the collective. The others: pieces around it."""
    for result in of_ranks:
        for what in ("value", "gradient", "bank"):
            assert all(result[shared][what]), what
        assert len(result[shared]["value"]) == STEPS
        assert any(loss > 0 for loss in result[shared]["loss"])


def test_a_sharded_bank_says_why_it_is_not_one_graph(of_ranks):
    for result in of_ranks:
        assert "a step with placement 'sharded' synchronises with the host" in result["refused"]
        assert "compile without fullgraph=True" in result["refused"]


def test_an_overlapped_exchange_says_why_it_is_not_one_graph(of_ranks):
    for result in of_ranks:
        assert (
            "with overlap_exchange=True the exchange goes on after the step"
            in result["refused overlap"]
        )


def test_compiled_code_reads_the_finished_bank(of_ranks):
    for result in of_ranks:
        assert len({there for _, there in result["read"]}) == 5
        assert all(read == there for read, there in result["read"])
