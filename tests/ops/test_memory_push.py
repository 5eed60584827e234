"""memory_push against a loop that writes one row at a time."""

import math

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_close, integers, random_rows

RINGS = ("bank_features", "bank_projections", "bank_density")


def bank(classes=3, capacity=8, columns=5, projected=2, dtype=torch.float32, device="cpu"):
    return {
        "bank_features": random_rows(
            classes, capacity, columns, dtype=dtype, seed=1, device=device
        ),
        "bank_projections": random_rows(
            classes, capacity, projected, dtype=dtype, seed=2, device=device
        ),
        "bank_density": random_rows(classes, capacity, seed=3, device=device),
        "counts": integers([capacity, 2, 0][:classes], device),
        "heads": integers([max(0, capacity - 2), 2, 0][:classes], device),
    }


def rows(classes=3, number=4, columns=5, projected=2, dtype=torch.float32, device="cpu", seed=10):
    return {
        "features": random_rows(classes, number, columns, dtype=dtype, seed=seed, device=device),
        "projections": random_rows(
            classes, number, projected, dtype=dtype, seed=seed + 1, device=device
        ),
        "density": random_rows(classes, number, seed=seed + 2, device=device),
    }


def push_and_check(implementation, state, new, row_counts, normalize=False):
    """In place, the rings become those of the oracle: unit rows within rounding, everything else bit for bit."""
    on_cpu = {name: tensor.cpu() for name, tensor in state.items()}
    want = oracles.memory_push(
        on_cpu, {n: t.cpu() for n, t in new.items()}, row_counts.cpu(), normalize
    )
    pointers = {name: tensor.data_ptr() for name, tensor in state.items()}
    returned = implementation.memory_push(
        **state, **new, row_counts=row_counts, normalize=normalize
    )
    assert returned is None
    for name, tensor in state.items():
        assert tensor.data_ptr() == pointers[name]
        if normalize and name == "bank_features":
            assert_close(tensor, want[name].double())
        else:
            assert torch.equal(tensor.cpu(), want[name]), name
    return state


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("counts", [[0, 0, 0], [4, 4, 4], [1, 3, 2], [0, 4, 1]])
def test_push(implementation, device, counts, normalize):
    """Class 0 is full and wraps, class 1 continues, class 2 starts."""
    push_and_check(
        implementation,
        bank(device=device),
        rows(device=device),
        integers(counts, device),
        normalize,
    )


@pytest.mark.parametrize("number", [7, 8, 9, 16, 17, 30])
def test_more_rows_than_the_ring_holds(implementation, device, number):
    """The last `capacity` rows stay, in the slots where single pushes would have put them."""
    counts = integers([number, number - 1, number], device)
    push_and_check(implementation, bank(device=device), rows(number=number, device=device), counts)


@pytest.mark.parametrize("ring", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("new", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalize", [False, True])
def test_rows_are_cast_to_the_ring(implementation, device, ring, new, normalize):
    state, pushed = bank(dtype=ring, device=device), rows(dtype=new, device=device)
    push_and_check(implementation, state, pushed, integers([4, 2, 3], device), normalize)


def test_ring_of_one_row(implementation, device):
    state = bank(capacity=1, device=device)
    state["counts"], state["heads"] = integers([1, 0, 0], device), integers([0, 0, 0], device)
    push_and_check(implementation, state, rows(device=device), integers([3, 1, 0], device))


def test_many_pushes_go_round(implementation, device):
    state = bank(device=device)
    state["counts"].zero_()
    state["heads"].zero_()
    for step in range(9):
        counts = integers([step % 4, 3, (step * 5) % 4], device)
        push_and_check(implementation, state, rows(device=device, seed=20 + 3 * step), counts)
    assert state["counts"].tolist() == [8, 8, 8]
    assert state["heads"].tolist() == [12 % 8, 27 % 8, (0 + 1 + 2 + 3 + 0 + 1 + 2 + 3 + 0) % 8]


@given(
    capacity=st.integers(1, 9),
    pushes=st.lists(st.lists(st.integers(0, 12), min_size=2, max_size=2), min_size=1, max_size=6),
)
def test_any_history(implementation, capacity, pushes):
    state = bank(2, capacity)
    state["counts"].zero_()
    state["heads"].zero_()
    for step, counts in enumerate(pushes):
        new = rows(2, 12, seed=30 + 3 * step)
        push_and_check(implementation, state, new, integers(counts))


def test_zero_nan_and_huge_rows_when_normalising(implementation, device):
    state, new = bank(device=device), rows(device=device)
    new["features"][0, 0] = 0
    new["features"][0, 1] *= 2.0**100
    new["features"][1, 0] *= 2.0**-100
    new["features"][1, 1, 3] = math.nan
    state = push_and_check(implementation, state, new, integers([2, 2, 0], device), normalize=True)
    assert not state["bank_features"][0, 6].any()
    assert state["bank_features"][1, 3].isnan().all()


def test_no_rows_and_no_classes(implementation, device):
    push_and_check(
        implementation,
        bank(device=device),
        rows(number=0, device=device),
        integers([0] * 3, device),
    )
    empty = rows(classes=0, device=device)
    push_and_check(implementation, bank(classes=0, device=device), empty, integers([], device))


def test_strided_rows(implementation, device):
    new = rows(number=8, columns=10, device=device)
    views = {
        "features": new["features"][:, ::2, 5:],
        "projections": new["projections"].transpose(1, 2).contiguous().transpose(1, 2)[:, ::2],
        "density": new["density"][:, ::2],
    }
    push_and_check(implementation, bank(device=device), views, integers([4, 1, 3], device))


def test_rows_that_require_a_gradient_leave_the_bank_without_one():
    from dgcl_ops import ops

    state, new = bank(), rows()
    new = {name: tensor.requires_grad_() for name, tensor in new.items()}
    ops.memory_push(**state, **new, row_counts=integers([4, 4, 4]))
    assert not any(tensor.requires_grad for tensor in state.values())


def test_a_backward_that_saved_the_old_bank_raises():
    """The rings' version counters advance, as with any in-place operation of PyTorch."""
    from dgcl_ops import ops

    state = bank()
    queries = random_rows(3, 5, seed=5).requires_grad_()
    density = ops.knn_density(queries, state["bank_features"][0], (2,))
    versions = {name: tensor._version for name, tensor in state.items()}
    ops.memory_push(**state, **rows(), row_counts=integers([4, 4, 4]))
    assert all(tensor._version > versions[name] for name, tensor in state.items())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        density.sum().backward()


def test_arguments_that_are_no_tensors():
    from dgcl_ops import ops

    arguments = bank() | rows() | {"row_counts": [4, 4, 4]}
    with pytest.raises(
        TypeError, match=r"memory_push: row_counts must be a torch\.Tensor, got list"
    ):
        ops.memory_push(**arguments)
