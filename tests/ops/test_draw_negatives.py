"""draw_negatives against a loop."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from oracles import integers

from dgcl_ops import ops


def loop(pixels, counts, bits):
    """Negatives and counts as lists. Only the used negatives."""
    negatives, used, start = [], [], 0
    for count, words in zip(counts, bits, strict=True):
        others = pixels[:start] + pixels[start + count : sum(counts)]
        start += count
        used.append(min(len(others), len(words)))
        if len(others) <= len(words):
            negatives.append(others)
        else:
            negatives.append([others[(word % 2**32) * len(others) // 2**32] for word in words])
    return [negatives, used]


def results(op, device, pixels, counts, bits):
    negatives, used = op(*(integers(values).to(device) for values in (pixels, counts, bits)))
    assert negatives.dtype == used.dtype == torch.int64
    assert negatives.device.type == used.device.type == device
    assert negatives.shape == (len(counts), len(bits[0]))
    assert all(pixel in pixels for pixel in negatives.unique().tolist())
    taken = [row[:n] for row, n in zip(negatives.tolist(), used.tolist(), strict=True)]
    return [taken, used.tolist()]


def test_negatives(implementation, device):
    pixels, counts = list(range(20, 32)), [3, 0, 5, 2]
    bits = [[0, 2**32 - 1, 2**31], [2**30, 1, 0], [5, 3 * 2**30, 2**31], [0, 0, 2**32 - 1]]
    found = results(implementation.draw_negatives, device, pixels, counts, bits)
    assert found == loop(pixels, counts, bits)
    assert found[0][0] == [23, 29, 26]
    assert found[0][2] == [20, 28, 22]


@pytest.mark.parametrize("draws", [6, 7, 8, 9, 10, 11])
def test_few_pixels_are_taken_once_each(implementation, device, draws):
    arguments = list(range(40, 52)), [3, 0, 5, 2], [list(range(draws))] * 4
    found = results(implementation.draw_negatives, device, *arguments)
    assert found == loop(*arguments)
    assert found[1] == [min(draws, n) for n in (7, 10, 5, 8)]


@pytest.mark.parametrize("classes", [1, 2, 256, 257, 1025])
def test_numbers_of_classes(implementation, device, classes):
    generator = torch.Generator().manual_seed(classes)
    counts = torch.randint(4, (classes,), generator=generator)
    pixels = torch.randperm(int(counts.sum()) + 7, generator=generator)
    bits = torch.randint(-(2**63), 2**63 - 1, (classes, 5), generator=generator)
    arguments = pixels.tolist(), counts.tolist(), bits.tolist()
    assert results(implementation.draw_negatives, device, *arguments) == loop(*arguments)


@given(data=st.data())
def test_any_counts(data):
    counts = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=7))
    number = sum(counts) + data.draw(st.integers(0, 3)) or 1
    pixels = data.draw(st.permutations(range(number)))
    draws = data.draw(st.integers(0, 12))
    words = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=draws, max_size=draws)
    bits = [data.draw(words) for _ in counts]
    if not draws:
        negatives, used = ops.draw_negatives(
            *map(integers, (pixels, counts)), integers([]).view(len(counts), 0)
        )
        assert negatives.shape == (len(counts), 0)
        assert not used.any()
        return
    assert results(ops.draw_negatives, "cpu", pixels, counts, bits) == loop(pixels, counts, bits)


def test_strided_arguments(implementation, device):
    pixels, counts = integers(range(24)), integers([4, 9, 5, 9])
    bits = integers([[7, 2**31], [2**30, 9], [5, 6]]).T
    given = [t.to(device) for t in (pixels, counts, bits)]
    negatives, used = implementation.draw_negatives(given[0][::2], given[1][::2], given[2])
    wanted = loop(pixels[::2].tolist(), [4, 5], bits.tolist())
    assert [negatives.tolist(), used.tolist()] == wanted


def test_errors():
    with pytest.raises(TypeError, match=r"^draw_negatives: bits must be a torch\.Tensor, got int"):
        ops.draw_negatives(integers([0, 1]), integers([2]), 3)
