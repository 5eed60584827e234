"""An exchange that overlaps the step: the bits of one that does not, whoever reads the bank, and whenever."""

import copy
import io
import pickle

import pytest
import torch
from loss_oracle import C, D, E, loss_of, run
from oracles import integers, random_rows
from processes import on_ranks
from shared_bank import STEPS, batch_for
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dgcl_ops._bank.overlap import PendingBuffers

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs gloo", allow_module_level=True)


def pending(loss) -> bool:
    return isinstance(loss.bank.__dict__["_buffers"], PendingBuffers)


def raw_pushes(loss) -> int:
    """The number of pushes as it is in memory, without finishing the exchange."""
    buffers = loss.bank.__dict__["_buffers"]
    return int((buffers.buffers if pending(loss) else buffers)["num_pushes"])


def pair(rank, **settings):
    """A loss, and one with overlap. Ranks start with different random states, so rank 0's must arrive."""
    settings = {"seed": 1 + 10 * rank, **settings}
    return loss_of(**settings), loss_of(overlap_exchange=True, **settings)


def step_of_both(losses, rank, step, **changes):
    """Whether value and gradient of a step are equal."""
    batch = {**batch_for(rank, step, {}), **changes}
    (value, gradient), (other, other_gradient) = (run(loss, batch) for loss in losses)
    return torch.equal(value, other) and torch.equal(gradient, other_gradient)


def same(ours, theirs) -> bool:
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(same(ours[name], theirs[name]) for name in ours)
    return torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


# ---- everything that uses the bank ------------------------------------------------------------------


def _saved(loss):
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _in_inference_mode(loss):
    with torch.inference_mode():
        return loss.bank.density.clone()


def _in_autocast(loss):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return loss.bank.density.clone()


def _evaluated(loss):
    value = loss.eval()(**batch_for(0, 3, {}))
    loss.train()
    return value.detach()


def _replaced(loss):
    loss.bank.counts = loss.bank.counts.clone()
    return dict(loss.bank.named_buffers())


# Each reads on some ranks only.
READERS = {
    **{
        name: lambda loss, name=name: getattr(loss.bank, name)
        for name in ("features", "projections", "density", "counts", "heads", "num_pushes")
    },
    "rng_state": lambda loss: loss.bank.get_buffer("rng_state"),
    "ready": lambda loss: loss.bank.ready(),
    "valid_slots": lambda loss: loss.bank.valid_slots(),
    "checksum": lambda loss: loss.bank.checksum(),
    "density_of": lambda loss: loss.bank.density_of(random_rows(C, D, seed=5), torch.arange(C + 1)),
    "diagnostics": lambda loss: loss.diagnostics(),
    "report": lambda loss: loss.report(),
    "evaluation": _evaluated,
    "state_dict": lambda loss: dict(loss.state_dict()),
    "saved": _saved,
    "named_buffers": lambda loss: dict(loss.bank.named_buffers()),
    "deepcopy": lambda loss: dict(copy.deepcopy(loss).bank.named_buffers()),
    "pickle": lambda loss: dict(pickle.loads(pickle.dumps(loss.bank)).named_buffers()),
    "averaged": lambda loss: dict(
        torch.optim.swa_utils.AveragedModel(loss).module.bank.named_buffers()
    ),
    "to": lambda loss: dict(loss.to("cpu", torch.float64).bank.named_buffers()),
    "functional_call": lambda loss: torch.func.functional_call(
        loss.eval(), {"bank.num_pushes": torch.ones((), dtype=torch.int64)}, (), batch_for(0, 3, {})
    ).detach(),
    "replaced": _replaced,
    "inference mode": _in_inference_mode,
    "autocast": _in_autocast,
    "finish_exchange": lambda loss: loss.bank.finish_exchange(),
}
# These use collectives, so all ranks call them.
WRITERS = {
    "push": lambda loss: loss.bank.push(**_maps()),
    "push_rows": lambda loss: loss.bank.push_rows(
        random_rows(C, 2, D), random_rows(C, 2, E), random_rows(C, 2), integers([2, 1, 0, 2, 1])
    ),
    "assert_synced": lambda loss: loss.bank.assert_synced(),
    "reset": lambda loss: loss.bank.reset(),
    "load_state_dict": lambda loss: loss.load_state_dict(loss_of(seed=3).state_dict()),
    "update_bank=False": lambda loss: loss(**batch_for(0, 3, {}), update_bank=False).detach(),
}
KEEP_PENDING = {
    "names": lambda loss: [
        *loss.bank._buffers,
        len(loss.bank._buffers),
        "counts" in loss.bank._buffers,
    ],
    "train": lambda loss: loss.eval().train().training,
    "attribute": lambda loss: setattr(loss.bank, "note", 3),
    "settings": lambda loss: [loss.bank.metric, loss.bank.rows_per_rank, repr(loss.bank)],
}


def _maps():
    batch = batch_for(0, 3, {})
    return {name: batch[name] for name in ("features", "projections", "labels")}


