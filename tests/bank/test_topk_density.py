"""The bank's keys: the slots of highest density in each ring."""

import pytest
import torch

from dgcl_ops import MemoryBank


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_ties_go_to_the_lower_slot_and_the_rest_is_a_stable_sort(dtype, k):
    bank = MemoryBank(5, 3, capacity=40, scales=(2,), dtype=dtype, seed=0)
    bank.counts.copy_(torch.tensor([40, 6, 0, 1, 39]))
    bank.density.copy_((torch.rand(5, 40) * 8 - 4).round() / 4)
    slots, counts = bank.rings.topk_density(bank, k)
    assert slots.shape == (5, k)
    assert counts.tolist() == bank.counts.clamp(max=k).tolist()
    for c, used in enumerate(counts.tolist()):
        rows = bank.density[c, : bank.counts[c]]
        expected = torch.sort(rows, descending=True, stable=True).indices[:used]
        assert slots[c, :used].tolist() == expected.tolist()
    assert slots.min() >= 0
    assert slots.max() < 40


def test_a_density_of_nan_or_minus_infinity_is_left_out():
    bank = MemoryBank(2, 3, capacity=4, scales=(2,), seed=0)
    bank.counts.fill_(4)
    bank.density.copy_(torch.tensor([[torch.nan, 0, torch.inf, 1], [-torch.inf, torch.nan, 0, 0]]))
    slots, counts = bank.rings.topk_density(bank, 4)
    assert counts.tolist() == [3, 2]
    assert slots[0, :3].tolist() == [2, 3, 1]
    assert slots[1, :2].tolist() == [2, 3]
