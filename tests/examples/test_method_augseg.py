"""AugSeg: its loss against a loop in float64, labelled boxes, and colour operations against Pillow."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

for package in ("scipy", "sklearn", "tqdm", "torchmetrics", "yaml", "PIL"):
    pytest.importorskip(package)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from PIL import Image, ImageEnhance, ImageOps  # noqa: E402
from semi_supervised import colours, methods  # noqa: E402
from semi_supervised.methods import augseg  # noqa: E402
from semi_supervised.views import Views  # noqa: E402
from test_method_losses import LABELS, B, H, Loops, Step, W, pixels, softmax  # noqa: E402

DRAWN = 0.9, 0.0
OPTIONS = {"weight": 0.7, "threshold": 0.6, "operations": 0}


@pytest.fixture
def half_covered(monkeypatch):
    """The labelled boxes are the right parts of the images. The first image is covered, the second is not."""
    mask = torch.zeros(B, H, W, dtype=torch.bool)
    mask[..., 2:] = True
    monkeypatch.setattr(augseg, "boxes", lambda rng, *shape: mask)
    fixed = SimpleNamespace(random=lambda count: np.array(DRAWN))
    monkeypatch.setattr(Views, "generator", lambda views, purpose: fixed)
    return mask


def expected(step, mask):
    """The loss, pixel by pixel, and the number of labelled pixels that count."""
    loops, options = Loops(step), step.options
    strong, weak = loops.sources(step.views.strong), loops.judged[B:]
    classes, covered = step.data.num_classes, []
    for b in range(B):
        found = []
        for i in range(H):
            for j in range(W):
                p = softmax(weak[b, i, j])
                if loops.inside[b, i, j]:
                    entropy = -sum(x * math.log(x) for x in p)
                    found.append(p.max() * (1 - entropy / math.log(classes)))
        covered.append(DRAWN[b] >= sum(found) / len(found))
    total = count = labelled = 0
    for b, i, j in pixels():
        source = strong[b, i, j]
        logits = softmax(loops.logits[B + b, i, j])
        if source[0] != b and covered[source[0]] and mask[source]:
            label = loops.labels[source]
            if label != step.data.ignore_index:
                count, labelled = count + 1, labelled + 1
                total -= math.log(logits[label])
        elif loops.inside[source]:
            count, p = count + 1, softmax(weak[source])
            if p.max() >= options.threshold:
                total -= math.log(logits[p.argmax()])
    return loops.supervised(loops.logits) + options.weight * total / count, labelled


@pytest.mark.parametrize("case", LABELS)
def test_the_loss_is_that_of_the_formula(case, half_covered):
    step = Step("augseg", OPTIONS, case)
    found = step.losses()["total"].item()
    value, labelled = expected(step, half_covered)
    assert found == pytest.approx(value, rel=1e-12)
    assert labelled == 1


@pytest.mark.long
def test_gradients_are_those_of_the_loss():
    step = Step("augseg", OPTIONS)
    assert torch.autograd.gradcheck(lambda _: step.losses()["total"], [step.student])


def test_weight_zero_is_the_supervised_loss():
    losses = Step("augseg", {**OPTIONS, "weight": 0.0}).losses()
    assert losses["total"] == losses["supervised"] > 0


@pytest.mark.parametrize("operations", [0, 3])
def test_without_a_pixel_that_counts_the_loss_is_a_connected_zero(operations):
    step = Step("augseg", {**OPTIONS, "operations": operations}, ignored=True)
    losses = step.losses()
    assert all(loss == 0 for loss in losses.values())
    losses["total"].backward()
    assert not step.student.grad.any()


def mixed(step, certainty):
    """Mixes with the given certainties. Confidence 0.5 and label 1 mark the teacher's pixels."""
    confidence, label = torch.full((B, H, W), 0.5), torch.ones(B, H, W, dtype=torch.long)
    return step.method.mix(step.views, confidence, label, torch.tensor(certainty))


def test_uncertain_images_get_labelled_pixels(half_covered):
    step = Step("augseg", OPTIONS)
    batch, strong = step.views.batch, step.views.strong
    batch.labels.fill_(2)
    images, confidence, label, inside = mixed(step, [1.0, 1.0])  # above what is drawn
    plain = [strong.images, *strong.paste(torch.full((B, H, W), 0.5), torch.ones(B, H, W))]
    assert all(map(torch.equal, (images, confidence, label), plain))
    assert torch.equal(inside, strong.paste(batch.inside)[0])

    images, confidence, label, inside = mixed(step, [0.0, 1.0])
    numbers = torch.arange(B)[:, None, None].expand(B, H, W)
    from_first = (strong.paste(numbers)[0] == 0) & (numbers == 1)
    [visible] = strong.paste(half_covered)
    visible = visible & from_first
    assert visible.any()
    assert torch.equal(confidence == 1, visible)
    assert torch.equal(label == 2, visible)
    assert inside[visible].all()
    [pasted] = strong.paste(step.views.images)
    assert torch.equal(images.movedim(1, -1)[visible], pasted.movedim(1, -1)[visible])
    assert torch.equal(images.movedim(1, -1)[~visible], plain[0].movedim(1, -1)[~visible])


