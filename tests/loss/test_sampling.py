"""Numbers below a bound, class segments and tables, against loops."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from oracles import chi_square, integers, random_word

from dgcl_ops import _random, ops
from dgcl_ops._step import sampling

# Five standard deviations. Seeds are fixed, so nothing here depends on luck, and a fault is far outside.
SIGMAS = 5.0
INTEGER_DTYPES = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64),
)


def state(seed: int, step: int = 0) -> torch.Tensor:
    return integers([seed, step])


# ---- random numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, 2**31 - 1])
def test_ranks_lie_in_range_and_are_even(size):
    bits = ops.random_bits(state(5), 0, 1 << 16)
    ranks = _random.random_below(bits, integers(size))
    assert int(ranks.min()) >= 0
    assert int(ranks.max()) < max(size, 1)
    if 1 < size <= 1000:
        assert abs(chi_square(ranks, size)) < SIGMAS


def test_ranks_reach_both_ends():
    bits = integers([0, 2**32 - 1])
    assert _random.random_below(bits, integers(7)).tolist() == [0, 6]
    assert _random.random_below(bits, integers(2**31 - 1)).tolist() == [0, 2**31 - 2]


def test_seed_comes_from_the_global_generator_if_none_is_given():
    torch.manual_seed(4)
    first = _random.new_rng_state(None)
    assert not torch.equal(first, _random.new_rng_state(None))
    torch.manual_seed(4)
    assert torch.equal(first, _random.new_rng_state(None))
    assert _random.new_rng_state(9).tolist() == [9, 0]


# ---- segments ---------------------------------------------------------------------------------------


def segments_of(labels, num_classes, ignore_index=255, usable=None, seed=0, step=0):
    bits = ops.random_bits(state(seed, step), 0, labels.numel())
    if usable is None:
        usable = torch.ones(labels.numel(), dtype=torch.bool)
    return sampling.partition(labels, usable, bits, num_classes, ignore_index)


@given(
    st.lists(st.sampled_from([0, 1, 2, 3, 255, -1]), min_size=1, max_size=60),
    st.sampled_from([255, -1, 2]),
    st.integers(0, 1000),
)
def test_partition(labels, ignore_index, seed):
    labels = [ignore_index if c in (255, -1) else c for c in labels]
    usable = [(seed >> (i % 9)) % 2 == 0 or i % 3 == 0 for i in range(len(labels))]
    segments = segments_of(integers(labels), 4, ignore_index, torch.tensor(usable), seed)
    assert sorted(segments.pixels.tolist()) == list(range(len(labels)))
    ignored = labels.count(ignore_index)
    unusable = sum(not use and c != ignore_index for c, use in zip(labels, usable, strict=True))
    assert segments.skipped.tolist() == [ignored, unusable, 0]
    starts = starts_of(segments)
    for c in range(4):
        begin, end = starts[c : c + 2].tolist()
        own = [i for i, label in enumerate(labels) if label == c != ignore_index and usable[i]]
        assert sorted(segments.pixels[begin:end].tolist()) == own
        assert segments.counts[c] == len(own)
        drawn = [random_word(seed, 0, 0, i) for i in segments.pixels[begin:end].tolist()]
        assert drawn == sorted(drawn)


@pytest.mark.parametrize("dtype", INTEGER_DTYPES)
def test_partition_takes_any_integer_type(dtype):
    labels = torch.tensor([[2, 0], [1, 2]], dtype=dtype)
    segments = segments_of(labels, 3, ignore_index=-1)
    assert segments.counts.tolist() == [1, 1, 2]
    assert segments.pixels[:2].tolist() == [1, 2]


def test_a_stray_label_is_an_error_that_names_the_users_ignore_index():
    with pytest.raises(RuntimeError, match=r"\[0, 3\) or equal ignore_index 9, got 7"):
        segments_of(integers([0, 7]), 3, ignore_index=9)
    # An unusable pixel is not checked.
    segments = segments_of(integers([0, 7]), 3, 9, torch.tensor([True, False]))
    assert segments.counts.tolist() == [1, 0, 0]
    assert segments.skipped.tolist() == [0, 1, 0]


def test_order_inside_a_class_is_random():
    labels = torch.zeros(16, dtype=torch.int64)
    first = torch.stack([segments_of(labels, 1, step=i).pixels[0] for i in range(4096)])
    assert abs(chi_square(first, 16)) < SIGMAS


def starts_of(segments):
    """[C + 1]: where each class begins, and the end of the last."""
    return torch.nn.functional.pad(segments.counts.cumsum(0), (1, 0))


def negatives_of(segments, bits):
    return sampling.Table(*ops.draw_negatives(segments.pixels, segments.counts, bits))


# ---- tables -----------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=40),
    st.lists(st.integers(0, 12), min_size=4, max_size=4),
    st.integers(0, 100),
)
def test_leading_rows_and_orders(labels, limits, seed):
    labels = [255 if c == 4 else c for c in labels]
    segments = segments_of(integers(labels), 4, seed=seed)
    size = min(len(labels), sum(limits)) or 1
    rows = sampling.leading_pixels(segments, integers(limits), size)
    values = (ops.random_bits(state(seed), 9, size) % 3).float()  # many equal ones
    order = sampling.order_by(values, rows)
    assert sorted(order.tolist()) == list(range(size))
    counts = rows.offsets.diff()
    width = min(5, size)
    front, back = (
        ops.class_table(rows.pixels, rows.offsets, order, width, last) for last in (False, True)
    )
    starts, at = starts_of(segments), 0
    for c in range(4):
        begin, end = starts[c : c + 2].tolist()
        own = segments.pixels[begin:end].tolist()[: limits[c]]
        assert rows.offsets[c] == at
        assert rows.pixels[at : at + len(own)].tolist() == own
        assert rows.classes[at : at + len(own)].tolist() == [c] * len(own)
        ranked = sorted(range(at, at + len(own)), key=lambda i: (float(values[i]), i))
        assert order[at : at + len(own)].tolist() == ranked
        shown = min(len(own), 5)
        assert front[0][c, :shown].tolist() == ranked[:5]
        assert back[0][c, :shown].tolist() == ranked[::-1][:5]
        at += len(own)
    assert (rows.classes[at:] == 4).all()
    for entries, pixels in (front, back):
        assert int(entries.min()) >= 0
        assert int(entries.max()) < size
        assert torch.equal(pixels, rows.pixels[entries])
    used = ~sampling.unused_entries(sampling.Table(front[0], counts))
    assert used.sum(1).tolist() == counts.clamp(max=width).tolist()


@pytest.mark.parametrize("num_classes", [1, 255, 256, 32_767, 32_768])
def test_orders_of_many_classes(num_classes):
    """The classes are sorted in the narrowest dtype, which must hold the one of unused entries, too."""
    labels = ops.random_bits(state(3), 2, 700) % num_classes
    limits = torch.arange(num_classes) % 3
    rows = sampling.leading_pixels(segments_of(labels, num_classes, -1), limits, 700)
    values = ops.random_bits(state(3), 4, 700) % 5
    by_value = torch.argsort(values, stable=True)
    expected = by_value[torch.argsort(rows.classes[by_value], stable=True)]
    assert torch.equal(sampling.order_by(values, rows), expected)


def test_every_pixel_of_another_class_is_a_negative_just_as_often():
    labels = integers([0] * 5 + [1] * 9 + [255] * 4 + [2] * 3)
    segments = segments_of(labels, 4)
    tables = [
        negatives_of(segments, bits)  # 7 of at least 8 others
        for bits in ops.random_bits(state(0), 1, 4 * 3000 * 7).view(4, 3000, 7).unbind(1)
    ]
    assert all(table.counts.tolist() == [7] * 4 for table in tables)
    drawn = torch.cat([table.index for table in tables], dim=1)
    for c in range(4):
        others = [i for i, label in enumerate(labels.tolist()) if label not in (c, 255)]
        place = torch.full((21,), -1)
        place[others] = torch.arange(len(others))
        assert abs(chi_square(place[drawn[c]], len(others))) < SIGMAS


@pytest.mark.parametrize("limit", [1, 7, 8, 9, 12, 14, 40])
def test_few_pixels_of_other_classes_are_negatives_once_each(limit):
    labels = integers([0] * 5 + [1] * 9 + [255] * 4 + [2] * 3)
    bits = ops.random_bits(state(1), 1, 4 * limit).view(4, limit)
    table = negatives_of(segments_of(labels, 4), bits)
    for c in range(4):
        others = [i for i, label in enumerate(labels.tolist()) if label not in (c, 255)]
        taken = table.index[c, : table.counts[c]].tolist()
        assert len(taken) == min(limit, len(others))
        assert set(taken) <= set(others)
        assert len(set(taken)) == len(taken) or len(others) > limit


def test_no_negatives_without_another_class():
    table = negatives_of(
        segments_of(integers([1, 1, 255]), 3), torch.zeros(3, 4, dtype=torch.int64)
    )
    assert table.counts.tolist() == [2, 0, 2]
    assert int(table.index.max()) < 3


# ---- rows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "cropped"])
def test_gathered_rows(layout):
    maps = torch.randn(2, 3, 4, 5)
    if layout == "channels_last":
        maps = maps.to(memory_format=torch.channels_last)
    if layout == "cropped":
        maps = torch.randn(2, 3, 6, 9)[:, :, 1:5, 2:7]
    maps.requires_grad_()
    flat = maps.detach().permute(0, 2, 3, 1).reshape(40, 3)
    pixels = integers([[0, 39, 7], [7, 21, 20]])
    rows = ops.gather_rows(maps, pixels)
    assert torch.equal(rows, flat[pixels])
    assert torch.equal(ops.gather_rows(flat, pixels), flat[pixels])
    rows.sum().backward()
    touched = maps.grad.permute(0, 2, 3, 1).reshape(40, 3)
    expected = torch.bincount(pixels.flatten(), minlength=40).float()
    assert torch.equal(touched, expected[:, None].expand(40, 3))


def test_finite_rows():
    maps = torch.zeros(1, 3, 1, 5)
    maps[0, 0, 0, 1], maps[0, 2, 0, 2], maps[0, 1, 0, 3] = torch.nan, torch.inf, -torch.inf
    maps[0, :, 0, 4] = torch.finfo(torch.float32).max
    assert ops.finite_rows(maps).tolist() == [True, False, False, False, True]
    assert ops.finite_rows(maps[0, :, 0].t()).tolist() == [True, False, False, False, True]
    assert ops.finite_rows(maps.half())[4] == torch.isfinite(maps.half()[0, 0, 0, 4])
