"""Banks shared by several processes equal one bank in one process, bit for bit."""

import copy
import functools

import pytest
import shared_bank
import torch
from builds import needs_equal_bits
from loss_oracle import C, D, E, flat_rows, loss_of, run
from oracles import integers, random_rows
from processes import on_ranks
from shared_bank import REPLICATED_ALONE, SETTINGS, STEPS
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dgcl_ops import MemoryBank
from dgcl_ops._bank.exchange import Ranks
from dgcl_ops._bank.rings import Rings
from dgcl_ops._bank.sharded_rings import ShardedRings

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs gloo", allow_module_level=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The results of `shared_bank.train` on each rank, for a number of ranks and a way to share the bank."""

    @functools.cache
    def get(size, shared):
        folder = tmp_path_factory.mktemp(f"{shared}{size}")
        return on_ranks(size, folder, shared_bank.train, names_for(shared), shared)

    return get


@pytest.fixture(scope="module")
def in_one_process():
    return functools.cache(
        lambda size, name: shared_bank.train_in_one_process(size, SETTINGS[name])
    )


def names_for(shared):
    return [n for n in SETTINGS if shared != "sharded" or n not in REPLICATED_ALONE]


def cases(*sizes_of_ways):
    return [
        pytest.param(size, shared, name, marks=[] if size == 2 else pytest.mark.long)
        for shared, sizes in sizes_of_ways
        for size in sizes
        for name in names_for(shared)
    ]


