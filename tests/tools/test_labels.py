"""dgcl_ops.labels: nearest resize, entropy filter, schedules."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dgcl_ops import labels as L

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16]


class NoHostReads(TorchDispatchMode):
    """Fails on any op that must read a result, or its shape, from the device."""

    FORBIDDEN = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        assert not any(word in name for word in self.FORBIDDEN), name
        if name.startswith("aten::index"):
            tables = args[1] if isinstance(args[1], (list, tuple)) else ()
            assert not any(t is not None and t.dtype == torch.bool for t in tables), name
        return func(*args, **(kwargs or {}))


def random_logits(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, generator=generator)).to(dtype)


# ---------------------------------------------------------------------------- resize_labels


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60), st.integers(1, 60))
def test_resize_takes_the_floor_of_the_scaled_index(height, width, out_height, out_width):
    labels = torch.arange(2 * height * width).view(2, height, width)
    got = L.resize_labels(labels, (out_height, out_width))
    rows = [i * height // out_height for i in range(out_height)]
    columns = [j * width // out_width for j in range(out_width)]
    assert torch.equal(got, labels[:, rows][:, :, columns])


@pytest.mark.parametrize(
    ("before", "after"), [(513, 129), (512, 128), (769, 193), (801, 201), (64, 16), (31, 33)]
)
def test_resize_equals_torch_nearest(before, after):
    labels = torch.randint(0, 21, (1, before, before))
    expected = F.interpolate(labels[None].double(), size=(after, after), mode="nearest")[0]
    assert torch.equal(L.resize_labels(labels, (after, after)), expected.long())


def test_resize_is_exact_where_a_float32_scale_is_not():
    labels = torch.tensor([[10, 20]])
    assert L.resize_labels(labels, (1, 82))[0, 40:42].tolist() == [10, 20]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_resize_keeps_dtype_and_ignored_values(dtype):
    ignored = torch.iinfo(dtype).max
    labels = torch.tensor([[0, ignored], [1, 2]]).to(dtype)
    got = L.resize_labels(labels, (4, 4))
    assert got.dtype == dtype
    assert got.long()[0].tolist() == [0, 0, ignored, ignored]


def test_resize_keeps_large_ids():
    labels = torch.tensor([[[2**24 + 1, 2**62 + 1], [-1, 255]]])
    assert torch.equal(L.resize_labels(labels, (2, 2)), labels)


def test_resize_edges():
    labels = torch.arange(12).view(3, 4)
    assert L.resize_labels(labels, labels.shape).equal(labels)
    assert L.resize_labels(labels, [1, 1]).tolist() == [[0]]
    assert L.resize_labels(labels.t(), (4, 3)).equal(labels.t())  # not contiguous
    assert L.resize_labels(torch.zeros(0, 5, 5, dtype=torch.int64), (2, 3)).shape == (0, 2, 3)


@pytest.mark.parametrize(
    ("labels", "size", "error", "message"),
    [
        (torch.zeros(2, 2), (1, 1), TypeError, "labels must be an integer tensor, got torch.float"),
        ([[1]], (1, 1), TypeError, "labels must be an integer tensor, got list"),
        (
            torch.zeros(2, dtype=torch.int64),
            (1, 1),
            ValueError,
            r"labels must have 2 spatial dimensions, .* got \[2\]",
        ),
        (torch.zeros(2, 2, dtype=torch.int64), 4, TypeError, "sequence of ints .*, got 4"),
        (torch.zeros(2, 2, dtype=torch.int64), (1.0, 2), TypeError, "sequence of ints"),
        (torch.zeros(2, 2, dtype=torch.int64), (1, 0), ValueError, r"positive ints .* got \(1, 0"),
        (torch.zeros(2, 2, dtype=torch.int64), (), ValueError, "positive ints"),
        (torch.zeros(2, 0, dtype=torch.int64), (1, 1), ValueError, "at least one pixel"),
    ],
)
def test_resize_errors(labels, size, error, message):
    with pytest.raises(error, match=f"resize_labels: .*{message}"):
        L.resize_labels(labels, size)


# --------------------------------------------------------------------------- entropy_filter


def oracle_filter(logits, keep, ignore_index=255, valid=None):
    """The filter in float64 numpy, pixel by pixel."""
    scores = logits.double().numpy()
    batch, _, height, width = scores.shape
    entropy, labels = np.full((batch, height, width), np.nan), np.zeros((batch, height, width), int)
    for b, i, j in np.ndindex(batch, height, width):
        row = scores[b, :, i, j]
        labels[b, i, j] = int(np.argmax(row))
        if not np.isnan(row).any():
            probability = np.exp(row - row.max())
            probability /= probability.sum()
            positive = probability[probability > 0]
            entropy[b, i, j] = -(positive * np.log(positive)).sum()
    usable = ~np.isnan(entropy)
    if valid is not None:
        usable &= valid.numpy()
    if keep >= 1:
        kept = usable
    elif not usable.any():
        kept = np.zeros_like(usable)
    else:
        kept = usable & (entropy < np.quantile(entropy[usable], keep))
    return torch.from_numpy(np.where(kept, labels, ignore_index))


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.2, 1 / 3, 0.5, 0.8, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (1, 3, 1, 2), (2, 5, 7, 9), (3, 21, 8, 5)])
def test_filter_equals_the_oracle(shape, keep):
    logits = random_logits(*shape, seed=shape[1], dtype=torch.float64)
    got = L.entropy_filter(logits, keep)
    assert got.dtype == torch.int64
    assert torch.equal(got, oracle_filter(logits, keep))


def test_filter_by_hand():
    # Entropies grow with the index; the 0.5 quantile of 4 lies between the second and the third.
    scale = torch.tensor([8.0, 4.0, 2.0, 1.0])
    logits = torch.stack([torch.zeros(4), scale]).view(1, 2, 2, 2)
    assert L.entropy_filter(logits, 0.5).flatten().tolist() == [1, 1, 255, 255]
    # The quantile is a pixel's entropy (1/3 * 3 = 1), so that pixel is dropped, too: "at or above".
    assert L.entropy_filter(logits, 1 / 3).flatten().tolist() == [1, 255, 255, 255]


def test_filter_with_padding_and_nan_equals_the_oracle():
    logits = random_logits(2, 4, 6, 6, dtype=torch.float64)
    logits[0, 1, 2, 3] = math.nan
    logits[1, :, 0, 0] = -math.inf
    valid = torch.ones(2, 6, 6, dtype=torch.bool)
    valid[0, :2] = False
    hidden = logits.clone()
    hidden[0, :, :2] = random_logits(4, 2, 6, seed=9, dtype=torch.float64)
    for keep in (0.0, 0.3, 0.8, 1.0):
        got = L.entropy_filter(logits, keep, ignore_index=-1, valid_mask=valid)
        assert got[0, 2, 3] == got[1, 0, 0] == -1
        assert (got[0, :2] == -1).all()
        # Values in the padding change nothing.
        assert torch.equal(got, L.entropy_filter(hidden, keep, ignore_index=-1, valid_mask=valid))
        finite = logits.clone()
        finite[1, :, 0, 0] = math.nan  # how the oracle says "no distribution"
        assert torch.equal(got, oracle_filter(finite, keep, -1, valid))


def test_filter_masked_class_adds_no_entropy():
    logits = random_logits(1, 3, 4, 4, dtype=torch.float64)
    masked = torch.cat([logits, logits.new_full((1, 1, 4, 4), -math.inf)], dim=1)
    torch.testing.assert_close(L.prediction_entropy(masked), L.prediction_entropy(logits))
    assert torch.equal(L.entropy_filter(masked, 0.6), L.entropy_filter(logits, 0.6))


def test_entropy_values():
    assert L.prediction_entropy(torch.zeros(1, 7, 1, 1)).item() == pytest.approx(math.log(7))
    assert L.prediction_entropy(torch.tensor([0.0, 1e4]).view(1, 2, 1, 1)).item() == 0
    assert L.prediction_entropy(torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16)).dtype is torch.float
    assert L.prediction_entropy(torch.zeros(1, 3, 2, 2).double()).dtype is torch.float64


def test_filter_nothing_usable():
    nan = torch.full((1, 3, 2, 2), math.nan)
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    for keep in (0.0, 0.5, 1.0):
        assert (L.entropy_filter(nan, keep) == 255).all()
        assert (L.entropy_filter(random_logits(1, 3, 2, 2), keep, valid_mask=mask) == 255).all()
        assert L.entropy_filter(torch.zeros(0, 3, 2, 2), keep).shape == (0, 2, 2)


def test_filter_ties():
    # Every entropy ties with the threshold, so all are dropped. keep_fraction 1 keeps all.
    flat = torch.zeros(1, 2, 3, 3)
    assert (L.entropy_filter(flat, 0.8) == 255).all()
    assert (L.entropy_filter(flat, 1.0) == 0).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.integers(1, 6))
def test_filter_is_monotone_and_permutes(seed, first, second, side):
    logits = random_logits(2, 4, side, side, seed=seed)
    low, high = sorted((first, second))
    kept_low = L.entropy_filter(logits, low) != 255
    kept_high = L.entropy_filter(logits, high) != 255
    assert (kept_high | ~kept_low).all()  # a larger share keeps a superset
    assert abs(kept_high.sum().item() - high * kept_high.numel()) <= 1
    order = torch.randperm(side * side, generator=torch.Generator().manual_seed(seed))
    shuffled = logits.flatten(2)[..., order].view_as(logits)
    expected = L.entropy_filter(logits, high).flatten(1)[:, order].view(2, side, side)
    assert torch.equal(L.entropy_filter(shuffled, high), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_filter_dtypes_widen_first(dtype):
    logits = random_logits(2, 5, 9, 9, dtype=dtype)
    wide = logits if dtype == torch.float64 else logits.float()
    assert torch.equal(L.entropy_filter(logits, 0.7), L.entropy_filter(wide, 0.7))


def test_filter_keep_fraction_may_be_a_tensor_or_numpy():
    logits = random_logits(1, 5, 20, 20)
    expected = L.entropy_filter(logits, 0.75)
    assert torch.equal(L.entropy_filter(logits, torch.tensor(0.75)), expected)
    assert torch.equal(L.entropy_filter(logits, np.float32(0.75)), expected)
    assert torch.equal(L.entropy_filter(logits, torch.tensor(1)), logits.argmax(1))
    assert torch.equal(L.entropy_filter(logits, torch.tensor(7.0)), logits.argmax(1))
    assert (L.entropy_filter(logits, torch.tensor(-1.0)) == 255).all()
    assert (L.entropy_filter(logits, torch.tensor(math.nan)) == 255).all()


def test_filter_result_has_no_gradient_and_leaves_logits_alone():
    logits = random_logits(1, 3, 4, 4).requires_grad_()
    before = logits.detach().clone()
    labels = L.entropy_filter(logits, 0.5)
    assert not labels.requires_grad
    assert torch.equal(logits.detach(), before)


@pytest.mark.parametrize("keep", [0.6, 1.0, torch.tensor(0.6)])
def test_filter_reads_nothing_on_the_host(keep):
    logits = random_logits(2, 5, 6, 6)
    mask = torch.rand(2, 6, 6) > 0.2
    with NoHostReads():
        L.entropy_filter(logits, keep, valid_mask=mask)
        L.resize_labels(torch.zeros(2, 6, 6, dtype=torch.int64), (3, 3))
    # A FakeTensor has no values, so reading one, or a shape that depends on one, raises an error.
    with FakeTensorMode() as mode:
        fraction = mode.from_tensor(keep) if isinstance(keep, torch.Tensor) else keep
        L.entropy_filter(mode.from_tensor(logits), fraction, valid_mask=mode.from_tensor(mask))


def test_filter_and_resize_compile_without_breaks():
    def both(logits, keep, mask):
        labels = L.entropy_filter(logits, keep, valid_mask=mask)
        return L.resize_labels(labels, (3, 4))

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    mask = torch.rand(2, 6, 6) > 0.2
    for seed, keep in ((0, 0.6), (1, 0.7), (2, 0.8)):
        logits = random_logits(2, 5, 6, 6, seed=seed)
        assert torch.equal(compiled(logits, keep, mask), both(logits, keep, mask))
    counter = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, backend=counter)
    for keep in (0.6, 0.7, 0.8):
        compiled(logits, torch.tensor(keep), mask)
    assert counter.frame_count == 1  # a tensor keep_fraction never recompiles


def test_dynamic_shapes_and_a_traced_schedule_compile_without_breaks():
    def labels_at(logits, features, progress):
        labels = L.entropy_filter(logits, 1 - L.contrast_drop_fraction(progress))
        return L.resize_labels(labels, features.shape[-2:])

    compiled = torch.compile(labels_at, fullgraph=True, backend="aot_eager", dynamic=True)
    for side in (4, 5, 9):
        arguments = random_logits(2, 3, 2 * side, 3 * side), torch.zeros(2, 7, side, side), side / 9
        assert torch.equal(compiled(*arguments), labels_at(*arguments))


def test_quantile_equals_torch_where_torch_works():
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 3, 10, 31, 1000, 4097):
        values = torch.rand(size, generator=generator, dtype=torch.float64)
        usable = torch.ones(size, dtype=torch.bool)
        for fraction in (0.0, 0.1, 0.5, 0.77, 1.0):
            q = torch.tensor(fraction, dtype=torch.float64)
            expected = torch.quantile(values, q)
            torch.testing.assert_close(
                L._masked_quantile(values, q, usable), expected, rtol=1e-15, atol=0
            )


def test_quantile_above_two_to_the_24():
    # Consecutive float32 bit patterns are distinct, sorted values, so the answer needs no sort.
    # The position 2**24 + 1 is no float32 number, so a float32 position would land on a neighbour.
    count, position = 2**24 + 3, 2**24 + 1
    bits = torch.arange(count, dtype=torch.int32) + 0x3F000000
    values = bits.view(torch.float32).flip(0)
    fraction = torch.tensor(position / (count - 1), dtype=torch.float64)
    got = L._masked_quantile(values, fraction, torch.ones(count, dtype=torch.bool))
    assert got.view(torch.int32).item() == bits[position].item()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(1, 3, 2, 2).long()}, TypeError, "floating point tensor, got torch"),
        ({"logits": torch.zeros(3)}, ValueError, r"\[B, C, \*S\] or \[M, C\], got \[3\]"),
        ({"logits": torch.zeros(1, 0, 2, 2)}, ValueError, r"at least 2 classes, got \[1, 0"),
        ({"keep_fraction": 1.2}, ValueError, r"keep_fraction must lie in \[0, 1\], got 1.2"),
        ({"keep_fraction": math.nan}, ValueError, "keep_fraction must lie in"),
        ({"keep_fraction": "0.2"}, TypeError, "float or a 0-dim tensor, got '0.2'"),
        ({"keep_fraction": torch.zeros(1)}, ValueError, r"must be 0-dim, got \[1\]"),
        ({"ignore_index": 2}, ValueError, r"outside the classes \[0, 3\), got 2"),
        ({"ignore_index": 2.0}, TypeError, "ignore_index must be an int, got 2.0"),
        ({"valid_mask": torch.ones(1, 2, 2)}, TypeError, "bool tensor, got torch.float32"),
        ({"valid_mask": torch.ones(2, 2) > 0}, ValueError, r"shape \[1, 2, 2\], got \[2, 2\]"),
    ],
)
def test_filter_errors(change, error, message):
    arguments = {"logits": torch.zeros(1, 3, 2, 2), "keep_fraction": 0.5} | change
    with pytest.raises(error, match=f"entropy_filter: .*{message}"):
        L.entropy_filter(**arguments)


# -------------------------------------------------------------------------------- schedules


def test_drop_fractions_meet_the_paper_at_both_ends():
    assert [L.classification_drop_fraction(p) for p in (-1, 0, 1, 2)] == [0.2, 0.2, 0.0, 0.0]
    assert [L.contrast_drop_fraction(p) for p in (-1, 0, 1, 2)] == [0.8, 0.8, 0.1, 0.1]
    assert L.classification_drop_fraction(0.25) == pytest.approx(0.15)
    assert 1 - L.classification_drop_fraction(1.0) == 1  # keeps every pixel at the end


@pytest.mark.parametrize(
    ("progress", "share"),
    [(0, 0.8), (0.25, 0.6), (0.5, 0.4), (0.75, 0.2), (0.875, 0.1), (0.9, 0.1), (1, 0.1)],
)
def test_the_contrast_drops_a_tenth_at_least(progress, share):
    assert L.contrast_drop_fraction(progress) == pytest.approx(share, abs=1e-15)
    tensor = L.contrast_drop_fraction(torch.tensor(progress, dtype=torch.float64))
    assert tensor.item() == pytest.approx(share, abs=1e-15)


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(-1, 2))
def test_linear_schedule_stays_between_its_ends(start, end, progress):
    value = L.linear_schedule(start, end, progress)
    slack = 1e-12
    assert min(start, end) - slack <= value <= max(start, end) + slack
    tensor = L.linear_schedule(start, end, torch.tensor(progress, dtype=torch.float64))
    assert tensor.item() == pytest.approx(value, abs=1e-12)


def test_training_progress():
    assert L.training_progress(0, 1, 80) == 0
    assert L.training_progress(1, 1, 80) == 0
    assert L.training_progress(80, 1, 80) == L.training_progress(99, 1, 80) == 1
    assert L.training_progress(40.5, 1, 80) == pytest.approx(0.5)


def test_ema_decay():
    assert [L.ema_decay(step) for step in (0, 1, 3)] == [0, 0.5, 0.75]
    assert L.ema_decay(999) == pytest.approx(0.999)
    assert L.ema_decay(10**6) == 0.999
    assert L.ema_decay(10**6, maximum=0.9999) == 0.9999


def test_ema_decay_ramp_is_the_plain_mean():
    teacher, values = 0.0, [3.0, -1.0, 4.0, 1.0, 5.0]
    for step, value in enumerate(values):
        decay = L.ema_decay(step)
        teacher = decay * teacher + (1 - decay) * value
    assert teacher == pytest.approx(sum(values) / len(values))


def test_poly_learning_rate():
    assert L.poly_learning_rate(0.01, 0, 100) == 0.01
    assert L.poly_learning_rate(0.01, 50, 100) == pytest.approx(0.01 * 0.5**0.9)
    assert L.poly_learning_rate(0.01, 100, 100) == L.poly_learning_rate(0.01, 101, 100) == 0
    assert L.poly_learning_rate(0.01, 25, 100, power=1) == pytest.approx(0.0075)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: L.linear_schedule(0, 1, math.nan), "linear_schedule: progress .* got nan"),
        (lambda: L.training_progress(1, -1, 5), "warmup_epochs must not be negative, got -1"),
        (lambda: L.training_progress(1, 5, 5), "epochs must exceed warmup_epochs 5, got 5"),
        (lambda: L.ema_decay(-1), "ema_decay: step must not be negative, got -1"),
        (lambda: L.ema_decay(1, 1.5), r"ema_decay: maximum must lie in \[0, 1\], got 1.5"),
        (lambda: L.poly_learning_rate(1, -1, 5), "step must not be negative, got -1"),
        (lambda: L.poly_learning_rate(1, 1, 0), "total must be positive, got 0"),
        (lambda: L.poly_learning_rate(1, 1, 5, 0), "power must be positive, got 0"),
    ],
)
def test_schedule_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
