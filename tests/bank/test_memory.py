"""The memory bank: what a push stores, when densities are computed, what survives."""

import copy

import oracles
import pytest
import torch
from oracles import integers, random_rows

from dgcl_ops.memory import MemoryBank

C, D, E = 3, 5, 4
SMALL = {"capacity": 12, "rows_per_push": 4, "scales": (2, 3), "seed": 0}


def bank_of(**changes) -> MemoryBank:
    return MemoryBank(C, D, E, **{**SMALL, **changes})


def flat_batch(counts, seed=0, dtype=torch.float32):
    """features [M, D], projections [M, E], labels [M], with counts[c] rows of each class, mixed."""
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    rows = len(labels)
    return (
        random_rows(rows, D, seed=seed, dtype=dtype),
        random_rows(rows, E, seed=seed + 1, dtype=dtype),
        labels,
    )


def snapshot(bank: MemoryBank) -> dict:
    return {name: tensor.clone() for name, tensor in bank.state_dict().items()}


def assert_unchanged(bank: MemoryBank, before: dict) -> None:
    for name, tensor in bank.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def unit(rows):
    return torch.tensor([oracles.unit_row(row) for row in rows.double().tolist()])


def own_density(bank: MemoryBank, c: int):
    """Oracle density of each row of class c against the others."""
    rows = bank.features[c, : bank.counts[c]]
    return oracles.knn_density(rows, rows, bank.scales, bank.metric, exclude_self=True)


# ---- what a push stores -----------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_a_push_stores_rows_of_each_class(metric):
    bank = bank_of(metric=metric)
    features, projections, labels = flat_batch([3, 0, 9])
    bank.push(features, projections, labels)
    assert bank.counts.tolist() == [3, 0, 4] == bank.heads.tolist()
    for c in range(C):
        for i in range(bank.counts[c]):
            source = (projections == bank.projections[c, i]).all(1).nonzero().item()
            assert labels[source] == c
            expected = (
                unit(features[source : source + 1])[0] if metric == "cosine" else features[source]
            )
            oracles.assert_close(bank.features[c, i], expected.double())
    assert not bank.features[1].any()
    assert not bank.features[0, 3:].any()


def test_which_rows_are_drawn_is_random():
    bank = bank_of(capacity=1, rows_per_push=1, scales=(1,))
    features, projections, labels = flat_batch([8, 0, 0])
    seen = torch.zeros(8)
    for _ in range(400):
        bank.push(features, projections, labels)
        seen += (projections == bank.projections[0, 0]).all(1)
    assert int(seen.sum()) == 400
    assert float(((seen - 50) ** 2 / 50).sum()) < 30  # 7 degrees of freedom


def test_maps_and_flat_rows_are_the_same():
    features, projections = random_rows(2, D, 3, 4), random_rows(2, E, 3, 4, seed=1)
    labels = torch.arange(24).view(2, 3, 4) % 4
    labels[labels == 3] = 255
    maps, flat = bank_of(), bank_of()
    for _ in range(3):
        maps.push(features, projections, labels)
        flat.push(
            features.permute(0, 2, 3, 1).reshape(24, D),
            projections.permute(0, 2, 3, 1).reshape(24, E),
            labels.reshape(24),
        )
    assert_unchanged(maps, snapshot(flat))


def test_rings_wrap():
    bank = bank_of(capacity=6)
    for seed in range(4):
        features, projections, labels = flat_batch([2, 1, 0], seed=10 * seed)
        bank.push(features, projections, labels)
    assert bank.counts.tolist() == [6, 4, 0]
    assert bank.heads.tolist() == [2, 4, 0]
    # The last push is in slots 0 and 1, in place of the first one.
    for row in bank.projections[0, :2]:
        assert (projections == row).all(1).any()


def test_a_push_larger_than_the_ring_keeps_its_last_rows():
    bank = bank_of(capacity=4, rows_per_push=9)
    features, projections = random_rows(C, 9, D), random_rows(C, 9, E, seed=1)
    bank.push_rows(features, projections, random_rows(C, 9, seed=2), integers([9, 3, 0]))
    assert bank.counts.tolist() == [4, 3, 0]
    assert bank.heads.tolist() == [1, 3, 0]
    assert torch.equal(bank.projections[0], projections[0, [8, 5, 6, 7]])


