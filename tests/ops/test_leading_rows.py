"""leading_rows against a loop."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from oracles import integers

from dgcl_ops import ops


def loop(pixels, counts, limits, size):
    """Rows, classes and offsets as lists."""
    rows, classes, offsets, start = [], [], [0], 0
    for c, (count, limit) in enumerate(zip(counts, limits, strict=True)):
        taken = pixels[start : start + min(count, limit)]
        rows += taken
        classes += [c] * len(taken)
        offsets.append(len(rows))
        start += count
    left = size - len(rows)
    classes += [len(counts)] * left
    beyond = pixels[start : start + left]
    rows += beyond + pixels[-1:] * (left - len(beyond))
    return [rows, classes, offsets]


def results(op, device, pixels, counts, limits, size):
    tensors = (integers(values).to(device) for values in (pixels, counts, limits))
    found = op(*tensors, size)
    assert all(part.dtype == torch.int64 and part.device.type == device for part in found)
    return [part.tolist() for part in found]


@pytest.mark.parametrize("size", [9, 12])
def test_rows(implementation, device, size):
    arguments = list(range(20, 32)), [3, 0, 5, 2], [2, 4, 6, 2], size
    found = results(implementation.leading_rows, device, *arguments)
    assert found == loop(*arguments)
    assert found[0][:9] == [20, 21, 23, 24, 25, 26, 27, 28, 29]
    assert found[2] == [0, 2, 2, 7, 9]


@pytest.mark.parametrize("classes", [1, 2, 256, 257, 1024, 1025, 2500])
def test_numbers_of_classes(implementation, device, classes):
    generator = torch.Generator().manual_seed(classes)
    counts = torch.randint(4, (classes,), generator=generator)
    limits = torch.randint(5, (classes,), generator=generator)
    pixels = torch.randperm(int(counts.sum()) + 7, generator=generator)
    arguments = pixels.tolist(), counts.tolist(), limits.tolist(), len(pixels)
    assert results(implementation.leading_rows, device, *arguments) == loop(*arguments)


@given(data=st.data())
def test_any_counts(data):
    counts = data.draw(st.lists(st.integers(0, 6), max_size=7))
    limits = [data.draw(st.integers(0, 8)) for _ in counts]
    pixels = data.draw(st.permutations(range(sum(counts) + data.draw(st.integers(0, 3)))))
    taken = sum(map(min, counts, limits))
    arguments = pixels, counts, limits, data.draw(st.integers(taken, len(pixels)))
    assert results(ops.leading_rows, "cpu", *arguments) == loop(*arguments)


def test_strided_arguments(implementation, device):
    pixels, counts, limits = integers(range(24)), integers([4, 9, 5, 9]), integers([3, 9, 2, 9])
    given = [t.to(device)[::2] for t in (pixels, counts, limits)]
    found = implementation.leading_rows(*given, 12)
    wanted = loop(pixels[::2].tolist(), [4, 5], [3, 2], 12)
    assert [part.tolist() for part in found] == wanted


def test_compiled_with_another_size():
    torch._dynamo.reset()
    counts = integers([2, 3])
    compiled = torch.compile(
        lambda pixels: ops.leading_rows(pixels, counts, counts, pixels.shape[0])[0] + 1,
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    for number in (5, 8, 11):
        assert compiled(torch.arange(number)).tolist() == [*range(1, number + 1)]


def test_errors():
    pixels, counts = integers([0, 1, 2]), integers([2])
    with pytest.raises(TypeError, match=r"^leading_rows: limits must be a torch\.Tensor, got list"):
        ops.leading_rows(pixels, counts, [3], 2)
