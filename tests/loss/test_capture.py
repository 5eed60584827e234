"""What a CUDA graph relies on: the state stays at its addresses, and all random numbers come from buffers."""

import copy

import pytest
import torch
from loss_oracle import batch_of, loss_of, run

SETTINGS = [{}, {"refresh_every": 2, "bank_dtype": torch.bfloat16}, {"metric": "l2"}]


def addresses(module) -> dict:
    return {name: tensor.data_ptr() for name, tensor in module.named_buffers()}


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_no_buffer_moves(setting):
    module = loss_of(**setting)
    bank = module.bank
    other = loss_of(**{**setting, "bank_capacity": 9, "bank_dtype": torch.float64})
    before = addresses(module)
    state = copy.deepcopy(module.state_dict())
    changes = {
        "steps": lambda: [run(module, batch_of(seed=seed)) for seed in range(3)],
        "empty batch": lambda: run(module, {n: t[:0] for n, t in batch_of().items()}),
        "push": lambda: bank.push(*(batch_of()[n] for n in ("features", "projections", "labels"))),
        "eval": lambda: run(module.eval(), batch_of()),
        "train": module.train,
        "load": lambda: module.load_state_dict(state),
        "load of another capacity and dtype": lambda: module.load_state_dict(other.state_dict()),
        "reset": bank.reset,
        "to": lambda: module.to("cpu"),
        "half": module.half,
        "looks": lambda: (module.diagnostics(), module.report(), bank.checksum()),
    }
    for name, change in changes.items():
        change()
        assert addresses(module) == before, name
    # The only way to move them, as docs/guide/compile.md says.
    module.load_state_dict(state, assign=True)
    assert addresses(module) != before


def test_a_step_draws_from_no_generator():
    """The loss uses no generator, so there is none to register with a graph."""
    module = loss_of(anchors="random")
    before = torch.random.get_rng_state()
    module.bank.push(*(batch_of()[name] for name in ("features", "projections", "labels")))
    for seed in range(3):
        run(module, batch_of(seed=seed))
    # batch_of and random_rows have generators of their own.
    assert torch.equal(torch.random.get_rng_state(), before)
    assert module.bank.rng_state[1] == 4
