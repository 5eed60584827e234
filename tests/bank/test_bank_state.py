"""Loading stored banks at another capacity or dtype. A bank is loaded completely or not at all."""

import copy

import oracles
import pytest
import torch
from oracles import integers, random_rows

from dgcl_ops import DensityContrastLoss, MemoryBank
from dgcl_ops._bank.checkpoint import NAMES

C, D, E = 3, 5, 4
# Rows per class of each push. Class 0 wraps at 12, class 2 is empty.
COUNTS = ([2, 1, 0], [4, 0, 0], [3, 2, 0], [5, 4, 0])


def bank_of(**changes) -> MemoryBank:
    settings = {"capacity": 12, "rows_per_push": 5, "scales": (2, 3), "seed": 0, **changes}
    return MemoryBank(C, D, E, **settings)


def filled(**changes) -> tuple[MemoryBank, list]:
    """A bank, and the rows pushed to each class, oldest first: (features, projections, density) for each class."""
    bank, pushed = bank_of(**changes), [[] for _ in range(C)]
    for seed, counts in enumerate(COUNTS):
        rows = random_rows(C, 5, D, seed=seed), random_rows(C, 5, E, seed=10 + seed)
        density = random_rows(C, 5, seed=20 + seed)
        bank.push_rows(*rows, density, integers(counts))
        for c, n in enumerate(counts):
            pushed[c] += [(rows[0][c, i], rows[1][c, i], density[c, i]) for i in range(n)]
    return bank, pushed


def snapshot(bank) -> dict:
    return {name: tensor.clone() for name, tensor in bank.state_dict().items()}


def oldest_first(bank: MemoryBank, c: int):
    count, head = int(bank.counts[c]), int(bank.heads[c])
    slots = [(head - count + i) % bank.capacity for i in range(count)]
    return [getattr(bank, name)[c, slots] for name in ("features", "projections", "density")]


@pytest.mark.parametrize("capacity", [1, 4, 11, 13, 40])
def test_another_capacity_keeps_the_newest_rows(capacity):
    stored, pushed = filled()
    bank = bank_of(capacity=capacity, min_rows=1, seed=9)
    bank.load_state_dict(stored.state_dict())
    for c in range(C):
        kept = min(len(pushed[c]), 12, capacity)
        assert bank.counts[c] == kept
        had = oldest_first(stored, c)
        for ours, theirs in zip(oldest_first(bank, c), had, strict=True):
            assert torch.equal(ours, theirs[len(theirs) - kept :])
        projections = oldest_first(bank, c)[1]
        for row, (_, projection, _) in zip(
            projections, pushed[c][len(pushed[c]) - kept :], strict=True
        ):
            assert torch.equal(row, projection)
        assert not bank.features[c, kept:].any()
    assert torch.equal(bank.rng_state, stored.rng_state)
    # The ring continues where it was: the next row replaces the oldest, or takes a free slot.
    before = oldest_first(bank, 0)[1]
    bank.push_rows(torch.ones(C, 1, D), torch.ones(C, 1, E), torch.ones(C, 1), integers([1, 1, 1]))
    after = oldest_first(bank, 0)[1]
    expected = torch.cat([before, torch.ones(1, E)])[-capacity:]
    assert torch.equal(after, expected)