@pytest.mark.parametrize(
    ("size", "shared", "name"),
    cases(("replicated", (2, 3)), ("overlapped", (2, 3)), ("sharded", (1, 2, 3, 4))),
    ids=lambda value: str(value).replace(" ", "-"),
)
def test_ranks_train_as_one_process_does(trained, in_one_process, size, shared, name):
    of_ranks, expected = trained(size, shared), in_one_process(size, name)
    for rank, result in enumerate(of_ranks):
        for step in range(STEPS):
            for what, value in result[name]["steps"][step].items():
                assert torch.equal(value, expected["steps"][step][rank][what]), (rank, step, what)
    # Otherwise equal zeros or an empty bank could pass.
    steps = expected["steps"]
    assert all(any(step[rank]["value"] > 0 for step in steps) for rank in range(size))
    assert any(step[0]["gradient"].any() for step in steps)
    # One batch of rank 0 has no labels. A single process would push nothing then.
    assert len({int(step[0]["checksum"]) for step in steps}) >= STEPS - (size == 1)
    whole = expected["bank"]
    for what in ("features", "projections", "density"):
        rows = [result[name]["bank"][what] for result in of_ranks]
        if shared != "sharded":
            assert all(torch.equal(each, whole[what]) for each in rows)
        else:
            assert torch.equal(torch.cat(rows, 1), whole[what])
            assert max(each.shape[1] for each in rows) == -(-whole[what].shape[1] // size)
    for what in ("counts", "heads", "num_pushes", "rng_state", "config"):
        assert all(torch.equal(result[name]["bank"][what], whole[what]) for result in of_ranks)


# ---- what is checked, and what differs -------------------------------------------------------------------


def out_of_step(rank, folder):
    """The errors on each rank when rank 1 deviates."""
    result = {}

    def attempt(name, change, **settings):
        loss = loss_of(**settings)
        run(loss, shared_bank.batch_for(rank, 0, {}))
        loss.bank.assert_synced()
        if rank == 1:
            change(loss.bank)
        try:
            loss.bank.assert_synced()
            if loss.bank.placement == "sharded":
                run(loss, shared_bank.batch_for(rank, 1, {}))
            result[name] = "nothing"
        except RuntimeError as error:
            result[name] = str(error)
        return loss

    def one_bit(bank):
        bank.projections.view(torch.int32)[4, 2, 1] ^= 1

    attempt("a bit", one_bit)
    attempt("a push", lambda bank: bank.num_pushes.add_(1))
    attempt("random state", lambda bank: bank.rng_state.add_(1))
    attempt("its count", lambda bank: bank.counts.add_(1), placement="sharded")
    attempt("rank 0's shard", lambda bank: bank._owner.zero_(), placement="sharded")
    attempt("a bank of its own", one_bit, placement="local")
    bank = loss_of(rows_per_push=5).bank
    try:
        bank.push_rows(
            torch.ones(C, 4, D), torch.ones(C, 4, E), torch.ones(C, 4), integers([4] * C)
        )
    except ValueError as error:
        result["too many rows"] = str(error)
    result["before"] = [int(bank.num_pushes), int(bank.counts.sum())]
    for placement in ("replicated", "sharded"):
        loss = loss_of(placement=placement)
        run(loss, shared_bank.batch_for(rank, 0, {}))
        result[placement] = loss.report().splitlines()[-1]
    return result


def test_ranks_out_of_step_raise(tmp_path):
    for rank, result in enumerate(on_ranks(2, tmp_path, out_of_step)):
        assert "MemoryBank.assert_synced: checksum must be equal on all 2" in result["a bit"]
        assert "on rank 1 (1 differ)" in result["a bit"]
        assert (
            "num_pushes must be equal on all 2 ranks, got [1] on rank 0 and [2]" in result["a push"]
        )
        assert "rng_state must be equal" in result["random state"]
        assert "counts must be equal" in result["its count"]
        assert "a rank's shard was overwritten by another" in result["rank 0's shard"]
        assert result["a bank of its own"] == "nothing"
        assert (
            "at most 3 rows of a class (rows_per_push 5 over 2 ranks), got 4"
            in result["too many rows"]
        )
        assert result["before"] == [0, 0]
        assert "MB, the same on 2 ranks; pushes so far: 1." in result["replicated"]
        assert f"MB in the shard of rank {rank} of 2;" in result["sharded"]


def groups(rank, folder):
    """Four processes in two pairs, each pair with a bank. Also a bank built too early, and one of a foreign group."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    result = {}
    for placement in ("replicated", "sharded"):
        loss = loss_of(placement=placement, process_group=pairs[rank // 2])
        for step in range(3):
            run(loss, shared_bank.batch_for(rank, step, {}))
            loss.bank.assert_synced()
        copied = copy.deepcopy(loss)
        assert copied.bank.process_group is loss.bank.process_group
        value, _ = run(loss, shared_bank.batch_for(rank, 3, {}))
        assert torch.equal(value, run(copied, shared_bank.batch_for(rank, 3, {}))[0])
        result[placement] = [value, loss.bank.checksum(), copied.bank.checksum()]
    try:
        MemoryBank(C, D, process_group=pairs[1 - rank // 2])
    except TypeError as error:
        result["foreign"] = str(error)
    sharded = loss_of(placement="sharded")
    sharded.bank.rings = Rings(sharded.bank.capacity)  # as if built before init_process_group
    try:
        run(sharded, shared_bank.batch_for(rank, 0, {}))
    except RuntimeError as error:
        result["early"] = str(error)
    return result


@needs_equal_bits  # the replicated and the sharded bank's losses are compared
def test_groups_of_processes(tmp_path):
    of_ranks = on_ranks(4, tmp_path, groups)
    for placement in ("replicated", "sharded"):
        sums = [int(result[placement][1]) for result in of_ranks]
        assert sums[0] == sums[1] != sums[2] == sums[3]
        assert all(result[placement][1] == result[placement][2] for result in of_ranks)
    for sharded, replicated in ((result["sharded"], result["replicated"]) for result in of_ranks):
        assert sharded[:2] == replicated[:2]
    assert all(
        "process_group must be a torch.distributed.ProcessGroup" in t["foreign"] for t in of_ranks
    )
    assert all(
        "construct the bank after init_process_group" in result["early"] for result in of_ranks
    )


def test_a_shard_for_every_rank():
    for size, capacity in ((4, 9), (2, 1), (5, 4)):
        with pytest.raises(
            ValueError, match=f"capacity {capacity} leaves the last of {size} ranks without a slot"
        ):
            ShardedRings(Ranks(None, 0, size), capacity)
    for size in range(1, 7):
        for capacity in (30, 31, 36):
            shards = [ShardedRings(Ranks(None, rank, size), capacity) for rank in range(size)]
            slots = [s for shard in shards for s in range(shard.start, shard.start + shard.length)]
            assert slots == list(range(capacity))


STRANGE = (torch.nan, torch.inf, -torch.inf, 3e38)


def strange_inputs(rank, folder):
    """Densities of non-finite queries for each metric, in a class with rows and in one without. Also non-contiguous row
    counts, other seeds, and queries of other dtypes."""
    result = {}
    for placement in ("replicated", "sharded"):
        densities = []
        for metric in ("cosine", "dot", "l2"):
            bank = MemoryBank(
                *(2, D),
                capacity=9,
                rows_per_push=8,
                scales=(2,),
                seed=5 + rank,
                metric=metric,
                placement=placement,
            )
            rows, counts = random_rows(2, 4, D, seed=rank), integers([[4, 9], [0, 9]])[:, 0]
            bank.push_rows(rows, rows, torch.rand(2, 4), counts)
            queries = random_rows(5, D, seed=7).repeat(2, 1)
            for i, value in enumerate(STRANGE):
                queries[i, i % D] = queries[5 + i, i % D] = value
            densities.append(bank.density_of(queries, integers([0, 5, 10])))
        result[placement] = torch.stack(densities)
        result[f"{placement} rng_state"] = bank.rng_state
    of_rank = queries.to((torch.float64, torch.float16)[rank])
    for name, wrong in (("gradient", queries.clone().requires_grad_()), ("dtype", of_rank)):
        try:
            bank.density_of(wrong, integers([0, 5, 10]))
        except (ValueError, RuntimeError) as error:
            result[name] = str(error)
    with pytest.raises(ValueError, match="keys='average' is not supported with a sharded bank"):
        loss_of(placement="sharded", anchors="random", keys="average")
    # One rank may have an empty batch. It takes part in the same collectives, and gets rank 0's rows.
    bank = MemoryBank(2, D, capacity=9, rows_per_push=4, scales=(2,))
    rows, labels = random_rows(6, D, seed=1), torch.arange(6) % 2
    mine = slice(0, 0 if rank else 6)
    bank.push(rows[mine], rows[mine], labels[mine])
    result["rows of rank 0"] = bank.counts
    return result


def test_strange_inputs_give_what_one_bank_gives(tmp_path):
    for result in on_ranks(2, tmp_path, strange_inputs):
        torch.testing.assert_close(
            result["sharded"], result["replicated"], rtol=0, atol=0, equal_nan=True
        )
        assert result["replicated"][0, :3].isnan().all()
        assert not result["replicated"][:, 5:].any()
        assert "with placement 'sharded', densities have no gradient; detach" in result["gradient"]
        assert "must have one dtype on all 2 ranks" in result["dtype"]
        assert "use torch.float64 and torch.float16" in result["dtype"]
        assert result["rows of rank 0"].tolist() == [2, 2]
        first = MemoryBank(2, D, seed=5).rng_state
        assert torch.equal(result["replicated rng_state"], first)
        assert torch.equal(result["sharded rng_state"], first)


def gradients(rank, folder, grad_scale):
    """One step of a small model in DistributedDataParallel, and the same from all ranks' parts in one process."""
    size = dist.get_world_size()

    def model_and_loss(**settings):
        torch.manual_seed(0)
        return torch.nn.Linear(E, E), loss_of(grad_scale=grad_scale, **settings)

    def flat(of_rank, step):
        batch = shared_bank.batch_for(of_rank, step, {})
        projections = batch.pop("projections").nan_to_num().permute(0, 2, 3, 1).reshape(-1, E)
        maps = {
            name: flat_rows(maps) if maps.dim() == 4 else maps.reshape(-1)
            for name, maps in batch.items()
        }
        return projections, maps

    model, loss = model_and_loss()
    wrapped = DistributedDataParallel(model)
    for step in (0, 3):  # the second has a loss
        projections, maps = flat(rank, step)
        model.zero_grad()
        before = {name: t.clone() for name, t in loss.state_dict().items()}
        value = loss(wrapped(projections), **maps)
        value.backward()

    model_of_one, part = model_and_loss(placement="local")
    values = []
    for of_rank in range(size):
        part.load_state_dict(before)
        part.bank._first_stream = lambda of_rank=of_rank: 2 * of_rank
        projections, maps = flat(of_rank, 3)
        values.append(part(model_of_one(projections), **maps, update_bank=False))
    torch.stack(values).mean().backward()
    return {
        "value": value.detach(),
        "values": torch.stack(values).detach(),
        "gradient": model.weight.grad,
        "expected": model_of_one.weight.grad,
    }


def test_the_gradient_is_that_of_the_mean_of_the_ranks_losses(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "scaled").mkdir()
    plain = on_ranks(2, tmp_path / "plain", gradients, 1.0)
    scaled = on_ranks(2, tmp_path / "scaled", gradients, 0.5)
    for rank, (result, half) in enumerate(zip(plain, scaled, strict=True)):
        assert torch.equal(result["value"], result["values"][rank])
        assert (result["values"] > 0).all()
        # The sum over the ranks is rounded in another order.
        torch.testing.assert_close(result["gradient"], result["expected"], rtol=1e-5, atol=1e-7)
        assert result["gradient"].abs().max() > 1e-4
        # `grad_scale=1 / W`: the published program's gradient.
        torch.testing.assert_close(half["gradient"], result["gradient"] / 2, rtol=1e-5, atol=1e-8)
        assert torch.equal(half["value"], result["value"])


def test_small_classes_are_pushed_whole_as_from_the_joined_batch():
    setting = {"bank_capacity": 200, "rows_per_push": 100, "max_candidates": 100, "metric": "l2"}
    shared = shared_bank.train_in_one_process(2, setting)[
        "bank"
    ]  # what two ranks hold, by the test above
    single = loss_of(**setting).bank
    for step in range(STEPS):
        batches = [shared_bank.batch_for(rank, step, setting) for rank in range(2)]
        features, projections, labels = (
            torch.cat([batch[name] for batch in batches])
            for name in ("features", "projections", "labels")
        )
        single.push(features, projections, labels)
    assert torch.equal(shared["counts"], single.counts)
    assert single.counts.max() > 50
    for c in range(C):
        rows, expected = (
            bank[c, : single.counts[c]] for bank in (shared["features"], single.features)
        )
        assert sorted(rows.tolist()) == sorted(expected.tolist())
