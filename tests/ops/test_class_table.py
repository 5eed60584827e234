"""class_table against a loop."""

from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from oracles import integers

from dgcl_ops import ops


def loop(pixels, offsets, order, width, last):
    """Entries and pixels as lists."""
    entries, end = [], len(pixels) - 1
    for first, beyond in pairwise(offsets):
        backwards = [max(beyond - 1 - i, 0) for i in range(width)]
        places = backwards if last else [min(first + i, end) for i in range(width)]
        entries.append(places if order is None else [order[place] for place in places])
    return [entries, [[pixels[entry] for entry in row] for row in entries]]


def results(op, device, pixels, offsets, order, width, last):
    pixels, offsets = integers(pixels).to(device), integers(offsets).to(device)
    order = None if order is None else integers(order).to(device)
    found = op(pixels, offsets, order, width, last)
    assert all(part.dtype == torch.int64 and part.device.type == device for part in found)
    return [part.tolist() for part in found]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("width", [0, 1, 3, 8])
def test_entries(implementation, device, width, last, ordered):
    order = [1, 0, 3, 2, 5, 4, 7, 6] if ordered else None
    arguments = list(range(20, 28)), [0, 2, 2, 7], order, width, last
    found = results(implementation.class_table, device, *arguments)
    assert found == loop(*arguments)
    if (width, last, ordered) == (3, True, True):
        assert found[0] == [[0, 1, 1], [0, 1, 1], [7, 4, 5]]
        assert found[1][2] == [27, 24, 25]


@given(data=st.data())
def test_any_offsets(data):
    pixels = data.draw(st.permutations(range(data.draw(st.integers(1, 9)))))
    number = len(pixels)
    places = st.integers(0, number)
    offsets = sorted(data.draw(st.lists(places, min_size=1, max_size=6)))
    order = data.draw(st.none() | st.permutations(range(number)))
    arguments = pixels, offsets, order, data.draw(places), data.draw(st.booleans())
    assert results(ops.class_table, "cpu", *arguments) == loop(*arguments)


def test_strided_arguments(implementation, device):
    pixels, offsets, order = integers(range(20)), integers([0, 5, 3, 5, 8, 5]), torch.arange(20)
    given = [t.to(device)[::2] for t in (pixels, offsets, order // 2)]
    found = implementation.class_table(*given, 4, True)
    wanted = loop(pixels[::2].tolist(), [0, 3, 8], list(range(10)), 4, True)
    assert [part.tolist() for part in found] == wanted


def test_an_entry_that_is_not_read_may_be_anything(implementation):
    order = integers([2, 1, 0, 9])
    entries, _ = implementation.class_table(integers([5, 6, 7, 8]), integers([0, 3]), order, 3)
    assert entries.tolist() == [[2, 1, 0]]


def test_errors():
    pixels, offsets = integers([0, 1, 2]), integers([0, 2])
    with pytest.raises(TypeError, match=r"^class_table: order must be a torch\.Tensor, got list"):
        ops.class_table(pixels, offsets, [0, 1, 2], 2)
