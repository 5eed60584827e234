"""Banks that several processes share: equal to one bank in one process, bit for bit."""

import pytest
import shared_bank
import torch
from processes import on_ranks
from shared_bank import REPLICATED_ALONE, SETTINGS, STEPS
from torch import distributed as dist

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs gloo", allow_module_level=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What `shared_bank.train` told: for a number of processes and a placement, of each rank."""
    told = {}

    def get(size, placement):
        if (size, placement) not in told:
            names = [n for n in SETTINGS if placement == "replicated" or n not in REPLICATED_ALONE]
            folder = tmp_path_factory.mktemp(f"{placement}{size}")
            told[size, placement] = on_ranks(size, folder, shared_bank.train, names, placement)
        return told[size, placement]

    return get


@pytest.fixture(scope="module")
def alone():
    told = {}

    def get(size, name):
        if (size, name) not in told:
            told[size, name] = shared_bank.train_alone(size, SETTINGS[name])
        return told[size, name]

    return get


def cases(*sizes_of_placements):
    return [
        (size, placement, name)
        for placement, sizes in sizes_of_placements
        for size in sizes
        for name in SETTINGS
        if placement == "replicated" or name not in REPLICATED_ALONE
    ]


@pytest.mark.parametrize(
    ("size", "placement", "name"),
    cases(("replicated", (2, 3)), ("sharded", (1, 2, 3, 4))),
    ids=lambda value: str(value).replace(" ", "-"),
)
def test_ranks_train_as_one_process_does(trained, alone, size, placement, name):
    of_ranks, expected = trained(size, placement), alone(size, name)
    for rank, told in enumerate(of_ranks):
        for step in range(STEPS):
            for what, value in told[name]["steps"][step].items():
                assert torch.equal(value, expected["steps"][step][rank][what]), (rank, step, what)
    # So that equal zeros or one empty bank cannot pass.
    steps = expected["steps"]
    assert all(any(step[rank]["value"] > 0 for step in steps) for rank in range(size))
    assert any(step[0]["gradient"].any() for step in steps)
    # One batch of rank 0 has no labels: alone, it pushes nothing.
    assert len({int(step[0]["checksum"]) for step in steps}) >= STEPS - (size == 1)
    whole = expected["bank"]
    for what in ("features", "projections", "density"):
        rows = [told[name]["bank"][what] for told in of_ranks]
        if placement == "replicated":
            assert all(torch.equal(each, whole[what]) for each in rows)
        else:
            assert torch.equal(torch.cat(rows, 1), whole[what])
            assert max(each.shape[1] for each in rows) == -(-whole[what].shape[1] // size)
    for what in ("counts", "heads", "pushes", "rng_state", "meaning"):
        assert all(torch.equal(told[name]["bank"][what], whole[what]) for told in of_ranks)
