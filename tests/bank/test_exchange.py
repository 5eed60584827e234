"""The rows that ranks exchange: their bytes, their dtype, and what the bank stores."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from loss_oracle import C, D, E, loss_of, run
from oracles import integers, random_rows
from processes import on_ranks
from shared_bank import batch_for
from torch import distributed as dist

from dgcl_ops import DensityContrastLoss, MemoryBank
from dgcl_ops._bank import exchange

HALF = (torch.bfloat16, torch.float16)
ROUNDED = [(torch.float32, each) for each in HALF]
ROUNDED += [(torch.float64, each) for each in (torch.float32, *HALF)]
needs_gloo = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"
)


def bank_of(**changes) -> MemoryBank:
    settings = {"capacity": 12, "rows_per_push": 5, "scales": (2, 3), "seed": 0, **changes}
    return MemoryBank(C, D, E, **settings)


def exchanged(bank, rows) -> MemoryBank:
    """The bank after an exchange in which this process is the only rank."""
    with torch.no_grad():
        exchange.receive(bank, *exchange.exchange_rows(exchange.SINGLE_PROCESS, bank, rows))
    return bank


def rows_of(seed, dtype=torch.float32) -> exchange.PushedRows:
    features, projections = (
        random_rows(C, 5, size, seed=seed + size, dtype=dtype) for size in (D, E)
    )
    density = random_rows(C, 5, seed=seed).abs()
    return exchange.PushedRows(features, projections, density, integers([5, 0, 1, 4, 3]))


# ---- bytes ------------------------------------------------------------------------------------------


def bytes_per_rank(bank: MemoryBank, size: int) -> int:
    """The formula of docs/guide/distributed.md."""
    share = -(-bank.rows_per_push // size)
    row = bank.density.itemsize + (D + E) * bank.exchange_dtype.itemsize
    total = 8 * (2 + C) + C * share * row
    return total + -total % 8


DTYPES = [(torch.float32, None), *ROUNDED, (torch.bfloat16, None)]


def volumes(rank, folder) -> list:
    """The collectives of a step for each dtype, eager and overlapped: [bytes sent, bytes received] of each."""
    calls = []
    gather = getattr(dist, exchange.ALL_GATHER)

    def counting(received, sent, **options):
        calls.append([sent.nbytes, received.nbytes, options.get("async_op", False)])
        return gather(received, sent, **options)

    setattr(dist, exchange.ALL_GATHER, counting)
    result = []
    for overlap in (False, True):
        for dtype, exchange_dtype in DTYPES:
            loss = loss_of(
                bank_dtype=dtype, exchange_dtype=exchange_dtype, overlap_exchange=overlap
            )
            calls.clear()
            for step in range(2):
                run(loss, batch_for(rank, step, {}))
                assert len(calls) == step + 1  # one collective in each step, in the forward
            expected = bytes_per_rank(loss.bank, dist.get_world_size())
            result.append([list(calls), expected, overlap])
            loss.bank.assert_synced()
    setattr(dist, exchange.ALL_GATHER, gather)
    return result


@needs_gloo
@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.long)])
def test_a_step_sends_one_collective_of_the_documented_size(tmp_path, size):
    for of_rank in on_ranks(size, tmp_path, volumes):
        for calls, expected, overlap in of_rank:
            assert calls == 2 * [[expected, size * expected, overlap]]
        sent = {
            pair: calls[0][0]
            for pair, (calls, *_) in zip(DTYPES, of_rank[: len(DTYPES)], strict=True)
        }
        row_bytes = C * -(-6 // size) * (D + E)
        whole = sent[torch.float32, None]
        for half in HALF:
            assert 0 <= whole - sent[torch.float32, half] - 2 * row_bytes < 8


# ---- values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
def test_rows_keep_their_bits_in_the_dtype_of_the_bank(dtype, metric):
    alone, shared = (bank_of(dtype=dtype, metric=metric) for _ in range(2))
    for seed in range(4):
        alone.push_rows(*rows_of(seed))
        exchanged(shared, rows_of(seed))
        assert torch.equal(alone.checksum(), shared.checksum())


@pytest.mark.parametrize(("dtype", "exchange_dtype"), ROUNDED)
@hypothesis.given(seed=st.integers(0, 10_000), exponent=st.integers(-30, 30))
def test_features_are_rounded_and_unit_again(dtype, exchange_dtype, seed, exponent):
    """Unit rows of any length arrive rounded. They are unit to the precision of the bank, as its search assumes."""
    rows = rows_of(seed, dtype)
    rows = rows._replace(features=rows.features * 10.0**exponent)
    bank = exchanged(bank_of(dtype=dtype, exchange_dtype=exchange_dtype, backfill=False), rows)
    finfo = torch.finfo(exchange_dtype)
    for c, count in enumerate(rows.row_counts.tolist()):
        features = rows.features[c, :count].double()
        unit = features / features.norm(dim=1, keepdim=True)
        stored = bank.features[c, :count].double()
        assert ((stored.norm(dim=1) - 1).abs() <= 4 * torch.finfo(dtype).eps).all()
        # An element is rounded, and so is the length that divides it: eps / 2 each. float16 has few small numbers.
        room = 1.05 * finfo.eps * unit.abs() + D * finfo.smallest_normal * finfo.eps
        assert ((stored - unit).abs() <= room).all()
        assert torch.equal(bank.density[c, :count], rows.density[c, :count].to(bank.density.dtype))
        assert not bank.features[c, count:].any()


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize(("dtype", "exchange_dtype"), ROUNDED)
def test_other_rows_are_rounded_once(dtype, exchange_dtype, metric):
    bank = bank_of(dtype=dtype, exchange_dtype=exchange_dtype, metric=metric)
    rows = rows_of(3, dtype)
    exchanged(bank, rows)
    names = ["projections"] if metric == "cosine" else ["projections", "features"]
    for name in names:
        for c, count in enumerate(rows.row_counts.tolist()):
            sent = getattr(rows, name)[c, :count]
            assert torch.equal(getattr(bank, name)[c, :count], sent.to(exchange_dtype).to(dtype))
            assert count == 0 or not torch.equal(getattr(bank, name)[c, :count], sent)


def test_one_process_compiles_to_one_graph():
    bank = bank_of(exchange_dtype=torch.bfloat16, overlap_exchange=True)
    eager = bank_of()
    push = torch.compile(bank.push_rows, backend="aot_eager", fullgraph=True)
    for seed in range(3):
        push(*rows_of(seed))
        eager.push_rows(*rows_of(seed))
    assert torch.equal(bank.checksum(), eager.checksum())


def test_one_process_rounds_nothing():
    plain = bank_of()
    others = [bank_of(exchange_dtype=torch.bfloat16), bank_of(overlap_exchange=True)]
    others.append(bank_of(exchange_dtype=torch.bfloat16, placement="local"))
    for seed in range(3):
        for bank in (plain, *others):
            bank.push_rows(*rows_of(seed))
    assert len({int(bank.checksum()) for bank in (plain, *others)}) == 1


# ---- arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "exchange_dtype"),
    [
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float16),
        (torch.float32, torch.int8),
        (torch.float32, "bfloat16"),
        (torch.float32, 0),
    ],
)
def test_an_exchange_dtype_is_that_of_the_bank_or_narrower(dtype, exchange_dtype):
    with pytest.raises(ValueError, match=r"exchange_dtype must be one of \(torch\.") as raised:
        bank_of(dtype=dtype, exchange_dtype=exchange_dtype)
    assert str(raised.value).endswith(f"got {exchange_dtype!r}")
    assert bank_of(dtype=dtype).exchange_dtype == dtype


def test_the_loss_hands_its_arguments_to_the_bank():
    loss = DensityContrastLoss(C, D, exchange_dtype=torch.bfloat16, overlap_exchange=True)
    assert loss.bank.exchange_dtype == torch.bfloat16
    assert loss.bank.overlap_exchange
    with pytest.raises(
        ValueError, match="overlap_exchange=True is not supported with placement 'sharded'"
    ):
        DensityContrastLoss(C, D, placement="sharded", overlap_exchange=True)


# ---- settings ---------------------------------------------------------------------------------------

UNLIKE = {
    "capacity": 13,
    "rows_per_push": 4,
    "exchange_dtype": torch.float16,
    "min_rows": 2,
    "refresh_every": 1,
    "backfill": False,
    "scales": (3,),
    "metric": "dot",
}


def unlike_settings(rank, folder) -> dict:
    """The errors when one setting of rank 1 differs, before anything is exchanged."""
    errors = {}
    for name, value in UNLIKE.items():
        try:
            bank_of(**({name: value} if rank == 1 else {})).assert_synced()
        except RuntimeError as error:
            errors[name] = str(error)
    return errors


@needs_gloo
def test_banks_with_unlike_settings_are_not_in_sync(tmp_path):
    named = {
        **dict(zip(UNLIKE, UNLIKE, strict=True)),
        "scales": "number of scales",
        "metric": "config",
    }
    for errors in on_ranks(2, tmp_path, unlike_settings):
        for name, shown in named.items():
            assert f"MemoryBank.assert_synced: {shown} must be equal on all 2 ranks" in errors[name]