def test_unusable_pixels_are_skipped():
    bank = bank_of()
    features, projections, labels = flat_batch([2, 2, 2])
    features[labels == 0] = torch.inf
    projections[(labels == 1).nonzero()[0], 2] = torch.nan
    labels[labels == 2] = 255
    bank.push(features, projections, labels)
    assert bank.counts.tolist() == [0, 1, 0]
    assert all(tensor.isfinite().all() for tensor in bank.state_dict().values())


def test_an_empty_push_changes_nothing():
    bank = bank_of()
    before = snapshot(bank)
    bank.push(torch.zeros(0, D), torch.zeros(0, E), torch.zeros(0, dtype=torch.int64))
    assert_unchanged(bank, before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"features": torch.zeros(4, D + 1)},
            ValueError,
            r"features must have shape \[B, 5, \*S\] with 1 to 6 spatial dimensions, or \[M, 5\]",
        ),
        (
            {"projections": torch.zeros(4, E + 1)},
            ValueError,
            r"projections must have shape \[B, 4, \*S\] with 1 to 6 spatial dimensions, or \[M, 4\]",
        ),
        (
            {"features": torch.zeros(5, D)},
            ValueError,
            "features must have the size of the projections",
        ),
        (
            {"labels": torch.zeros(5, dtype=torch.int64)},
            ValueError,
            r"labels must have shape \[4\], one for each pixel of the maps, got \[5\]",
        ),
        (
            {"labels": torch.zeros(4)},
            TypeError,
            "labels must be an integer tensor, got torch.float32",
        ),
        (
            {"labels": torch.zeros(4, dtype=torch.bool)},
            TypeError,
            "labels must be an integer tensor, got torch.bool",
        ),
        (
            {"features": torch.zeros(4, D, dtype=torch.int64)},
            TypeError,
            "features must have a float dtype",
        ),
        (
            {"labels": integers([0, 1, 2, 3])},
            RuntimeError,
            r"^MemoryBank.push: labels must lie in \[0, 3\)",
        ),
        (
            {"features": torch.zeros(4, D, device="meta")},
            ValueError,
            "features must be on the bank's device",
        ),
    ],
)
def test_a_bad_push_writes_nothing(change, error, message):
    bank = bank_of()
    bank.push(*flat_batch([4, 4, 4]))
    before = snapshot(bank)
    good = {
        "features": torch.ones(4, D),
        "projections": torch.ones(4, E),
        "labels": integers([0, 1, 2, 2]),
    }
    with pytest.raises(error, match=message):
        bank.push(**{**good, **change})
    assert_unchanged(bank, before)


def test_rows_that_do_not_fit_are_not_half_written():
    bank = bank_of()
    before = snapshot(bank)
    with pytest.raises(RuntimeError, match="memory_push"):
        bank.push_rows(
            torch.ones(C, 4, D), torch.ones(C, 4, E + 1), torch.ones(C, 4), integers([4, 4, 4])
        )
    assert_unchanged(bank, before)


# ---- densities --------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_density_at_insertion_is_that_against_the_bank_before(metric, dtype):
    bank = bank_of(metric=metric, dtype=dtype, rows_per_push=6)
    bank.push(*flat_batch([4, 6, 2]))
    before = snapshot(bank)
    features, projections, labels = flat_batch([3, 3, 3], seed=5)
    bank.push(features, projections, labels)
    for c in (0, 1):  # class 2 had too few rows
        old = before["features"][c, : before["counts"][c]]
        for slot in range(int(before["counts"][c]), int(bank.counts[c])):
            stored = bank.projections[c, slot]
            source = (projections.to(dtype) == stored).all(1).nonzero().item()
            expected = oracles.knn_density(features[source : source + 1], old, bank.scales, metric)[
                0
            ]
            oracles.assert_close(bank.density[c, slot], expected, magnitude=10.0)
    assert bank.density.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_the_push_that_makes_a_class_ready_computes_all_its_densities():
    bank = bank_of(rows_per_push=2, min_rows=4)
    bank.push(*flat_batch([2, 1, 0]))
    assert not bank.density.any()
    bank.push(*flat_batch([2, 2, 2], seed=7))
    assert bank.ready().tolist() == [True, False, False]
    oracles.assert_close(bank.density[0, :4], own_density(bank, 0))
    assert not bank.density[1:].any()
    assert not bank.density[0, 4:].any()
    # Only then: later pushes do not change the densities of old rows.
    kept = bank.density[0, :4].clone()
    bank.push(*flat_batch([2, 0, 0], seed=9))
    assert torch.equal(bank.density[0, :4], kept)
    assert bank.density[0, 4:6].all()


