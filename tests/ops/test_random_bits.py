"""random_bits against Python integers, and statistics of the words."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from oracles import chi_square, integers, random_word

from dgcl_ops import ops, reference

# Five standard deviations. Seeds are fixed, so nothing here depends on luck, and a fault is far outside.
SIGMAS = 5.0
INT64 = st.integers(-(2**63), 2**63 - 1)


def state(seed: int, step: int = 0) -> torch.Tensor:
    return integers([seed, step])


@pytest.mark.parametrize("seed", [0, 1, -1, 2**62 - 1, -(2**63)])
@pytest.mark.parametrize("step", [0, 1, 2**40 + 7])
@pytest.mark.parametrize("stream", [3, -1, 2**63 - 1, -(2**63)])
def test_bits_are_those_of_unbounded_integers(implementation, device, seed, step, stream):
    # Nothing overflows, and a checkpoint draws the same numbers after an update.
    got = implementation.random_bits(state(seed, step).to(device), stream, 40)
    assert got.dtype == torch.int64
    assert got.device.type == torch.device(device).type
    assert got.tolist() == [random_word(seed, step, stream, i) for i in range(40)]


@given(INT64, INT64, INT64, st.integers(0, 300), st.integers(0, 300))
def test_the_words_of_a_smaller_count_are_the_first_ones(seed, step, stream, count, smaller):
    words = ops.random_bits(state(seed, step), stream, count)
    fewer = ops.random_bits(state(seed, step), stream, min(count, smaller))
    assert torch.equal(words[:smaller], fewer)
    assert torch.equal(words, reference.random_bits(state(seed, step), stream, count))
    # the stream counts modulo 2^32
    same = (stream + 2**32 + 2**63) % 2**64 - 2**63
    assert torch.equal(words, ops.random_bits(state(seed, step), same, count))


@pytest.mark.parametrize("count", [0, 1, 255, 257, 3 * 2**15 + 5])
def test_any_number_of_words(implementation, device, count):
    words = implementation.random_bits(state(8, 9).to(device), 10, count)
    assert words.shape == (count,)
    expected = [random_word(8, 9, 10, i) for i in (0, count // 2, count - 1) if count]
    assert [int(words[i]) for i in (0, count // 2, count - 1) if count] == expected
    assert torch.equal(words.cpu(), reference.random_bits(state(8, 9), 10, count))


def test_a_strided_state(implementation, device):
    every_second = integers([5, 0, 2**33, 0]).to(device)[::2]
    want = [random_word(5, 2**33, 3, i) for i in range(4)]
    assert implementation.random_bits(every_second, 3, 4).tolist() == want


def test_mix_is_a_bijection_on_a_sample():
    words = torch.arange(1 << 16) * 65537 % (1 << 32)
    mixed = reference.mix(words)
    assert mixed.unique().numel() == words.unique().numel()
    assert int(mixed.min()) >= 0
    assert int(mixed.max()) < 1 << 32


@pytest.mark.parametrize("seed", [0, 1, 2**61])
@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("shift", [0, 12, 24])
def test_each_byte_is_even(seed, stream, shift):
    bits = ops.random_bits(state(seed), stream, 1 << 18)
    assert abs(chi_square((bits >> shift) & 255, 256)) < SIGMAS


@pytest.mark.parametrize(
    "other",
    [
        (0, 1, 0),
        (0, 2, 0),
        (0, 1000, 0),
        (0, 2**32, 0),
        (1, 0, 0),
        (-1, 0, 0),
        (2**32, 0, 0),
        (0, 0, 1),
    ],
)
def test_draws_are_independent(other):
    # Joint distribution of the top and of the bottom four bits: 256 buckets of pairs.
    size = 1 << 17
    ours = ops.random_bits(state(0), 0, size)
    theirs = ops.random_bits(state(*other[:2]), other[2], size)
    assert abs(chi_square((ours >> 28) * 16 + (theirs >> 28), 256)) < SIGMAS
    assert abs(chi_square((ours & 15) * 16 + (theirs & 15), 256)) < SIGMAS
    assert abs(chi_square((ours[1:] >> 28) * 16 + (ours[:-1] >> 28), 256)) < SIGMAS
    correlation = float(torch.corrcoef(torch.stack([ours.double(), theirs.double()]))[0, 1])
    assert abs(correlation) * size**0.5 < SIGMAS


# ---- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([1, 2], 3, 4), TypeError, "rng_state must be a torch.Tensor, got list"),
        ((state(1), 2.0, 4), TypeError, "stream must be an integer, got 2.0"),
        ((state(1), None, 4), TypeError, "stream must be an integer, got None"),
        ((state(1).int(), 3, 4), RuntimeError, "rng_state must be int64, got int32"),
        ((integers([1]), 3, 4), RuntimeError, "rng_state must have shape [2], got [1]"),
        ((state(1), 3, -1), RuntimeError, "count must be at least 0, got -1"),
        ((state(1), 3, 2**32), RuntimeError, f"count must be less than 2^32, got {2**32}"),
    ],
)
def test_errors(arguments, error, text):
    with pytest.raises(error) as caught:
        ops.random_bits(*arguments)
    assert str(caught.value).splitlines()[0] == f"random_bits: {text}"
