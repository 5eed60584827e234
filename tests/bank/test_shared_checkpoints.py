"""Checkpoints of shared banks, plain and by torch.distributed.checkpoint, with other numbers of processes."""

import copy

import pytest
import torch
from loss_oracle import loss_of, run
from processes import on_ranks
from shared_bank import batch_for
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs gloo", allow_module_level=True)

STEPS = 5
PLACEMENTS = ("replicated", "sharded")
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]


def save(rank, folder, where):
    """Trains, writes each kind of checkpoint of each placement, and then does one more step."""
    result = {}
    for placement in PLACEMENTS:
        loss = loss_of(placement=placement)
        for step in range(STEPS):
            run(loss, batch_for(rank, step, {}))
        dcp.save(loss.state_dict(), checkpoint_id=f"{where}/{placement}")
        whole = get_model_state_dict(loss, options=WHOLE)  # of rank 0 alone
        if rank == 0:
            torch.save(whole, f"{where}/{placement}.pt")
        copied = copy.deepcopy(loss)
        value, gradient = run(loss, batch_for(rank, STEPS, {}))
        run(copied, batch_for(rank, STEPS, {}))
        result[placement] = [value, gradient, loss.bank.checksum(), copied.bank.checksum()]
    return result


def resume(rank, folder, where):
    """Loads each checkpoint into each placement. Returns the checksum after loading and after one more step."""
    result = {}
    for stored in PLACEMENTS:
        for placement in PLACEMENTS:
            distributed, plain = (loss_of(placement=placement, seed=70 + rank) for _ in range(2))
            state = distributed.state_dict()
            dcp.load(state, checkpoint_id=f"{where}/{stored}")
            distributed.load_state_dict(state)
            plain.load_state_dict(torch.load(f"{where}/{stored}.pt", weights_only=True))
            for name, loss in (("dcp", distributed), ("plain", plain)):
                loaded = loss.bank.checksum()
                value, gradient = run(loss, batch_for(rank, STEPS, {}))
                after = loss.bank.checksum()
                result[f"{stored} {name} {placement}"] = [value, gradient, after, loaded]
    return result


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The folder of the checkpoints, and how two ranks continued."""
    where = tmp_path_factory.mktemp("checkpoints")
    return where, on_ranks(2, tmp_path_factory.mktemp("save"), save, str(where))


def loaded_alone(where, **changes):
    loss = loss_of(placement="local", **changes)
    loss.load_state_dict(torch.load(f"{where}/replicated.pt", weights_only=True))
    return loss


def test_the_same_ranks_go_on_exactly(stored, tmp_path):
    where, went_on = stored
    for rank, result in enumerate(on_ranks(2, tmp_path, resume, str(where))):
        assert len(result) == 8
        for name, (value, gradient, after, _) in result.items():
            expected = went_on[rank][name.split()[-1]]
            assert value == expected[0]
            assert value > 0 or rank == 1  # its batch has no labels then
            assert torch.equal(gradient, expected[1]), name
            assert after == expected[2] == expected[3], name


def test_other_ranks_go_on_from_the_same_bank(stored, tmp_path):
    where, _ = stored
    checksum = loaded_alone(where).bank.checksum()
    of_ranks = on_ranks(3, tmp_path, resume, str(where))
    for result in of_ranks:
        assert {int(loaded) for *_, loaded in result.values()} == {int(checksum)}
        assert len({int(after) for _, _, after, _ in result.values()}) == 1
        assert len({float(value) for value, *_ in result.values()}) == 1
    assert any(value > 0 for value, *_ in of_ranks[0].values())


def test_one_process_reads_all_of_them(stored, tmp_path):
    where, _ = stored
    expected = loaded_alone(where)
    for placement in PLACEMENTS:
        loss = loss_of(seed=7)
        state = loss.state_dict()
        dcp.load(state, checkpoint_id=where / placement)
        loss.load_state_dict(state)
        assert loss.bank.checksum() == expected.bank.checksum()
        assert torch.equal(loss.bank.rng_state, expected.bank.rng_state)


def test_another_capacity_by_way_of_a_plain_file(stored, tmp_path):
    where, _ = stored
    dcp_to_torch_save(where / "sharded", tmp_path / "whole.pt")
    state = torch.load(tmp_path / "whole.pt", weights_only=True)
    for capacity in (7, 14, 20):
        loss = loss_of(bank_capacity=capacity)
        loss.load_state_dict(state)
        expected = loaded_alone(where, bank_capacity=capacity)
        assert loss.bank.checksum() == expected.bank.checksum()
        assert int(loss.bank.counts.max()) == min(capacity, 14)


def test_another_dtype_is_noticed_although_it_is_read_in_place(stored):
    """torch.distributed.checkpoint casts into the live buffers, and `config` holds the dtype that was stored."""
    where, _ = stored
    half = loaded_alone(where, bank_dtype=torch.bfloat16)
    dcp.save(half.state_dict(), checkpoint_id=where / "half", no_dist=True)
    loss = loss_of()
    state = loss.state_dict()
    dcp.load(state, checkpoint_id=where / "half", no_dist=True)
    length = loss.bank.features.double().norm(dim=2)
    assert (length - 1).abs().max() > 1e-4  # unit in bfloat16 only
    loss.load_state_dict(state)
    length = loss.bank.features.double().norm(dim=2)
    assert (length - 1).abs().max() < 1e-6
    assert loss.bank.config.tolist() == [0, 1, 2, 4]


def foreign_shards(rank, folder, where):
    """A sharded state belongs to its ranks: it cannot be loaded at another capacity, placement or rank. A whole state
    can be loaded into shards of another capacity and dtype, as into a single bank."""
    state = torch.load(f"{where}/replicated.pt", weights_only=True)
    for changes in (
        {"bank_dtype": torch.bfloat16},
        {"bank_dtype": torch.float64, "bank_capacity": 9},
    ):
        loss = loss_of(placement="sharded", **changes)
        loss.load_state_dict(state)
        assert loss.bank.checksum() == loaded_alone(where, **changes).bank.checksum()
    state = loss_of(placement="sharded").state_dict()
    torch.save(state, folder / f"shard.{rank}.pt")
    dist.barrier()
    other = torch.load(folder / f"shard.{1 - rank}.pt", weights_only=True)
    result = []
    for changes in ({"bank_capacity": 20}, {"placement": "replicated"}, {}):
        loss = loss_of(**{"placement": "sharded", "seed": 5, **changes})
        before = {name: tensor.clone() for name, tensor in loss.bank.named_buffers()}
        try:
            loss.load_state_dict(state if changes else other)
        except RuntimeError as error:
            result.append(str(error))
        assert all(torch.equal(t, before[n]) for n, t in loss.bank.named_buffers())
    return result


def test_shards_of_other_ranks_are_refused(stored, tmp_path):
    of_ranks = on_ranks(2, tmp_path, foreign_shards, str(stored[0]))
    for rank, result in enumerate(of_ranks):
        assert len(result) == 3
        assert all(
            "the stored rows are DTensors that do not match this rank's shard" in text
            for text in result
        )
        assert f"stored by rank {1 - rank}, loaded on rank {rank});" in result[2]
