"""partition_keys against a loop."""

import hypothesis.strategies as st
import oracles
import pytest
import torch
from hypothesis import given
from oracles import integers

from dgcl_ops import ops

DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def pixels(*shape, classes=5, ignore_index=255, dtype=torch.int64, device="cpu"):
    """Labels of which a few are ignored, a mask with a few False, and random words."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.randint(0, classes + 1, shape, generator=generator)
    labels[labels == classes] = ignore_index
    usable = torch.rand(shape, generator=generator) < 0.8
    bits = torch.randint(0, 2**32, shape, generator=generator)
    return labels.to(dtype).to(device), usable.to(device), bits.to(device)


def check(implementation, arguments):
    keys, counts = implementation.partition_keys(*arguments)
    assert keys.dtype == counts.dtype == torch.int64
    assert keys.device == counts.device == arguments[0].device
    expected = oracles.partition_keys(*arguments)
    assert torch.equal(keys.cpu(), expected[0])
    assert torch.equal(counts.cpu(), expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 31, 33, 255, 257])
def test_keys_and_counts(implementation, device, dtype, size):
    ignore_index = -1 if dtype == torch.int8 else 100
    given = pixels(size, ignore_index=ignore_index, dtype=dtype, device=device)
    check(implementation, (*given, 5, ignore_index))


@pytest.mark.parametrize(
    "classes", [21, 9000]
)  # the histogram of 9000 does not fit into shared memory
def test_enough_pixels_for_every_thread(implementation, device, classes):
    labels, usable, bits = pixels(3 * 257 * 259, classes=classes, ignore_index=-1, device=device)
    keys, counts = implementation.partition_keys(labels, usable, bits, classes, -1)
    used = usable & (labels >= 0)
    expected = torch.bincount(labels[used], minlength=classes)
    assert torch.equal(counts[:classes], expected)
    skipped = [int((labels < 0).sum()), int(((labels >= 0) & ~usable).sum()), 0]
    assert counts[classes:].tolist() == skipped
    assert torch.equal(keys, (torch.where(used, labels, classes) << 32) | bits)


def test_strided_arguments(implementation, device):
    labels, usable, bits = pixels(12, 10, device=device)
    check(implementation, (labels[:, 3], usable[:, 2], bits.T[1, :12:1], 5, 255))
    check(implementation, (labels[::2, 3], usable[1::2, 2], bits[::2, 0], 5, 255))


def test_an_ignored_class_is_not_counted(implementation, device):
    labels, usable, bits = integers([0, 1, 1, 2]), torch.ones(4, dtype=torch.bool), torch.arange(4)
    arguments = labels.to(device), usable.to(device), bits.to(device), 3
    assert implementation.partition_keys(*arguments, 1)[1].tolist() == [1, 0, 1, 2, 0, 0]
    assert implementation.partition_keys(*arguments, -1)[1].tolist() == [1, 2, 1, 0, 0, 0]


def test_ignore_index_255_is_the_default(implementation, device):
    labels = torch.tensor([0, 255, 2, 255], dtype=torch.uint8, device=device)
    counts = implementation.partition_keys(labels, labels < 2, labels.long(), 3)[1]
    assert counts.tolist() == [1, 0, 0, 2, 1, 0]


def test_only_the_low_32_bits_of_a_word_count(implementation, device):
    bits = integers([-1, 2**32, 2**40 + 3, -(2**63)]).to(device)
    labels = torch.zeros_like(bits)
    keys, _ = implementation.partition_keys(labels, labels == 0, bits, 1, 255)
    assert keys.tolist() == [2**32 - 1, 0, 3, 0]


def test_as_many_classes_as_there_may_be(implementation, device):
    """The largest key. Its histogram would take 16 GiB, so the label is of a smaller one."""
    labels = integers([2**20, 255]).to(device)
    keys, _ = implementation.partition_keys(labels, labels > 0, labels, 2**20 + 1, 255)
    assert keys.tolist() == [(2**20 << 32) + 2**20, ((2**20 + 1) << 32) + 255]


@pytest.mark.usefixtures("checks_values")
@pytest.mark.parametrize("stray", [37, 21, -1, -(2**40), 2**33 + 3])
@pytest.mark.parametrize("before", [2, 90_000])  # in the first part, or in a later one
def test_a_stray_label_is_an_error_on_the_cpu(implementation, stray, before):
    labels = integers([3, 255] + [20] * before + [stray, 1, 99])
    usable = torch.ones(len(labels), dtype=torch.bool)
    with pytest.raises(RuntimeError) as caught:
        implementation.partition_keys(labels, usable, labels, 21, 255)
    text = f"partition_keys: labels must lie in [0, 21) or equal ignore_index 255, got {stray}"
    assert str(caught.value).splitlines()[0] == text
    usable[-3], usable[-1] = False, False  # the label of an unusable pixel is not checked
    counts = implementation.partition_keys(labels, usable, labels, 21, 255)[1]
    assert counts[21:].tolist() == [1, 2, 0]


# ---- relations ----------------------------------------------------------------------------------------

SOME_PIXELS = st.lists(
    st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 2**32 - 1)), max_size=70
)


def columns(some):
    labels, usable, bits = zip(*some, strict=True) if some else ((), (), ())
    return integers(list(labels)), torch.tensor(usable, dtype=torch.bool), integers(list(bits))


@given(SOME_PIXELS, st.sampled_from([255, -1, 0, 4, 2**40]), st.randoms(use_true_random=False))
def test_permuted_pixels_have_permuted_keys_and_the_same_counts(some, ignore_index, random):
    order = list(range(len(some)))
    random.shuffle(order)
    keys, counts = ops.partition_keys(*columns(some), 5, ignore_index)
    permuted = ops.partition_keys(*columns([some[i] for i in order]), 5, ignore_index)
    assert torch.equal(permuted[0], keys[integers(order).long()])
    assert torch.equal(permuted[1], counts)
    assert int(counts.sum()) == len(some)


@given(SOME_PIXELS, st.integers(0, 4))
def test_an_ignored_class_moves_to_the_end_and_nothing_else_changes(some, ignored):
    labels, usable, bits = columns(some)
    keys, counts = ops.partition_keys(labels, usable, bits, 5, 255)
    without, fewer = ops.partition_keys(labels, usable, bits, 5, ignored)
    moved = torch.where(labels == ignored, (5 << 32) + bits, keys)
    assert torch.equal(without, moved)
    others = [c for c in range(5) if c != ignored]
    assert fewer[others].tolist() == counts[others].tolist()
    assert fewer[ignored] == 0
    assert fewer[5] == (labels == ignored).sum()


@given(SOME_PIXELS)
def test_sorted_keys_are_grouped_by_class_and_the_counts_are_the_group_sizes(some):
    labels, usable, bits = columns(some)
    keys, counts = ops.partition_keys(labels, usable, bits, 5, 3)
    ranked = keys.sort().values >> 32
    sizes = [*counts[:5].tolist(), int(counts[5:].sum())]
    assert ranked.tolist() == [c for c, size in enumerate(sizes) for _ in range(size)]


# ---- errors -------------------------------------------------------------------------------------------

ONE, YES = integers([1]), torch.tensor([True])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([1, 2], YES, ONE, 3), TypeError, "labels must be a torch.Tensor, got list"),
        ((ONE, [True], ONE, 3), TypeError, "usable must be a torch.Tensor, got list"),
        ((ONE, YES, 7, 3), TypeError, "bits must be a torch.Tensor, got int"),
        ((ONE, YES, ONE, 0), ValueError, "num_classes must be a positive integer, got 0"),
        ((ONE, YES, ONE, 2.0), TypeError, "num_classes must be an integer, got 2.0"),
        ((ONE, YES, ONE, 2, None), TypeError, "ignore_index must be an integer, got None"),
        (
            (YES, YES, ONE, 2),
            RuntimeError,
            "labels must be int64, int32, int16, int8 or uint8, got bool",
        ),
        ((ONE, ONE, ONE, 2), RuntimeError, "usable must be bool, got int64"),
        ((ONE, YES, ONE.int(), 2), RuntimeError, "bits must be int64, got int32"),
    ],
)
def test_errors(arguments, error, text):
    with pytest.raises(error) as caught:
        ops.partition_keys(*arguments)
    assert str(caught.value).splitlines()[0] == f"partition_keys: {text}"
