"""Modules built on the meta device, then materialised or loaded, and reset_parameters."""

import pytest
import torch
from torch import nn
from trainer_loss import SETTING, STEPS, batch, build, file_of, train, trained

from dgcl_ops import DensityContrastLoss, MemoryBank, ProjectionHead, PseudoLabelLoss


def spoil(module: nn.Module) -> None:
    """What to_empty finds in memory."""
    for buffer in module.buffers():
        buffer.reshape(-1).view(torch.uint8).fill_(0x5A)


def on_meta(make):
    with torch.device("meta"):
        return make()


def of_meta_by_assignment() -> DensityContrastLoss:
    loss = on_meta(build)
    loss.load_state_dict(file_of(trained()), assign=True)
    return loss


def of_meta_by_a_copy() -> DensityContrastLoss:
    loss = on_meta(build).to_empty(device="cpu")
    spoil(loss)
    loss.load_state_dict(file_of(trained()))
    return loss


def of_meta_buffer_by_buffer() -> DensityContrastLoss:
    """Like loaders that only know names: other buffers stay on the meta device."""
    loss = on_meta(build)
    for name, tensor in file_of(trained()).items():
        path, _, leaf = name.rpartition(".")
        setattr(loss.get_submodule(path), leaf, tensor)
    return loss


@pytest.mark.parametrize(
    "load", [of_meta_by_assignment, of_meta_by_a_copy, of_meta_buffer_by_buffer]
)
def test_a_loss_from_the_meta_device_goes_on_with_the_loaded_state(load):
    expected, loss = trained(), load()
    assert loss.included.tolist() == [False, True, True, True]
    assert loss.report().splitlines()[0].startswith("No loss yet")
    assert train(loss, STEPS) == train(expected, STEPS)
    assert torch.equal(loss.bank.checksum(), expected.bank.checksum())
    assert loss.report() == expected.report()
    assert not any(buffer.is_meta for buffer in loss.buffers())


def test_a_loss_from_the_meta_device_is_a_new_one_after_to_empty():
    loss = on_meta(build).to_empty(device="cpu")
    assert train(loss) == train(build())
    inside = on_meta(lambda: nn.Sequential(nn.Conv2d(3, 3, 1), build())).to_empty(device="cpu")[1]
    assert train(inside) == train(build())


def test_reset_parameters_gives_a_new_module():
    loss = trained()
    spoil(loss)
    loss.reset_parameters()
    assert {name: t.tolist() for name, t in loss.named_buffers()} == {
        name: t.tolist() for name, t in build().named_buffers()
    }
    assert train(loss) == train(build())
    spoil(loss)
    for module in loss.modules():  # as FSDP's recipes do
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert train(loss) == train(build())


def test_reset_parameters_without_a_seed_keeps_the_drawn_one():
    bank = MemoryBank(2, 3)
    before = bank.rng_state.clone()
    bank.rng_state.fill_(7)
    bank.reset_parameters()
    assert torch.equal(bank.rng_state, before)
    drawn = on_meta(lambda: MemoryBank(2, 3)).to_empty(device="cpu").rng_state
    assert drawn[0] != before[0]


def test_a_head_from_the_meta_device():
    head = on_meta(lambda: ProjectionHead(8, 6, 4)).to_empty(device="cpu")
    torch.manual_seed(0)
    head.reset_parameters()
    torch.manual_seed(0)
    expected = ProjectionHead(8, 6, 4)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(head.state_dict()[name], tensor), name
    assigned = on_meta(lambda: ProjectionHead(8, 6, 4))
    assigned.load_state_dict(expected.state_dict(), assign=True)
    maps = torch.randn(1, 8, 2, 2)
    assert torch.equal(assigned(maps), head(maps))


def test_a_module_without_buffers_on_the_meta_device():
    loss = on_meta(PseudoLabelLoss).to_empty(device="cpu")
    logits, labels = torch.randn(1, 3, 2, 2), torch.ones(1, 2, 2, dtype=torch.long)
    assert torch.equal(loss(logits, labels), PseudoLabelLoss()(logits, labels))


def test_a_bank_on_the_meta_device_says_what_to_call():
    loss, (maps, labels) = on_meta(build), batch(0)
    message = r"the bank has no memory yet \(meta device\); call .to_empty\(device=...\)"
    with pytest.raises(RuntimeError, match=message):
        loss(maps, labels)
    with pytest.raises(RuntimeError, match=message):
        loss.bank.push(maps, maps, labels)
    rows = torch.zeros(4, 1, 8)
    with pytest.raises(RuntimeError, match=message):
        loss.bank.push_rows(rows, rows, rows[..., 0], torch.zeros(4, dtype=torch.long))


def test_a_step_on_the_meta_device_gives_shapes():
    with torch.device("meta"):
        maps, labels = torch.randn(2, 8, 16, 16, requires_grad=True), torch.ones(2, 16, 16).long()
        build()(maps, labels).backward()
    assert maps.grad.shape == maps.shape


def test_a_record_is_not_loaded():
    loss = trained()
    loss.load_state_dict(file_of(loss))
    assert loss.report().splitlines()[0].startswith("No loss yet")


def test_skip_init():
    loss = nn.utils.skip_init(DensityContrastLoss, 4, 8, **SETTING, seed=0)
    assert train(loss) == train(build())