def test_without_backfill_early_rows_keep_density_0():
    bank = bank_of(rows_per_push=2, min_rows=4, backfill=False)
    for seed in range(3):
        bank.push(*flat_batch([2, 0, 0], seed=seed))
    assert not bank.density[0, :4].any()
    assert bank.density[0, 4:6].all()


def test_densities_are_refreshed_every_so_many_pushes():
    bank = bank_of(rows_per_push=3, refresh_every=2, backfill=False)
    bank.push(*flat_batch([3, 2, 1]))
    assert not bank.density.any()
    bank.push(*flat_batch([3, 2, 1], seed=3))
    for c in (0, 1):
        oracles.assert_close(bank.density[c, : bank.counts[c]], own_density(bank, c))
    assert not bank.density[2].any()  # two rows: not ready
    kept = bank.density.clone()
    bank.push(*flat_batch([3, 2, 1], seed=6))
    assert torch.equal(bank.density[0, :6], kept[0, :6])
    bank.push(*flat_batch([3, 2, 1], seed=9))
    for c in range(C):
        oracles.assert_close(bank.density[c, : bank.counts[c]], own_density(bank, c))


def test_density_of_leaves_out_what_is_not_ready_or_not_wanted():
    bank = bank_of(rows_per_push=6)
    bank.push(*flat_batch([6, 6, 2]))
    queries, offsets = random_rows(9, D, seed=3), integers([0, 3, 6, 9])
    density = bank.density_of(queries, offsets)
    assert density[:6].all()
    assert not density[6:].any()
    partial = bank.density_of(queries, offsets, classes=torch.tensor([False, True, True]))
    assert not partial[:3].any()
    assert torch.equal(partial[3:], density[3:])


# ---- state ------------------------------------------------------------------------------------------


def test_ready_and_reset():
    bank = bank_of()
    bank.push(*flat_batch([4, 2, 0]))
    assert bank.min_rows == 3
    assert bank.ready().tolist() == [True, False, False]
    assert bank.ready(2).tolist() == [True, True, False]
    assert bank.valid_slots().sum(1).tolist() == [4, 2, 0]
    empty = bank_of().checksum()
    assert bank.checksum() != empty
    bank.reset()
    assert bank.checksum() == empty
    assert int(bank.num_pushes) == 0
    assert bank.rng_state.tolist() == [0, 1]  # continues, so a reset bank draws other rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_checksum_sees_every_bit_and_the_order(dtype):
    bank = bank_of(dtype=dtype)
    bank.push(*flat_batch([4, 4, 4]))
    reference = bank.checksum()
    assert reference.dtype == torch.int64
    assert reference.dim() == 0
    assert copy.deepcopy(bank).checksum() == reference
    word = {8: torch.int64, 4: torch.int32, 2: torch.int16}
    for name in ("features", "projections", "density", "counts", "heads"):
        changed = copy.deepcopy(bank)
        tensor = getattr(changed, name)
        view = tensor.view(word[tensor.element_size()]).reshape(-1)
        view[-1] ^= 1  # the lowest bit of the last element
        assert changed.checksum() != reference, name
    swapped = copy.deepcopy(bank)
    swapped.features[0, [0, 1]] = swapped.features[0, [1, 0]]
    assert swapped.checksum() != reference
    rotated = copy.deepcopy(bank)
    rotated.projections.copy_(rotated.projections.roll(1, 0))
    assert rotated.checksum() != reference


