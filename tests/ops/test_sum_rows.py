"""sum_rows against a loop."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from oracles import assert_close, integers, random_rows

from dgcl_ops import backend_info, ops, reference
from dgcl_ops.ops import _checks

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Plain PyTorch adds in another order. Without the extension, the operators are plain PyTorch.
PLAIN = (reference, ops) if backend_info()["extension"] is None else (reference,)
COUNTS = integers([4, 0, 2])
PLACES = integers([[6, 0, 3, 3], [1, 1, 1, 1], [5, 4, 2, 0]])


def loop(rows, indices, counts, dtype):
    """Adds row by row, in `dtype`."""
    sums = torch.zeros(len(counts), rows.shape[-1], dtype=dtype)
    for c, count in enumerate(counts.tolist()):
        own = rows[c] if rows.dim() == 3 else rows
        for j in range(count):
            sums[c] += own[j if indices is None else indices[c, j]].to(dtype)
    return sums


def assert_sums(implementation, device, rows, indices, counts, in_float64=False):
    dtype = torch.float64 if in_float64 or rows.dtype == torch.float64 else torch.float32
    places = None if indices is None else indices.to(device)
    found = implementation.sum_rows(
        rows.to(device), places, counts.to(device), in_float64=in_float64
    )
    assert found.dtype == dtype
    assert found.device.type == device
    wanted = loop(rows, indices, counts, dtype)
    if implementation in PLAIN:
        assert_close(found, wanted, magnitude=100)
    else:
        assert torch.equal(found.cpu(), wanted)


@pytest.mark.parametrize("in_float64", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_values(implementation, device, dtype, in_float64):
    rows = random_rows(3, 7, 5, dtype=dtype)
    for arguments in ((rows, PLACES), (rows[1], PLACES), (rows, None)):
        assert_sums(implementation, device, *arguments, COUNTS, in_float64)


@pytest.mark.parametrize("dim", [0, 1, 31, 64, 65, 300])
def test_strided_rows(implementation, device, dim):
    rows = random_rows(3, 14, 2 * dim + 3)
    for part in (rows[:, ::2, 3 : 3 + dim], rows[:, 4:11, :dim], rows[:, :7, 3::2]):
        assert_sums(implementation, device, part, PLACES, COUNTS)
    turned = PLACES.t().contiguous().t()
    assert_sums(implementation, device, rows, turned, torch.stack([COUNTS, COUNTS], 1)[:, 0])


@given(data=st.data())
def test_any_table(data):
    classes, number = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 9))
    width, dim = data.draw(st.integers(0, 12)), data.draw(st.integers(1, 4))
    rows = random_rows(classes, number, dim, seed=data.draw(st.integers(0, 99)))
    entry = st.lists(st.integers(0, number - 1), min_size=width, max_size=width)
    places = integers([data.draw(entry) for _ in range(classes)]).view(classes, width)
    counts = integers([data.draw(st.integers(0, width)) for _ in range(classes)])
    assert_sums(ops, "cpu", rows, places, counts)
    # The chosen rows in order have the same sums, bit for bit.
    chosen = rows[torch.arange(classes)[:, None], places]
    assert torch.equal(ops.sum_rows(chosen, None, counts), ops.sum_rows(rows, places, counts))


def test_entries_beyond_the_counts_are_not_read(implementation, device):
    rows, places = random_rows(3, 7, 5), PLACES.clone()
    places[2, 2:], places[1] = integers([2**40, -1]), 99
    rows[2, [0, 1, 2, 3, 6]] = torch.nan
    assert_sums(implementation, device, rows, places, COUNTS)
    rows[:, 4:], rows[1], rows[2, :4] = torch.nan, torch.inf, 1
    assert_sums(implementation, device, rows, None, integers([4, 0, 2]))


def test_nan_and_inf_stay_in_their_class_and_column():
    rows = torch.ones(2, 3, 4)
    rows[0, 1, 2], rows[0, 2, 3] = torch.nan, torch.inf
    sums = ops.sum_rows(rows, None, integers([3, 3]))
    assert sums[0, :2].tolist() == [3, 3]
    assert sums[1].tolist() == [3] * 4
    assert sums[0, 2].isnan()
    assert sums[0, 3] == torch.inf


def test_no_rows(implementation, device):
    nothing = integers([0, 0, 0])
    for rows, places in (
        (torch.zeros(3, 0, 2), None),
        (torch.zeros(0, 2), PLACES),
        (torch.zeros(3, 7, 2), PLACES[:, :0]),
    ):
        assert_sums(implementation, device, rows, places, nothing)
    assert implementation.sum_rows(rows[:0], None, nothing[:0]).shape == (0, 2)


def test_no_gradient():
    rows = random_rows(3, 7, 5).requires_grad_()
    assert not ops.sum_rows(rows, PLACES, COUNTS).requires_grad


def test_threads_do_not_change_bits():
    rows, places = random_rows(40, 90, 70), torch.arange(40 * 60).view(40, 60) % 90
    counts = torch.arange(40) + 20
    alone = ops.sum_rows(rows, places, counts)
    torch.set_num_threads(2)
    try:
        assert torch.equal(ops.sum_rows(rows, places, counts), alone)
    finally:
        torch.set_num_threads(1)


def test_errors():
    rows = random_rows(3, 7, 5)
    with pytest.raises(TypeError, match=r"^sum_rows: rows must be a torch\.Tensor, got list"):
        ops.sum_rows([1.0], None, COUNTS)
    with pytest.raises(TypeError, match=r"^sum_rows: indices must be a torch\.Tensor, got list"):
        ops.sum_rows(rows, [[0]], COUNTS)
    with pytest.raises(RuntimeError, match=r"^sum_rows: indices must lie in \[0, 7\), got 7"):
        ops.sum_rows(rows, PLACES + 1, COUNTS)


@pytest.mark.parametrize("check", [torch.ops.dgcl_ops.sum_rows, "plain"])
@pytest.mark.parametrize(
    ("shape", "counts", "text"),
    [
        ((7, 5), COUNTS, r"rows must have shape \[C, P, E\] without indices, got \[7, 5\]"),
        ((3, 7, 5), COUNTS + 4, r"row_counts must lie in \[0, 7\], got 8"),
        ((2, 7, 5), COUNTS, r"row_counts must have shape \[C\], got \[3\]"),
    ],
)
def test_errors_without_indices(check, shape, counts, text):
    given = {"rows": torch.zeros(shape), "indices": None, "row_counts": counts}
    with pytest.raises(RuntimeError, match=f"^sum_rows: {text}"):
        _checks.check("sum_rows", given) if check == "plain" else check(**given)
