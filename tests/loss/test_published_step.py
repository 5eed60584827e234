"""The loss in paper mode against the published step, an independent implementation, with irrelevant random draws.

Every class has fewer pixels than candidates and pushed rows, so all of them are used. A ring holds whole pushes, so the
order of rows inside a push does not matter. Only the draw of the negatives remains. With at most `num_negatives` pixels
of other classes nothing is drawn. With more, two constructions make the draw irrelevant: classes in orthogonal
subspaces, and equal negatives.
"""

import sys
from pathlib import Path

import oracles
import pytest
import torch
from oracles import integers, random_rows

from dgcl_ops.losses import DensityContrastLoss

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import published  # noqa: E402
from published import PublishedStep  # noqa: E402

B, C, D, H, W = 2, 4, 7, 6, 8
BLOCK = 3  # dimensions of each class's subspace
E = C * BLOCK
COUNTS = (20, 6, 8, 5)  # pixels per class and batch; all other pixels are ignored
SETTING = {"scales": (2, 4, 8), "num_anchors": 4, "num_keys": 3, "num_negatives": 11}
# Both use float64, but sum in different orders.
TOLERANCE = 1e-12


def labels_of(seed):
    labels = torch.full((B * H * W,), 255)
    labels[: sum(COUNTS)] = torch.repeat_interleave(torch.arange(C), integers(list(COUNTS)))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return labels[order].view(B, H, W)


def batch_of(seed, present=range(C)):
    """Draws projections: class c in block c, ignored pixels anywhere."""
    labels = labels_of(seed)
    labels = torch.where(torch.isin(labels, integers(list(present))), labels, 255)
    block = torch.arange(E) // BLOCK
    inside = (labels[..., None] == block) | (labels[..., None] == 255)
    projections = random_rows(B, H, W, E, seed=seed, dtype=torch.float64) * inside
    features = random_rows(B, D, H, W, seed=seed + 500, dtype=torch.float64).abs()
    return projections.permute(0, 3, 1, 2).contiguous(), labels, features


def both(capacity, excluded, density_rows, **changes):
    ours = DensityContrastLoss.paper(
        "voc",
        C,
        D,
        E,
        **SETTING | changes,
        bank_capacity=capacity,
        rows_per_push=20,
        max_candidates=20,
        exclude_classes=excluded,
        min_rows=density_rows + 1,
        bank_dtype=torch.float64,
        seed=0,
    )
    theirs = PublishedStep(
        C,
        D,
        E,
        **SETTING | changes,
        capacity=capacity,
        rows_per_push=20,
        max_candidates=20,
        excluded=excluded,
        density_rows=density_rows,
        dtype=torch.float64,
    )
    return ours, theirs


def gradient_of(step, projections, labels, features):
    leaf = projections.clone().requires_grad_()
    value = step(leaf, labels, features)
    value.backward()
    return value.detach(), leaf.grad


def sorted_rows(rows):
    """Compares the rows as sets, sorted by a feature, since their order inside a push is random."""
    return rows[rows[:, -2].argsort()]


def assert_same_banks(ours, theirs):
    for c in theirs.classes:
        stored = int(ours.bank.counts[c])
        assert stored == len(theirs.density[c])
        mine = [ours.bank.projections[c, :stored], ours.bank.features[c, :stored]]
        mine = torch.cat([*mine, ours.bank.density[c, :stored, None]], dim=1)
        unit = torch.nn.functional.normalize(theirs.features[c], dim=1)
        other = torch.cat([theirs.projections[c], unit, theirs.density[c][:, None]], dim=1)
        difference = sorted_rows(mine) - sorted_rows(other)
        assert difference.numel() == 0 or float(difference.abs().max()) <= TOLERANCE


def test_orthogonal_classes():
    # 120 rows are 6, 20, 15 or 24 whole pushes, depending on the class. The loss starts when the rarest class is full.
    ours, theirs = both(capacity=120, excluded=(0,), density_rows=8)
    ours_started = []
    for step in range(30):
        projections, labels, features = batch_of(step)
        value, gradient = gradient_of(ours, projections, labels, features)
        expected, expected_gradient = gradient_of(theirs, projections, labels, features)
        assert abs(float(value - expected)) <= TOLERANCE
        # The draw decides which negatives push an anchor out of its own subspace. Inside it there is no draw.
        block = torch.arange(E) // BLOCK
        own = (labels[:, None] == block[:, None, None]).expand_as(gradient)
        assert float((gradient - expected_gradient)[own].abs().max()) <= TOLERANCE
        theirs.update(projections, labels, features)
        assert_same_banks(ours, theirs)
        ours_started.append(float(value) > 0)
    assert ours_started == [step >= 24 for step in range(30)]


def test_all_other_pixels():
    """Without a draw, value and gradient are comparable for any projections."""
    ours, theirs = both(capacity=120, excluded=(0,), density_rows=8, num_negatives=512)
    for step in range(28):
        _, labels, features = batch_of(step)
        projections = random_rows(B, E, H, W, seed=step + 900, dtype=torch.float64)
        value, gradient = gradient_of(ours, projections, labels, features)
        expected, expected_gradient = gradient_of(theirs, projections, labels, features)
        assert abs(float(value - expected)) <= TOLERANCE
        assert float((gradient - expected_gradient).abs().max()) <= TOLERANCE
        assert bool(gradient.any()) == (step >= 24)
        theirs.update(projections, labels, features)


@pytest.mark.parametrize("class_index", [1, 2, 3])
def test_equal_negatives(class_index):
    # One class, and an excluded class with equal projections: the whole gradient is comparable.
    ours, theirs = both(capacity=120, excluded=(0,), density_rows=8)
    for step in range(24):
        batch = batch_of(step)
        ours(*batch)
        theirs.update(*batch)
    assert theirs.started()
    for step in range(24, 28):
        projections, labels, features = batch_of(step, present=(0, class_index))
        mixed = random_rows(
            B, E, H, W, seed=step, dtype=torch.float64
        )  # no longer in their subspaces
        constant = random_rows(E, seed=99, dtype=torch.float64)[None, :, None, None]
        projections = torch.where((labels == 0)[:, None], constant, mixed)
        value, gradient = gradient_of(ours.eval(), projections, labels, features)
        expected, expected_gradient = gradient_of(theirs, projections, labels, features)
        assert abs(float(value - expected)) <= TOLERANCE * float(expected)
        assert float((gradient - expected_gradient).abs().max()) <= TOLERANCE
        assert gradient.any()


def test_published_gradient_is_divided_by_the_world_size():
    one, four = (
        DensityContrastLoss.paper("voc", C, D, E, world_size=w, bank_capacity=1_001).grad_scale
        for w in (1, 4)
    )
    assert one == 4 * four


def test_before_the_start_the_published_step_is_a_connected_zero():
    _, theirs = both(capacity=8, excluded=(), density_rows=4)
    value, gradient = gradient_of(theirs, *batch_of(0))
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("scales", [(8, 16, 32), (5,), (40, 1)])
@pytest.mark.parametrize("function", ["published_density", "matmul_topk_density"])
def test_published_density_is_the_same_density(device, function, scales):
    queries = random_rows(9, 17, dtype=torch.float64, seed=1, device=device)
    bank = random_rows(40, 17, dtype=torch.float64, seed=2, device=device)
    got = getattr(published, function)(queries, bank, scales)
    oracles.assert_close(got, oracles.knn_density(queries.cpu(), bank.cpu(), scales))