@pytest.mark.parametrize("capacity", [12, 7, 30])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("now", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("was", [torch.float64, torch.float32, torch.bfloat16])
def test_another_dtype(was, now, metric, capacity):
    stored, _ = filled(dtype=was, metric=metric)
    bank = bank_of(dtype=now, metric=metric, capacity=capacity)
    bank.load_state_dict(stored.state_dict())
    assert bank.features.dtype == now
    assert bank.density.dtype == (torch.float64 if now == torch.float64 else torch.float32)
    for c in range(2):
        kept = len(oldest_first(bank, c)[0])
        features, projections, density = (rows[-kept:] for rows in oldest_first(stored, c))
        ours = oldest_first(bank, c)
        assert torch.equal(ours[1], projections.to(now))
        assert torch.equal(ours[2], density.to(bank.density.dtype))
        if metric == "l2" or was == now:
            assert torch.equal(ours[0], features.to(now))
            continue
        # They are unit rows again in the new dtype, because a bank of float32 rows relies on exact unit rows.
        unit = [oracles.unit_row(row) for row in features.double().tolist()]
        wrong = ours[0].double() - torch.tensor(unit, dtype=torch.float64)
        # Elements are at most 1. They are rounded a few times to float32 or float64, then once to the new dtype.
        before = torch.float64 if torch.float64 in (was, now) else torch.float32
        rounding = torch.finfo(now).eps / 2 + 4 * torch.finfo(before).eps
        assert wrong.abs().max() <= rounding
    assert torch.equal(bank.config, bank_of(dtype=now, metric=metric).config)


def test_the_same_capacity_and_dtype_is_loaded_as_it_is():
    stored, _ = filled()
    for assign in (False, True):
        bank = bank_of(seed=5)
        bank.load_state_dict(snapshot(stored), assign=assign)
        for name, tensor in bank.state_dict().items():
            assert torch.equal(tensor, stored.state_dict()[name]), name


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("capacity", [12, 7])
def test_rows_that_were_cast_in_the_file_are_unit_again(capacity, assign):
    """A state_dict cast by hand. `config` still says float32, so its rows would pass for exact unit rows."""
    state = {
        n: t.bfloat16() if t.is_floating_point() else t for n, t in filled()[0].state_dict().items()
    }
    bank = bank_of(capacity=capacity)
    bank.load_state_dict(state, assign=assign)
    for name in ("features", "projections", "density"):
        assert getattr(bank, name).dtype == torch.float32
    length = bank.features[0].double().norm(dim=1)
    assert (length - 1).abs().max() < 1e-6


def test_a_loss_goes_on_with_a_larger_bank():
    def loss_with(capacity):
        sizes = {"bank_capacity": capacity, "rows_per_push": 4, "scales": (2,), "seed": 3}
        return DensityContrastLoss(C, D, E, num_anchors=4, num_keys=2, num_negatives=5, **sizes)

    def step(loss, seed):
        labels = torch.arange(30) % C
        projections = random_rows(30, E, seed=seed).requires_grad_()
        value = loss(projections, labels, random_rows(30, D, seed=100 + seed))
        return value.detach()

    small, large = loss_with(40), loss_with(60)
    for seed in range(5):  # 20 rows of each class: both hold all of them
        step(small, seed)
    large.load_state_dict(small.state_dict())
    for seed in range(5, 9):
        assert step(large, seed) == step(small, seed) > 0


def tampered(**changes) -> dict:
    state = snapshot(filled()[0])
    for name, change in changes.items():
        state[name] = change(state[name])
    return state


def shrunk(tensor):
    return tensor[..., :-1].clone()


WRONG = [
    ({"features": lambda t: t.tolist()}, "stored features must be a torch.Tensor, got list"),
    ({"features": shrunk}, r"stored features must have shape \[3, 12, 5\], got \[3, 12, 4\]"),
    ({"projections": lambda t: t[:2]}, r"stored projections must have shape \[3, 12, 4\]"),
    ({"density": shrunk}, r"stored features must have shape \[3, 11, 5\], got \[3, 12, 5\]"),
    ({"density": lambda t: t.sum()}, r"stored density must have shape"),
    ({"counts": shrunk}, r"stored counts must have shape \[3\], got \[2\]"),
    ({"counts": lambda t: t.int()}, "stored counts must have dtype torch.int64"),
    ({"features": lambda t: t.long()}, "stored features must have one of the dtypes"),
    ({"density": lambda t: t.long()}, "stored density must have one of the dtypes"),
    ({"counts": lambda t: t - 1}, "stored counts and heads .* got count 11 and head 2 for class 0"),
    ({"counts": lambda t: t + 1}, "stored counts and heads .* got count 13 and head 2 for class 0"),
    (
        {"heads": lambda t: t + 10},
        "stored counts and heads .* got count 12 and head 12 for class 0",
    ),
    ({"heads": lambda t: t - 3}, "stored counts and heads .* got count 12 and head -1 for class 0"),
    (
        {"heads": lambda t: t + integers([0, 0, 3])},
        "stored counts .* got count 0 and head 3 for class 2",
    ),
    ({"rng_state": lambda t: t[0]}, r"stored rng_state must have shape \[2\], got \[\]"),
    ({"num_pushes": lambda t: t.expand(1)}, r"stored num_pushes must have shape \[\], got \[1\]"),
    ({"config": lambda t: t + 3}, r"stored config must name a metric and a dtype, got \[3, 4\]"),
    ({"config": lambda t: t[0]}, r"stored config must have shape"),
    ({"config": lambda t: t + integers([1, 0, 0, 0])}, "metric must be 'dot' as in the stored"),
    ({"config": lambda t: t[:3]}, r"scales must be \(2,\) as in the stored bank, got \(2, 3\)"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message for _, message in WRONG])
@pytest.mark.parametrize("capacity", [12, 7])
def test_a_bank_that_does_not_fit_changes_nothing(changes, message, capacity):
    bank = bank_of(capacity=capacity, seed=4)
    bank.push_rows(torch.ones(C, 2, D), torch.ones(C, 2, E), torch.ones(C, 2), integers([2, 1, 0]))
    before = snapshot(bank)
    with pytest.raises(RuntimeError, match=f"MemoryBank: (the )?{message}"):
        bank.load_state_dict(tampered(**changes))
    for name, tensor in bank.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("name", NAMES)
def test_half_a_bank_is_not_loaded(name):
    bank, state = bank_of(seed=4), tampered()
    del state[name]
    before = snapshot(bank)
    with pytest.raises(RuntimeError, match=f'Missing key.*"{name}"'):
        bank.load_state_dict(state)
    result = bank.load_state_dict(state, strict=False)
    assert result.missing_keys == [name]
    for key, tensor in bank.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_foreign_and_truncated_files(tmp_path):
    loss = DensityContrastLoss(C, D, E, bank_capacity=12, rows_per_push=5, scales=(2, 3))
    before = snapshot(loss)
    foreign = {"bank.unknown": torch.ones(2), **{f"bank.{n}": t for n, t in tampered().items()}}
    with pytest.raises(RuntimeError, match=r"Unexpected key.*bank\.unknown"):
        loss.load_state_dict(foreign)
    with pytest.raises(RuntimeError, match=r"Missing key.*bank\.features"):
        loss.load_state_dict(torch.nn.Linear(2, 2).state_dict())
    path = tmp_path / "loss.pt"
    torch.save(loss.state_dict(), path)
    whole = path.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises((RuntimeError, EOFError, OSError)):
            loss.load_state_dict(torch.load(path, weights_only=True))
    for name, tensor in loss.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_copies_are_independent_and_averages_leave_the_bank_alone():
    loss = DensityContrastLoss(C, D, E, bank_capacity=12, rows_per_push=5, scales=(2, 3))
    model = torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2), "loss": loss})
    copied, averaged = copy.deepcopy(model), torch.optim.swa_utils.AveragedModel(model)
    before = snapshot(loss)
    labels = torch.arange(30) % C
    copied["loss"](random_rows(30, E), labels, random_rows(30, D))
    averaged.update_parameters(model)
    for name, tensor in loss.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    loss(random_rows(30, E), labels, random_rows(30, D))
    assert loss.bank.counts.any()
    assert not averaged.module["loss"].bank.counts.any()


@pytest.mark.parametrize("capacity", [12, 7])
def test_old_names_are_read(capacity):
    stored, _ = filled()
    state = snapshot(stored)
    state["pushes"], state["meaning"] = state.pop("num_pushes"), state.pop("config")
    bank = bank_of(capacity=capacity)
    assert bank.load_state_dict(state) == ([], [])
    assert int(bank.num_pushes) == len(COUNTS)
    assert torch.equal(bank.config, stored.config)
    expected = bank_of(capacity=capacity)
    expected.load_state_dict(stored.state_dict())
    assert torch.equal(bank.checksum(), expected.checksum())
    other = bank_of(metric="dot")
    with pytest.raises(RuntimeError, match="metric must be 'cosine' as in the stored bank"):
        other.load_state_dict(state)


def test_both_names_are_not_read():
    state = snapshot(filled()[0])
    state["pushes"] = state["num_pushes"]
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"pushes"'):
        bank_of().load_state_dict(state)
