"""The trainer on two ranks, as torchrun starts it: one set of weights, banks of their own, exact resumption."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")
pytest.importorskip("torchmetrics")
pytest.importorskip("yaml")
pytest.importorskip("PIL.Image")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs gloo", allow_module_level=True)

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import train_segmentation  # noqa: E402
from semi_supervised import distributed  # noqa: E402

KEYS = (
    "labelled=4 unlabelled=6 evaluated=3 steps=6 warm_up=2 batch=2 report_every=1 evaluate_every=3 "
    "contrast.bank_capacity=64 contrast.rows_per_push=32 --device cpu"
)


# A group that is left and joined again in one process would find the addresses of the first one: it is left once.
PROGRAM = """
import sys
sys.path.insert(0, {examples!r})
import train_segmentation
from semi_supervised import distributed
stop, distributed.stop = distributed.stop, lambda: None
for arguments in {commands!r}:
    train_segmentation.main(arguments)
stop()
"""


def arguments(out, *options):
    config = EXAMPLES / "configs" / "scenes.yaml"
    return [*KEYS.split(), "--config", str(config), "--out", str(out), *map(str, options)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run to its end, and one that was stopped and resumed; on two ranks, in one start of the processes."""
    folder = tmp_path_factory.mktemp("ranks")
    checkpoint = folder / "parts" / "weight-0.5-seed-0" / "checkpoint.pt"
    commands = [
        arguments(folder / "whole"),
        arguments(folder / "parts", "--stop-at", 4),
        arguments(folder / "parts", "--resume", checkpoint),
    ]
    program = folder / "program.py"
    program.write_text(PROGRAM.format(examples=str(EXAMPLES), commands=commands))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node=2", str(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def states(folder, out):
    return [
        torch.load(folder / out / "weight-0.5-seed-0" / name, weights_only=True)
        for name in ("checkpoint.pt", "checkpoint.rank1.pt")
    ]


def test_ranks_end_with_one_set_of_weights_and_banks_of_their_own(runs):
    first, second = states(runs[0], "whole")
    averages = ("running_mean", "running_var")  # of each rank's own batches
    for part in ("student", "teacher", "projection"):
        for name, tensor in first[part].items():
            if not name.endswith(averages):
                assert torch.equal(tensor, second[part][name]), name
    rows = [state["contrast"]["bank.features"] for state in (first, second)]
    assert all(each.any() for each in rows)
    assert not torch.equal(*rows)
    assert first["run"]["ranks"] == second["run"]["ranks"] == 2


def test_two_ranks_resume_exactly(runs):
    for whole, parts in zip(states(runs[0], "whole"), states(runs[0], "parts"), strict=True):
        assert whole["step"] == parts["step"] == 6
        assert whole["history"] == parts["history"]
        for part in ("student", "teacher", "projection", "contrast"):
            for name, tensor in whole[part].items():
                assert torch.equal(tensor, parts[part][name]), name


def test_the_first_rank_alone_prints_and_writes(runs):
    folder, printed = runs
    assert printed.count("on 2 x cpu") == 3
    assert printed.count("3 test images: mIoU") == 2
    with open(folder / "parts" / "weight-0.5-seed-0" / "log.csv") as file:
        assert [row["step"] for row in csv.DictReader(file)] == list("1233456")
    assert (folder / "whole" / "metrics.json").exists()


def test_checkpoints_of_two_ranks_fit_two_ranks(runs, tmp_path, capsys):
    checkpoint = runs[0] / "whole" / "weight-0.5-seed-0" / "checkpoint.pt"
    with pytest.raises(SystemExit):
        train_segmentation.main(arguments(tmp_path, "--resume", checkpoint))
    assert "ranks must be 2 as in the checkpoint" in capsys.readouterr().err


def test_batch_norm_is_shared_on_cuda_alone(monkeypatch):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert distributed.with_shared_batch_norm(network, "cuda") is network  # one rank
    monkeypatch.setattr(distributed, "rank_and_ranks", lambda: (0, 2))
    assert distributed.with_shared_batch_norm(network, "cpu") is network
    assert isinstance(distributed.with_shared_batch_norm(network, "cuda:1")[1], nn.SyncBatchNorm)


def test_alone_there_is_nothing_to_wait_for():
    assert distributed.rank_and_ranks() == (0, 1)
    assert distributed.start("cpu") == "cpu"
    assert distributed.agree(3, "cpu")
    distributed.barrier()
    distributed.stop()
    assert distributed.path_of_rank(Path("a/checkpoint.pt"), 0) == Path("a/checkpoint.pt")
    assert distributed.path_of_rank(Path("a/checkpoint.pt"), 2) == Path("a/checkpoint.rank2.pt")
