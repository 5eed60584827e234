"""The scores of `metrics` against scikit-learn, loop oracles, and relations that they must obey."""

import math

import numpy as np
import pytest
import sklearn.metrics as oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgcl_ops import metrics as M

SCORES = {
    "silhouette_score": (M.silhouette_score, oracle.silhouette_score),
    "calinski_harabasz_score": (M.calinski_harabasz_score, oracle.calinski_harabasz_score),
    "davies_bouldin_score": (M.davies_bouldin_score, oracle.davies_bouldin_score),
}
each_score = pytest.mark.parametrize("name", SCORES)

# float64 against float64: only the order of summation differs. We widen float32 and narrower inputs exactly, so the
# oracle gets the widened values, and the same bound holds.
TOLERANCE = {"rel": 1e-10, "abs": 1e-12}


def blobs(rows, width, classes, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    centres = 2 * torch.randn(classes, width, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return centres[labels] + spread * noise, labels


@each_score
@pytest.mark.parametrize(
    ("rows", "width", "classes"),
    [(3, 1, 2), (10, 2, 2), (33, 3, 5), (257, 16, 7), (1500, 8, 4), (2100, 3, 21), (60, 4, 45)],
)
def test_equals_scikit_learn(name, rows, width, classes):
    features, labels = blobs(rows, width, classes, seed=rows)
    labels[:2] = torch.tensor([0, 1])
    labels[2] = 0
    mine, theirs = SCORES[name]
    got = mine(features, labels)
    assert got.shape == ()
    assert got.dtype == torch.float64
    assert got.device == features.device
    expected = theirs(features.numpy(), labels.numpy())
    if name == "davies_bouldin_score" and classes == 45:
        # scikit-learn gives a row that equals its class mean a distance of 1e-8, not 0.
        assert got.item() == pytest.approx(expected, rel=1e-8)
    else:
        assert got.item() == pytest.approx(expected, **TOLERANCE)


def loop_scores(features, labels):
    """The three definitions, row by row and class by class."""
    n, classes = len(features), np.unique(labels)
    silhouettes = []
    for i in range(n):
        distance = np.sqrt(((features - features[i]) ** 2).sum(1))
        own = labels == labels[i]
        b = min(distance[labels == c].mean() for c in classes if c != labels[i])
        a = distance[own].sum() / max(own.sum() - 1, 1)
        silhouettes.append(0.0 if own.sum() == 1 or max(a, b) == 0 else (b - a) / max(a, b))
    parts = [features[labels == c] for c in classes]
    means = np.stack([part.mean(0) for part in parts])
    between = sum(
        len(p) * ((m - features.mean(0)) ** 2).sum() for p, m in zip(parts, means, strict=True)
    )
    within = sum(((p - m) ** 2).sum() for p, m in zip(parts, means, strict=True))
    spread = [np.sqrt(((p - m) ** 2).sum(1)).mean() for p, m in zip(parts, means, strict=True)]
    worst = [
        max(
            (spread[c] + spread[d]) / np.sqrt(((means[c] - means[d]) ** 2).sum())
            for d in range(len(classes))
            if d != c
        )
        for c in range(len(classes))
    ]
    return {
        "silhouette_score": np.mean(silhouettes),
        "calinski_harabasz_score": between * (n - len(classes)) / within / (len(classes) - 1),
        "davies_bouldin_score": np.mean(worst),
    }


@each_score
@pytest.mark.parametrize("spread", [1e-6, 1e-3, 1.0, 1e3])
def test_equals_the_loop_oracle_at_any_tightness(name, spread):
    features, labels = blobs(61, 5, 30, spread=spread)
    expected = loop_scores(features.numpy(), labels.numpy())[name]
    got = SCORES[name][0](features, labels).item()
    assert got == pytest.approx(expected, rel=1e-12 if spread >= 1e-3 else 1e-8)


@each_score
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_widened(name, dtype):
    features, labels = blobs(300, 12, 5)
    features = features.to(dtype)
    mine, theirs = SCORES[name]
    expected = theirs(features.double().numpy(), labels.numpy())
    assert mine(features, labels).item() == pytest.approx(expected, **TOLERANCE)


@each_score
def test_any_integer_labels(name):
    features, labels = blobs(120, 4, 3)
    mine = SCORES[name][0]
    expected = mine(features, labels)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16):
        assert mine(features, labels.to(dtype)) == expected
    names = torch.tensor([-(2**40), 2**62, 255])  # sparse ids keep the order 0, 1, 2 or not
    torch.testing.assert_close(mine(features, names[labels]), expected, rtol=1e-12, atol=1e-12)


@each_score
def test_ignored_rows_are_left_out_whatever_they_hold(name):
    features, labels = blobs(200, 4, 5)
    ignored = torch.arange(200) % 3 == 0
    marked = labels.masked_fill(ignored, 255)
    mine = SCORES[name][0]
    expected = mine(features[~ignored], labels[~ignored])
    assert mine(features, marked, ignore_index=255) == expected
    features[ignored] = math.nan
    assert mine(features, marked, ignore_index=255) == expected
    assert mine(features.t().contiguous().t(), marked, ignore_index=255) == expected


@each_score
def test_inputs_are_left_alone_and_carry_no_gradient(name):
    features, labels = blobs(50, 4, 3)
    before = features.clone()
    features.requires_grad_()
    assert not SCORES[name][0](features, labels).requires_grad
    assert torch.equal(features.detach(), before)


def test_singletons_and_duplicates_follow_scikit_learn():
    features = torch.tensor([[0.0], [0.0], [5.0], [5.0], [9.0]], dtype=torch.float64)
    for labels in ([0, 0, 1, 1, 2], [0, 1, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 1, 1, 1]):
        labels = torch.tensor(labels)
        for mine, theirs in SCORES.values():
            expected = theirs(features.numpy(), labels.numpy())
            assert mine(features, labels).item() == pytest.approx(expected, **TOLERANCE)


def test_all_rows_equal():
    features, labels = torch.ones(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
    assert M.silhouette_score(features, labels) == 0
    assert M.calinski_harabasz_score(features, labels) == 1
    assert M.davies_bouldin_score(features, labels) == 0


def test_silhouette_by_hand():
    # Two pairs on a line: a = 1; b = mean(10, 11) or mean(9, 10).
    features = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    got = M.silhouette_score(features, torch.tensor([0, 0, 1, 1]))
    assert got.item() == pytest.approx(((1 - 1 / 10.5) + (1 - 1 / 9.5)) / 2, abs=1e-15)


@each_score
def test_a_far_origin_does_not_cost_digits(name):
    # Exact in float64: the coordinates are multiples of 2**-20 and the shift a power of two.
    features, labels = blobs(400, 6, 4)
    features = (features * 2**20).round() / 2**20
    mine = SCORES[name][0]
    shifted = mine(features + 2.0**24, labels)
    assert shifted.item() == pytest.approx(mine(features, labels).item(), rel=1e-7)


@each_score
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.floats(0.1, 50))
def test_relations(name, seed, classes, scale):
    """Row order, class names, rotation, shift and scale do not change the scores."""
    features, labels = blobs(40, 3, classes, seed=seed)
    labels[:3] = torch.tensor([0, 1, 0])
    mine = SCORES[name][0]
    expected = mine(features, labels).item()
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(40, generator=generator)
    names = torch.randperm(classes, generator=generator)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    close = {"rel": 1e-9, "abs": 1e-11}
    assert mine(features[rows], labels[rows]).item() == pytest.approx(expected, **close)
    assert mine(features, names[labels]).item() == pytest.approx(expected, **close)
    moved = scale * (features @ rotation) + torch.tensor([3.0, -1.0, 2.0])
    assert mine(moved, labels).item() == pytest.approx(expected, **close)
    # With each row repeated, only the silhouette and C-H may change, because they count rows.
    twice = mine(features.repeat(2, 1), labels.repeat(2)).item()
    if name == "davies_bouldin_score":
        assert twice == pytest.approx(expected, **close)


@each_score
@pytest.mark.parametrize(
    ("features", "labels", "options", "error", "message"),
    [
        (torch.zeros(4, 2).long(), [0, 0, 1, 1], {}, TypeError, "features .* got torch.int64"),
        ([[1.0]], [0], {}, TypeError, "features must be a floating point tensor, got list"),
        (torch.zeros(4, 2), torch.zeros(4), {}, TypeError, "labels .* got torch.float32"),
        (torch.zeros(4, 2), torch.zeros(4) > 0, {}, TypeError, "labels .* got torch.bool"),
        (torch.zeros(4), [0, 0, 1, 1], {}, ValueError, r"shape \[N, D\], got \[4\]"),
        (torch.zeros(4, 2), [0, 1, 1], {}, ValueError, r"labels must have shape \[4\].*got \[3\]"),
        (torch.zeros(4, 2), [1, 1, 1, 1], {}, ValueError, "at least 2 classes .* got 1 classes in"),
        (torch.zeros(4, 2), [0, 1, 2, 3], {}, ValueError, "fewer classes than rows, got 4 classes"),
        (torch.zeros(0, 2), [], {}, ValueError, "got 0 classes in 0 rows"),
        (torch.zeros(4, 2), [7] * 4, {"ignore_index": 7}, ValueError, "got 0 classes in 0 rows"),
        (torch.zeros(4, 2), [0, 0, 7, 7], {"ignore_index": 7}, ValueError, "got 1 classes in 2 ro"),
        (torch.full((4, 2), math.nan), [0, 0, 1, 1], {}, ValueError, "features must be finite"),
        (torch.full((4, 2), math.inf), [0, 0, 1, 1], {}, ValueError, "features must be finite"),
    ],
)
def test_errors(name, features, labels, options, error, message):
    if isinstance(labels, list):
        labels = torch.tensor(labels, dtype=torch.int64)
    with pytest.raises(error, match=f"{name}: .*{message}"):
        SCORES[name][0](features, labels, **options)
