"""Averages of models with a bank inside, and banks whose buffers were cast."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn
from trainer_loss import batch, build, file_of, train, trained

from dgcl_ops import MemoryBank


class Student(nn.Module):
    def __init__(self, **changes):
        super().__init__()
        self.body = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.contrast = build(**changes)

    def step(self, seed: int) -> float:
        maps, labels = batch(seed)
        return float(self.contrast(self.norm(self.body(maps)), labels).detach())


def by_averaged_model(rule=None, multi=None):
    def average(student):
        averaged = AveragedModel(student, avg_fn=rule, multi_avg_fn=multi, use_buffers=True)
        return averaged.module, lambda: averaged.update_parameters(student)

    return average


def by_state_dict(only_floats: bool):
    """A mean teacher, with or without counters that are copied."""

    def average(student):
        teacher = copy.deepcopy(student)

        @torch.no_grad()
        def update():
            theirs = student.state_dict()
            for name, tensor in teacher.state_dict().items():
                exact = only_floats and not tensor.is_floating_point()
                tensor.copy_(theirs[name] if exact else 0.9 * tensor + 0.1 * theirs[name])

        return teacher, update

    return average


AVERAGES = {
    "plain": by_averaged_model(),
    "moving": by_averaged_model(get_ema_avg_fn(0.99)),
    "moving, multi": by_averaged_model(multi=get_ema_multi_avg_fn(0.9)),
    "state_dict": by_state_dict(False),
    "floats of the state_dict": by_state_dict(True),
}


@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)
def test_an_averaged_bank_is_not_loaded(average):
    """Training continues while the model is averaged. A resume that loads the average and then the student is exact."""
    torch.manual_seed(0)
    student = Student()
    averaged, update = average(student)
    for seed in range(12):
        student.step(seed)
        update()
    says = "The bank's rows are not unit rows"
    assert says in averaged.contrast.report()
    for update_bank in (False, True):
        with pytest.raises(RuntimeError, match="the rows of this copy are averages over steps"):
            averaged.contrast(*batch(0), update_bank=update_bank)
    assert says not in student.contrast.report()
    torch.manual_seed(1)
    resumed = Student()
    before = copy.deepcopy(resumed.contrast.bank)
    with pytest.warns(UserWarning, match="MemoryBank: the stored rows are averages over steps"):
        resumed.load_state_dict(file_of(averaged))
    assert torch.equal(resumed.body.weight, averaged.body.weight)
    assert torch.equal(resumed.norm.running_mean, averaged.norm.running_mean)
    for name, tensor in before.named_buffers():
        assert torch.equal(resumed.contrast.bank.get_buffer(name), tensor), name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.load_state_dict(file_of(student))
    assert resumed.step(20) == student.step(20) > 0


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "moved": lambda module: copy.deepcopy(module)._apply(torch.clone),
}


@pytest.mark.parametrize("write", ["in place", "data"])
@pytest.mark.parametrize("again", COPIES.values(), ids=COPIES)
def test_a_copy_of_an_average_is_one(again, write):
    student = trained()
    teacher = copy.deepcopy(student)
    train(student, 3)
    with torch.no_grad():
        for mine, new in zip(teacher.buffers(), student.buffers(), strict=True):
            if not mine.is_floating_point():
                mine.copy_(new)
            elif write == "data":
                mine.data = (mine + new) / 2
            else:
                mine.lerp_(new, 0.5)
    with pytest.raises(RuntimeError, match="the rows of this copy are averages over steps"):
        again(teacher)(*batch(0))


@pytest.mark.parametrize("again", COPIES.values(), ids=COPIES)
def test_copies_work_in_inference_mode(again):
    copied = copy.deepcopy(trained()).eval()
    with torch.inference_mode():
        assert again(copied)(*batch(0)) == copied(*batch(0)) > 0


def test_an_average_with_counters_out_of_step_is_refused_for_every_metric():
    torch.manual_seed(0)
    student = Student(metric="l2")
    averaged, update = by_averaged_model(get_ema_avg_fn(0.99))(student)
    for seed in range(12):
        student.step(seed)
        update()
    with pytest.raises(RuntimeError, match="an averaged state_dict cannot be loaded"):
        Student(metric="l2").load_state_dict(file_of(averaged))


def test_copies_of_the_buffers_are_exact():
    """use_buffers=False copies them, and so do loops over both models' buffers."""
    student = Student()
    averaged = AveragedModel(student)
    teacher = copy.deepcopy(student)
    for seed in range(4):
        student.step(seed)
        averaged.update_parameters(student)
    for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        mine.copy_(theirs)
    for each in (averaged.module, teacher):
        loaded = Student()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded.load_state_dict(file_of(each))
        assert torch.equal(loaded.contrast.bank.checksum(), student.contrast.bank.checksum())
        assert each.step(9) == loaded.step(9) > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_rounded_rows_and_rows_without_a_direction_are_no_average(dtype):
    bank = MemoryBank(2, 64, capacity=200, rows_per_push=100, dtype=dtype)
    rows = torch.randn(2, 100, 64) ** 5
    rows[0, :3] = torch.tensor([0.0, torch.nan, torch.inf])[:, None]
    rows[0, 3] *= 1e-30
    rows[1, 0] = torch.eye(64)[0]
    bank.push_rows(rows, rows, rows[..., 0], torch.tensor([100, 90]))
    state = file_of(bank)
    for cast in (torch.float32, torch.bfloat16):
        cast_state = {n: t.to(cast) if t.is_floating_point() else t for n, t in state.items()}
        for each in (state, cast_state):
            loaded = MemoryBank(2, 64, capacity=200, rows_per_push=100)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                loaded.load_state_dict(each)
            assert loaded.counts.tolist() == [100, 90]


# ---- casts ---------------------------------------------------------------------------------------------


def cast(loss, dtype=torch.bfloat16) -> None:
    """As FSDP's first version does."""
    for buffer in loss.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("bank_dtype", [torch.float32, torch.float64])
def test_an_empty_bank_that_was_cast_is_kept(metric, bank_dtype):
    loss = build(metric=metric, bank_dtype=bank_dtype)
    cast(loss)
    with pytest.warns(UserWarning, match=r"MixedPrecision\(buffer_dtype=...\) does this: pass"):
        first = train(loss, 0, 1)
    expected = build(metric=metric, bank_dtype=bank_dtype)
    assert first + train(loss, 1) == train(expected, 0, 1) + train(expected, 1)
    assert torch.equal(loss.bank.checksum(), expected.bank.checksum())
    assert loss.report() == expected.report()


def test_rows_that_were_cast_are_rounded_and_unit():
    loss, expected = trained(), trained()
    cast(loss)
    features, _ = batch(9)
    rows = features.permute(0, 2, 3, 1).reshape(4, -1, 8)[:, :5]
    arguments = rows, rows, rows[..., 0], torch.full((4,), 5)
    with pytest.warns(UserWarning, match="rows that were already in the bank stay rounded"):
        loss.bank.push_rows(*arguments)
    expected.bank.push_rows(*arguments)
    assert torch.equal(loss.bank.counts, expected.bank.counts)
    for name in ("features", "projections", "density"):
        ours, theirs = loss.bank.get_buffer(name), expected.bank.get_buffer(name)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=2**-7)
    length = loss.bank.features[1].double().norm(dim=1)
    assert (length - 1).abs().max() < 1e-6


def test_a_cast_bank_is_not_searched_as_one_of_exact_unit_rows():
    loss = trained()
    assert loss.bank._holds_unit_rows(torch.float32)
    cast(loss)
    assert not loss.bank._holds_unit_rows(torch.float32)