def uses(rank, folder) -> dict:
    """For each use of the bank: was it pending before, is it after, was the result that of an exchange in step."""
    size = dist.get_world_size()
    result = {}
    for number, (name, use) in enumerate({**READERS, **WRITERS, **KEEP_PENDING}.items()):
        losses = pair(rank)
        equal = [step_of_both(losses, rank, step) for step in range(2)]
        before = pending(losses[1])
        mine = name not in READERS or number % size == rank  # the other ranks read later
        if mine:
            expected, found = (use(loss) for loss in losses)
            equal.append(same(found, expected))
        after = pending(losses[1])
        for loss in losses:
            loss.train()
        equal += [step_of_both(losses, rank, step) for step in range(2, 4)]
        equal.append(same(dict(losses[1].state_dict()), dict(losses[0].state_dict())))
        losses[1].bank.assert_synced()
        result[name] = [before, after, mine, *equal]
    return result


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.long)])
def test_every_use_of_the_bank_sees_the_rows_of_the_last_step(tmp_path, size):
    of_ranks = on_ranks(size, tmp_path, uses)
    for result in of_ranks:
        for name, (before, after, mine, *equal) in result.items():
            assert before, name
            pending_after = name in KEEP_PENDING or name in ("push", "push_rows") or not mine
            assert after == pending_after, name
            assert all(equal), name
    for name in READERS:
        assert sum(result[name][2] for result in of_ranks) == 1


# ---- the schedule -----------------------------------------------------------------------------------


def training(rank, folder) -> dict:
    """Trains with each setting. Checks each step, resumes from the middle, and has an empty batch on one rank."""
    result = {}
    settings = {
        "default": {},
        "half": {"exchange_dtype": torch.bfloat16},
        "refreshed": {"metric": "l2", "refresh_every": 2, "bank_capacity": 9},
        "no backfill": {"backfill": False},
    }
    for name, setting in settings.items():
        losses = pair(rank, **setting)
        equal, written = [], []
        for step in range(STEPS):
            images = slice(0, 0) if step == 2 and rank == 1 else slice(None)
            batch = {key: maps[images] for key, maps in batch_for(rank, step, {}).items()}
            equal.append(step_of_both(losses, rank, step, **batch))
            written.append(raw_pushes(losses[1]))
            assert pending(losses[1])
            if step == 3:  # saved while the exchange is pending
                state = losses[1].state_dict()
                resumed = pair(rank, seed=77, **setting)
                for loss in resumed:
                    loss.load_state_dict(state)
            if step % 3 == 2:
                equal.append(same(dict(losses[1].state_dict()), dict(losses[0].state_dict())))
        for step in range(4, STEPS):
            equal.append(step_of_both(resumed, rank, step))
        states = [dict(loss.state_dict()) for loss in (*losses, *resumed)]
        equal += [same(state, states[0]) for state in states]
        result[name] = {
            "equal": equal,
            "written": written,
            "rows": int(states[0]["bank.counts"].sum()),
        }
    return result


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.long)])
def test_steps_and_resumed_steps_have_the_bits_of_a_synchronous_exchange(tmp_path, size):
    for result in on_ranks(size, tmp_path, training):
        for name, of_setting in result.items():
            assert all(of_setting["equal"]), name
            # After a step the rows of earlier steps have been written, but not its own: the exchange did overlap.
            assert of_setting["written"] == list(range(STEPS)), name
            assert of_setting["rows"] > 10


def in_ddp(rank, folder, broadcast: bool) -> list:
    """The gradients' all-reduce, and DDP's broadcasts of the bank, come while the exchange is pending."""

    class Student(torch.nn.Module):
        def __init__(self, overlap):
            super().__init__()
            torch.manual_seed(0)
            self.layer = torch.nn.Conv2d(E, E, 1)
            self.contrast = loss_of(overlap_exchange=overlap, seed=1 + 10 * rank)

        def forward(self, projections, **maps):
            return self.contrast(self.layer(projections.nan_to_num()), **maps)

    students = [Student(overlap) for overlap in (False, True)]
    wrapped = [DistributedDataParallel(each, broadcast_buffers=broadcast) for each in students]
    result = []
    for step in range(4):
        batch = batch_for(rank, step, {})
        for student, model in zip(students, wrapped, strict=True):
            model.zero_grad()
            value = model(**batch)
            result.append([pending(student.contrast), value.detach()])
            value.backward()
            result[-1] += [pending(student.contrast), student.layer.weight.grad.clone()]
    sums = [int(student.contrast.bank.checksum()) for student in students]
    return [*result, sums]


@pytest.mark.parametrize("broadcast", [False, True])
def test_ddp_reduces_gradients_while_the_exchange_is_pending(tmp_path, broadcast):
    of_ranks = on_ranks(2, tmp_path, in_ddp, broadcast)
    for *steps, sums in of_ranks:
        assert sums[0] == sums[1] == of_ranks[0][-1][0]
        for plain, overlapped in zip(steps[::2], steps[1::2], strict=True):
            assert (plain[0], plain[2]) == (False, False)
            assert (overlapped[0], overlapped[2]) == (True, True)
            assert torch.equal(plain[1], overlapped[1])
            assert torch.equal(plain[3], overlapped[3])
        assert any(step[1] > 0 for step in steps)
