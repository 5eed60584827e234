"""The data of the pictures: densities of features, pixels and banks; anchors and keys."""

import pytest
import torch
from loss_oracle import C, D, batch_of, draw_of, filled, loss_of

from dgcl_ops import resize_labels, viz


def test_feature_density_is_the_banks_and_0_without_one():
    module = filled(loss_of(), counts=(10, 10, 10, 1, 0))
    labels = torch.tensor([2, 255, 0, 3, -1, 2, 4])  # 3 and 4 are not ready
    features = torch.randn(7, D)
    density = viz.feature_density(module.bank, features, labels)
    for i, c in enumerate(labels.tolist()):
        if c in (0, 2):
            offsets = (torch.arange(C + 1) > c).long()
            assert density[i] == module.bank.density_of(features[i : i + 1], offsets)[0] != 0
        else:
            assert density[i] == 0
    half = viz.feature_density(module.bank, features.bfloat16(), labels)
    assert half.dtype == torch.float32
    assert not viz.feature_density(module.bank, features[:0], labels[:0]).numel()


def test_density_map_keeps_to_where_there_is_a_density():
    module = filled(loss_of(), counts=(10, 10, 10, 1, 0))
    features = torch.randn(2, D, 4, 6)
    labels = torch.full((2, 4, 6), 255)
    labels[0, :2], labels[1, :, :3] = 1, 3
    small = viz.density_map(module.bank, features, labels, (4, 6))
    rows = features.permute(0, 2, 3, 1).flatten(0, 2)
    expected = viz.feature_density(module.bank, rows, labels.flatten()).view(2, 4, 6)
    torch.testing.assert_close(small, expected)
    large = viz.density_map(module.bank, features, labels, (8, 12))
    assert torch.equal(large != 0, resize_labels((small != 0).long(), (8, 12)) == 1)
    held = small[small != 0]
    assert held.min() - 1e-6 <= large[large != 0].min()
    assert large.max() <= held.max() + 1e-6


def test_bank_densities_leave_out_what_is_not_there():
    module = filled(loss_of(), steps=1, counts=(10, 10, 2, 0, 10))
    density = viz.bank_densities(module.bank)
    assert density.isfinite().sum(1).tolist() == [6, 6, 0, 0, 6]
    assert torch.equal(density[0, :6], module.bank.density[0, :6])


@pytest.mark.parametrize("numbers", [{}, {"num_anchors": 2, "num_keys": 1}])
def test_anchors_and_keys_are_the_steps(numbers):
    module = filled(loss_of(exclude_classes=(4,), **numbers))
    whole = filled(loss_of(exclude_classes=(4,)))
    batch = batch_of(counts=(15, 12, 9, 1, 8))
    rows = batch["features"].permute(0, 2, 3, 1).flatten(0, 2)
    chosen = draw_of(module, batch, push=False)
    state = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    marks = viz.anchors_and_keys(whole, rows, batch["labels"].flatten(), **numbers)
    for mark, table in zip(marks, (chosen.anchors, chosen.keys), strict=True):
        wanted = [table.index[c, : table.counts[c]] for c in range(C)]
        assert mark.nonzero()[:, 0].tolist() == torch.cat(wanted).unique().tolist()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_anchors_by_confidence_need_it():
    module = filled(loss_of(anchors="low_confidence"))
    with pytest.raises(ValueError, match=r"anchors_and_keys: confidence is required with anchors"):
        viz.anchors_and_keys(module, torch.randn(3, D), torch.zeros(3, dtype=torch.int64))
    rows, labels = torch.randn(20, D), torch.zeros(20, dtype=torch.int64)
    anchors, _ = viz.anchors_and_keys(
        module, rows, labels, confidence=torch.linspace(0, 1, 20), num_anchors=4
    )
    assert anchors.sum() == 4
