"""A short soak passes, and reports planted faults. The figures of a long soak are committed."""

from pathlib import Path

import pytest
import torch
from benchmark_runs import read
from process_memory import allocated_bytes
from soak import checks
from soak import run as soak

STEPS, ROUNDS = 480, 2


@pytest.fixture
def broken():
    """Runs the soak and returns the broken invariant."""

    def run() -> str:
        with pytest.raises(checks.Broken) as error:
            soak.soak(STEPS, 0, ROUNDS)
        return str(error.value)

    return run


def test_a_short_soak_holds():
    figures = soak.soak(STEPS, 0, ROUNDS)
    assert figures["steps"] == STEPS
    assert figures["zero_losses"] < 2 / 3 * STEPS  # new banks must fill first
    for name in ("empty_batches", "bad_batches", "resumes", "densities", "pushed_rows"):
        assert figures[name] > 0, name


def test_a_leak_of_tensors_is_seen(broken, monkeypatch):
    kept, right = [], soak.batch_of

    def batch_of(rng):
        batch = right(rng)
        kept.append(batch[0]["labels"])
        return batch

    monkeypatch.setattr(soak, "batch_of", batch_of)
    assert "tensors alive must stay" in broken()


def test_a_leak_of_32_bytes_a_step_is_seen(broken, monkeypatch):
    """Like a C++ object that is never freed. Neither Python nor resident memory shows it."""
    import ctypes

    if allocated_bytes() is None:
        pytest.skip("needs glibc's mallinfo2")
    right, malloc = soak.checked_step, ctypes.CDLL(None).malloc

    def checked_step(*arguments):
        malloc(ctypes.c_size_t(32))
        return right(*arguments)

    monkeypatch.setattr(soak, "checked_step", checked_step)
    assert "bytes of malloc() must stay below" in broken()


def test_memory_and_objects_have_limits():
    warm = {"tensors": 5, "objects": 1000, "rss": 300 << 20, "allocated": 100 << 20}
    same = warm | {"objects": 1100, "rss": 301 << 20}
    checks.check_memory(warm, same, 16_000)
    checks.check_memory(warm, same | {"allocated": None}, 16_000)
    with pytest.raises(checks.Broken, match="bytes of malloc"):
        checks.check_memory(warm, same | {"allocated": (100 << 20) + 16_000 * 32}, 16_000)
    with pytest.raises(checks.Broken, match="resident bytes must stay below"):
        checks.check_memory(warm, warm | {"rss": (300 << 20) + 16_000 * 400}, 16_000)
    with pytest.raises(checks.Broken, match="objects alive must stay below"):
        checks.check_memory(warm, warm | {"objects": 1000 + 16_000}, 16_000)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda bank: bank.heads.copy_((bank.heads + 1) % bank.capacity), "heads"),
        (lambda bank: bank.counts.clamp_(max=bank.capacity - 1), "counts"),
        (lambda bank: bank.num_pushes.add_(1), "num_pushes"),
        (lambda bank: bank.features.mul_(1.001), "held features must be unit rows"),
        (lambda bank: bank.projections.fill_(torch.nan), "held projections"),
        (lambda bank: bank.density.add_(0.001), "densities of"),
    ],
)
def test_a_wrong_push_is_seen(broken, monkeypatch, spoil, message):
    from dgcl_ops import MemoryBank

    right = MemoryBank.push_rows

    def push_rows(bank, *rows):
        right(bank, *rows)
        with torch.no_grad():
            spoil(bank)

    monkeypatch.setattr(MemoryBank, "push_rows", push_rows)
    assert message in broken()


@pytest.mark.parametrize("lost", ["rng_state", "density", "heads"])
def test_lost_state_is_seen(broken, monkeypatch, lost):
    right = soak.resume

    def resume(setting, file):
        module = right(setting, file)
        for name, tensor in module.state_dict().items():
            if name.endswith(lost):
                tensor.zero_()
        return module

    monkeypatch.setattr(soak, "resume", resume)
    assert "a resumed" in broken()


def test_a_loss_that_is_cut_off_is_seen(broken, monkeypatch):
    from dgcl_ops import DensityContrastLoss

    right = DensityContrastLoss.forward
    cut = lambda *arguments, **options: right(*arguments, **options).detach()
    monkeypatch.setattr(DensityContrastLoss, "forward", cut)
    assert "the loss must be connected" in broken()


def test_the_committed_run_is_the_long_one():
    row = read(Path(soak.__file__).with_name("results.csv"))[-1]
    assert tuple(row) == soak.COLUMNS
    assert int(row["steps"]) >= 20_000
    assert (int(row["settings"]), int(row["rounds"])) == (len(soak.SETTINGS), soak.ROUNDS)
    assert int(row["tensors_end"]) <= int(row["tensors_warm"])
    assert int(row["allocated_end"]) - int(row["allocated_warm"]) < 16 * int(row["steps"])