def test_an_image_keeps_its_own_pixels_outside_the_box(half_covered):
    """A labelled box lies in the pasted image only."""
    step = Step("augseg", OPTIONS)
    step.views.strong._boxes.clear()
    images, confidence, _, _ = mixed(step, [0.0, 0.0])
    assert torch.equal(images, step.views.strong.recoloured)
    assert (confidence == 0.5).all()


def test_an_evenly_uncertain_image_has_certainty_zero():
    sure = torch.tensor([1e3, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, H, W)
    logits = torch.cat((sure, torch.zeros(1, 3, H, W)))
    inside = torch.ones(2, H, W, dtype=torch.bool)
    assert torch.allclose(augseg.certainty(logits, inside), torch.tensor([1.0, 0.0]), atol=1e-6)
    logits[0, :, 0], logits[0, :, 1:] = 0, sure[0, :, 1:]
    inside[0, 0] = False  # borders do not count
    assert augseg.certainty(logits, inside)[0] == 1
    assert augseg.certainty(logits, inside & False).eq(0).all()


def test_boxes_have_the_sides_of_the_distribution():
    masks = augseg.boxes(np.random.default_rng(0), 500, 100, 200)
    assert masks.any(1).any(1).all()
    areas = masks.float().mean((1, 2))
    assert abs(areas.mean() - 0.2) < 0.02  # 1 - the mean of Beta(8, 2), rounded down to pixels
    assert 0.1 < areas.std() < 0.14
    rows = masks.any(2).sum(1)
    columns = masks.any(1).sum(1)
    assert torch.equal(rows * columns, masks.sum((1, 2)))
    assert ((columns - 2 * rows).abs() <= 2).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, r"augseg: threshold must lie in \[0, 1\], got 1\.5"),
        ({"operations": -1}, r"augseg: operations must be finite and not negative, got -1"),
        ({"operations": 1.5}, r"augseg: operations must be of type int, got 1\.5"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        methods.choose({"name": "augseg", **options})


# ---- colours --------------------------------------------------------------------------------------

PILLOW = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "saturation": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "solarize": lambda image, threshold: ImageOps.solarize(image, math.ceil(255 * threshold)),
}


def eight_bits(size=(300, 400)):  # many pixels, since Pillow equalizes in whole numbers
    return (np.random.default_rng(0).random((*size, 3)) ** 2 * 200 + 20).astype("u1")


@pytest.mark.parametrize("name", PILLOW)
def test_colours_are_those_of_pillow(name):
    given = eight_bits()
    image = torch.from_numpy(given).movedim(-1, 0) / 255
    operation, low, high = next(each for each in colours.OPERATIONS if each[0].__name__ == name)
    for strength in np.linspace(low, high, 5):
        found = operation(image, float(strength)).movedim(0, -1).numpy() * 255
        wanted = np.asarray(PILLOW[name](Image.fromarray(given), float(strength)))
        assert np.abs(found - wanted).max() < 1.51  # Pillow rounds, some steps twice


def test_hue_turns_and_blur_keeps_the_mean():
    image = torch.rand(3, 8, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(colours.hue(image, 0.0), image)
    torch.testing.assert_close(colours.hue(image, 1 / 3), image[[2, 0, 1]])
    torch.testing.assert_close(colours.hue(image, -1 / 3), image[[1, 2, 0]])
    grey = torch.full((3, 4, 5), 0.3)
    for operation, low, high in colours.OPERATIONS:
        changed = operation(grey, (low + high) / 2)
        assert changed.isfinite().all()
        if operation.__name__ not in ("brightness", "posterize", "solarize"):
            torch.testing.assert_close(changed, grey)
    spot = torch.zeros(3, 25, 25)
    spot[:, 12, 12] = 1
    blurred = colours.blur(spot, 2.0)
    torch.testing.assert_close(blurred.sum((1, 2)), torch.ones(3))
    distance = (torch.arange(25) - 12).square()
    variance = (blurred[0].sum(0) * distance).sum()
    assert 3.8 < variance < 4  # truncated at three sigma


def test_operations_depend_on_the_generator_only():
    images = torch.rand(4, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    draw = lambda seed: colours.random_operations(images, np.random.default_rng(seed), 3)
    first, drawn = draw(0), torch.rand(1)
    assert torch.equal(draw(0), first)
    assert not torch.equal(draw(1), first)
    assert not torch.equal(torch.rand(1), drawn)
    for seed in range(40):
        changed = draw(seed)
        assert changed.shape == images.shape
        assert 0 <= changed.min() <= changed.max() <= 1
