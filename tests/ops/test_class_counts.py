"""class_counts against a loop."""

import oracles
import pytest
import torch

DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def random_labels(*shape, classes=5, ignore_index=255, dtype=torch.int64, device="cpu"):
    generator = torch.Generator().manual_seed(7)
    labels = torch.randint(0, classes + 1, shape, generator=generator)
    labels[labels == classes] = ignore_index
    return labels.to(dtype).to(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0,), (1,), (31,), (2, 33), (2, 3, 65), ()])
def test_counts(implementation, device, dtype, shape):
    ignore_index = -1 if dtype == torch.int8 else 100
    labels = random_labels(*shape, ignore_index=ignore_index, dtype=dtype, device=device)
    counts = implementation.class_counts(labels, 5, ignore_index)
    assert counts.dtype == torch.int64
    assert counts.device == labels.device
    assert torch.equal(counts.cpu(), oracles.class_counts(labels, 5, ignore_index))


def test_enough_labels_for_every_thread(implementation, device):
    labels = random_labels(3, 257, 259, classes=21, device=device)
    counts = implementation.class_counts(labels, 21)
    assert torch.equal(counts.cpu(), oracles.class_counts(labels, 21, 255))
    assert counts.sum() == (labels != 255).sum()


def test_strided_labels(implementation, device):
    labels = random_labels(12, 10, device=device)[::2].T[1:]
    counts = implementation.class_counts(labels, 5)
    assert torch.equal(counts.cpu(), oracles.class_counts(labels, 5, 255))


def test_ignore_index_255_in_uint8(implementation, device):
    labels = torch.tensor([0, 255, 2, 255], dtype=torch.uint8, device=device)
    assert implementation.class_counts(labels, 3).tolist() == [1, 0, 1]


def test_an_ignored_class_is_not_counted(implementation, device):
    labels = torch.tensor([0, 1, 1, 2], device=device)
    assert implementation.class_counts(labels, 3, 1).tolist() == [1, 0, 1]
    assert implementation.class_counts(labels, 3, -1).tolist() == [1, 2, 1]


@pytest.mark.usefixtures("checks_values")
@pytest.mark.parametrize("stray", [37, 21, -1, -(2**40), 2**33 + 3])
def test_a_stray_label_is_an_error_on_the_cpu(implementation, stray):
    labels = torch.tensor([[3, 255, 20], [0, stray, 1]])
    with pytest.raises(RuntimeError) as caught:
        implementation.class_counts(labels, 21, 255)
    text = f"class_counts: labels must lie in [0, 21) or equal ignore_index 255, got {stray}"
    assert str(caught.value).splitlines()[0] == text


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([1, 2], 3), TypeError, "class_counts: labels must be a torch.Tensor, got list"),
        ((torch.tensor([1]), 0), ValueError, "num_classes must be a positive integer, got 0"),
        ((torch.tensor([1]), 2.0), TypeError, "num_classes must be an integer, got 2.0"),
        ((torch.tensor([1]), 2, None), TypeError, "ignore_index must be an integer, got None"),
        (
            (torch.tensor([1.0]), 2),
            RuntimeError,
            "labels must be int64, int32, int16, int8 or uint8, got float32",
        ),
        (
            (torch.tensor([True]), 2),
            RuntimeError,
            "labels must be int64, int32, int16, int8 or uint8, got bool",
        ),
    ],
)
def test_errors(arguments, error, text):
    from dgcl_ops import ops

    with pytest.raises(error) as caught:
        ops.class_counts(*arguments)
    assert text in str(caught.value)
    assert str(caught.value).startswith("class_counts: ")