def test_state_dict_holds_everything(tmp_path):
    bank = bank_of()
    bank.push(*flat_batch([4, 3, 2]))
    torch.save(bank.state_dict(), tmp_path / "bank.pt")
    other = bank_of(seed=99)
    other.load_state_dict(torch.load(tmp_path / "bank.pt", weights_only=True))
    for seed in (3, 4):
        bank.push(*flat_batch([5, 5, 5], seed=seed))
        other.push(*flat_batch([5, 5, 5], seed=seed))
    assert_unchanged(other, snapshot(bank))


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.double(),
        lambda m: m.to(torch.float16),
        lambda m: m.to("cpu", torch.bfloat16),
    ],
)
def test_casts_pass_the_bank_by(cast):
    bank = bank_of()
    bank.push(*flat_batch([4, 4, 4]))
    before = snapshot(bank)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), bank)
    cast(model)
    assert model[0].weight.dtype != torch.float32
    assert_unchanged(bank, before)
    assert {tensor.dtype for tensor in bank.buffers()} == {torch.float32, torch.int64}


def test_moves_reach_the_bank():
    bank = bank_of().to("meta", torch.float16)
    assert {str(tensor.device) for tensor in bank.buffers()} == {"meta"}
    assert bank.features.dtype == torch.float32
    assert bank.to_empty(device="cpu").features.device.type == "cpu"
    assert bank_of(device="meta").features.device.type == "meta"


def test_data_parallel_is_refused():
    with pytest.raises(RuntimeError, match="DataParallel is not supported"):
        bank_of()._replicate_for_data_parallel()


def test_autocast_changes_nothing():
    plain, cast = bank_of(), bank_of()
    for seed in (0, 3):
        batch = flat_batch([4, 4, 4], seed=seed)
        plain.push(*batch)
        with torch.autocast("cpu", torch.bfloat16):
            cast.push(*batch)
    assert_unchanged(cast, snapshot(plain))


def test_no_gradient_enters_the_bank():
    bank = bank_of()
    features, projections, labels = flat_batch([4, 4, 4])
    bank.push(features.requires_grad_(), projections.requires_grad_(), labels)
    assert not any(tensor.requires_grad for tensor in bank.buffers())


# ---- arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes must be a positive integer, got 0"),
        ({"num_classes": 2.5}, TypeError, "num_classes must be an integer, got 2.5"),
        ({"feature_dim": -1}, ValueError, "feature_dim must be a positive integer, got -1"),
        ({"projection_dim": 0}, ValueError, "projection_dim must be a positive integer"),
        ({"capacity": 0}, ValueError, "capacity must be a positive integer"),
        ({"capacity": True}, TypeError, "capacity must be an integer, got True"),
        ({"rows_per_push": 0}, ValueError, "rows_per_push must be a positive integer"),
        ({"metric": "cos"}, ValueError, "metric must be one of cosine, dot, l2, got 'cos'"),
        ({"scales": ()}, ValueError, "scales must be positive integers"),
        ({"scales": (4, 0)}, ValueError, "scales must be positive integers"),
        ({"scales": (4, 1.5)}, TypeError, "each of scales must be an integer, got 1.5"),
        ({"dtype": torch.int32}, ValueError, "dtype must be one of"),
        ({"min_rows": 0}, ValueError, "min_rows must be a positive integer"),
        ({"min_rows": 13}, ValueError, "min_rows must be at most capacity 12, got 13"),
        ({"refresh_every": -1}, ValueError, "refresh_every must be at least 0, got -1"),
        ({"placement": "shared"}, ValueError, "placement must be one of .*, got 'shared'"),
        ({"process_group": object()}, TypeError, "process_group must be a torch.distributed"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = dict(num_classes=C, feature_dim=D, projection_dim=E, **SMALL)
    with pytest.raises(error, match=f"MemoryBank: {message}"):
        MemoryBank(**{**arguments, **change})


def test_defaults():
    bank = MemoryBank(2, 3)
    assert bank.projections.shape == (2, 10_000, 3)
    assert bank.min_rows == 32
    assert bank.refresh_every == 0
    assert bank.backfill
    assert MemoryBank(2, 3, capacity=5).min_rows == 5


def test_rows_without_density_must_not_look_dense():
    with pytest.raises(ValueError, match="backfill=False needs metric='cosine', got metric='l2'"):
        MemoryBank(2, 3, metric="l2", backfill=False)
