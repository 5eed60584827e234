"""Perturbations of features, and the direction that virtual adversarial training finds."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from semi_supervised.methods import perturbations  # noqa: E402


def test_noise_is_the_same_for_all_images():
    maps = torch.rand(3, 4, 5, 6) + 0.1
    share = perturbations.noisy(maps) / maps - 1
    torch.testing.assert_close(share[0], share[1])
    assert 0.25 < share.abs().max() <= 0.3 + 1e-6
    assert len(share[0].unique()) > 100  # a number per channel and pixel


def test_the_strongest_pixels_are_dropped():
    maps = torch.rand(50, 3, 4, 5)
    found = perturbations.without_strongest(maps)
    shares = []
    for before, after in zip(maps, found, strict=True):
        strength, gone = before.mean(0), ~after.any(0)
        assert torch.equal(after, torch.where(gone, 0.0, before))
        shares.append(strength[~gone].max() / strength.max())
        assert strength[gone].min() > strength[~gone].max()
        assert gone.flatten()[strength.argmax()]
        assert strength[gone].min() > 0.7 * strength.max() - 1e-6
        assert gone[strength > 0.9 * strength.max() + 1e-6].all()
    assert len({round(float(share), 2) for share in shares}) > 10  # each image has its own limit


def test_a_window_of_each_class_is_cut_out():
    maps = torch.ones(40, 2, 12, 14)
    classes = torch.zeros(40, 12, 14, dtype=torch.long)
    classes[:, 1, 2], classes[:, 10, 11] = 1, 1  # a box of 10 x 10, most of it background
    places = set()
    for found in perturbations.cut_out(maps, classes, 3, background=0):
        rows, columns = (~found.any(0)).nonzero().unbind(1)
        box = rows.min(), rows.max(), columns.min(), columns.max()
        top, bottom, left, right = map(int, box)
        assert (bottom - top, right - left, len(rows)) == (3, 3, 16)  # 0.4 of each side
        assert 1 <= top <= bottom <= 10
        assert 2 <= left <= right <= 11
        places.add((top, left))
    assert {top for top, _ in places} == set(range(1, 8))
    assert {left for _, left in places} == set(range(2, 9))
    assert len(places) > 20  # rows and columns are drawn independently
    classes[:, :, :] = 2
    cut = perturbations.cut_out(maps, classes, 3, background=2)
    assert torch.equal(cut, maps)
    both = classes.clone()
    both[:, :4], both[:, 8:] = 0, 1
    gone = ~perturbations.cut_out(maps, both, 3, background=2).any(1)
    assert not gone[:, 4:8].any()
    assert gone[:, :4].any((1, 2)).all()
    assert gone[:, 8:].any((1, 2)).all()


def hessian_direction(maps, weight, drawn, size):
    """The direction for xi -> 0 of a linear decoder, in float64: W^T (diag(p) - p p^T) W d."""
    maps, weight, drawn = maps.double(), weight.double(), drawn.double()
    drawn = drawn / drawn.flatten(1).norm(dim=1)[:, None, None, None]
    p = F.conv2d(maps, weight).softmax(1)
    moved = F.conv2d(drawn, weight)
    changed = p * (moved - (p * moved).sum(1, keepdim=True))
    found = F.conv_transpose2d(changed, weight)
    return size * found / found.flatten(1).norm(dim=1)[:, None, None, None]


def cosines(a, b):
    return F.cosine_similarity(a.double().flatten(1), b.double().flatten(1))


@pytest.fixture
def published(monkeypatch):
    """Features of published channels and a quarter of the pixels, a decoder of 21 classes, and the first direction."""
    rng = torch.Generator().manual_seed(0)
    maps = torch.randn(1, 256, 65, 65, generator=rng).relu()
    weight = torch.randn(21, 256, 1, 1, generator=rng) / 16
    drawn = torch.randn(maps.shape, generator=rng)
    monkeypatch.setattr(perturbations.torch, "randn_like", lambda x: drawn.to(x.dtype))
    return maps, weight, drawn


def test_the_published_step_finds_rounding_noise_and_ours_the_direction(published):
    maps, weight, drawn = published
    options = {"size": 2.0, "per_pixel": False}
    expected = hessian_direction(maps, weight, drawn, 2.0)

    def found(xi, maps):
        cast = lambda x: F.conv2d(x, weight.to(x.dtype))
        return cosines(perturbations.adversarial(cast, maps, xi=xi, **options), expected).item()

    assert found(0.1, maps) > 0.999
    assert found(1e-6, maps) < 0.05
    assert found(1e-6, maps.double()) > 0.999  # so it is the precision, not the formula
    with torch.autocast("cpu", torch.bfloat16):
        assert found(0.1, maps) > 0.999  # it leaves autocast
        low = maps.bfloat16()
        expected = hessian_direction(low, weight, drawn, 2.0)
        assert found(0.1, low) > 0.999


def test_the_perturbation_has_the_given_norm_and_changes_most():
    maps = torch.randn(3, 4, 5, 6, requires_grad=True)
    weight = torch.randn(3, 4, 1, 1)
    decode = lambda x: F.conv2d(x, weight)
    find = lambda **options: perturbations.adversarial(decode, maps, xi=0.1, size=2.0, **options)
    whole, pixels = find(per_pixel=False), find(per_pixel=True)
    assert not whole.requires_grad
    torch.testing.assert_close(whole.flatten(1).norm(dim=1), torch.full((3,), 2.0))
    torch.testing.assert_close(pixels.norm(dim=1), torch.full((3, 5, 6), 2.0))

    def divergence(r):
        p, q = (decode(each).log_softmax(1) for each in (maps, maps + r))
        return F.kl_div(q, p, log_target=True, reduction="sum").item()

    random = torch.randn_like(maps)
    random *= 2 / random.flatten(1).norm(dim=1)[:, None, None, None]
    assert divergence(whole) > 2 * divergence(random)


def test_a_constant_decoder_has_no_direction():
    maps = torch.randn(2, 4, 3, 3)
    constant = lambda x: 0 * x
    found = perturbations.adversarial(constant, maps, xi=0.1, size=2.0, per_pixel=False)
    assert not found.any()
