"""The trainer on two ranks under torchrun: one bank, one set of weights, one checkpoint, exact resumption, also after a
rank was killed."""

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

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import train_segmentation  # noqa: E402
from semi_supervised import checkpoint, distributed  # noqa: E402

KEYS = (
    "labelled=4 unlabelled=6 evaluated=3 steps=8 warm_up=2 batch=2 report_every=1 evaluate_every=3 save_every=3 "
    "contrast.bank_capacity=64 contrast.rows_per_push=32 --device cpu"
)
# The published rules with epochs of 2 steps: the warm-up, one with a copied teacher, two with an averaged teacher.
RULES = (
    "contrast_view=weak cutmix_mode=batch ema_from=warm_up teacher_averages=own schedule_by=epoch epoch_steps=2 "
    "precision=float16 widths=[8,16] feature_dim=8"
)
NETWORKS = ("student", "teacher", "projection")
ISOLATED = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
PATIENCE = 1800  # seconds for runs that take 10; only a hang takes that long on a busy machine

# Each rank saves its final state. A process that rejoins a group would read the addresses of the first group, so it
# leaves the group only once.
PROGRAM = """
import os, signal, sys
sys.path.insert(0, {examples!r})
import torch
import train_segmentation
from semi_supervised import distributed
from semi_supervised import checkpoint

def run_training(trainer, out, *rest, inner=train_segmentation.run_training):
    inner(trainer, out, *rest)
    state = {{name: each.state_dict() for name, each in checkpoint.networks(trainer).items()}}
    bank = trainer.contrast.bank.named_buffers()  # only this rank's shard, if the bank is sharded
    state["contrast"] = {{"bank." + name: rows for name, rows in bank if name[0] != "_"}}
    torch.save(state, f"{{out}}.rank{{trainer.rank}}")

train_segmentation.run_training = run_training
{fault}
stop, distributed.stop = distributed.stop, lambda: None
for arguments in {commands!r}:
    train_segmentation.main(arguments)
stop()
"""

# In the first start, rank 0 dies while it writes its second checkpoint, and rank 1 waits for it.
FAULT = """
def save(state, file, inner=torch.save):
    inner(state, file)
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and state.get("step") == 6:
        file.truncate(file.tell() // 2)
        os.kill(os.getpid(), signal.SIGKILL)

torch.save = save
"""


def arguments(out, *options):
    config = EXAMPLES / "configs" / "scenes.yaml"
    return [*KEYS.split(), "--config", str(config), "--out", str(out), *map(str, options)]


def on_two_ranks(folder, commands, *options, fault="") -> str:
    """Runs the program under torchrun, and returns what it printed."""
    program = folder / "program.py"
    values = {"examples": str(EXAMPLES), "commands": commands, "fault": fault}
    program.write_text(PROGRAM.format(**values))
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    launcher = subprocess.Popen(
        [*torchrun, *options, str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", ISOLATED: "1"},
    )
    try:
        printed, _ = launcher.communicate(timeout=PATIENCE)
    finally:
        launcher.terminate()  # on SIGTERM it ends its ranks
        launcher.wait(timeout=PATIENCE)
    assert launcher.returncode == 0, printed
    return printed


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def printed(folder):
    """Trains five runs on two ranks, in one start of the processes.

    One is uninterrupted, one is stopped and resumed, one with a sharded bank is stopped and resumed. Two use the
    published rules, and the second of them is stopped and resumed twice.
    """
    commands = [arguments(folder / "whole")]
    for out, *keys in (("parts",), ("sharded", "contrast.placement=sharded")):
        keys = arguments(folder / out, *keys)
        resumed = folder / out / "weight-0.5-seed-0" / "checkpoint.pt"
        commands += [[*keys, "--stop-at", "4"], [*keys, "--resume", str(resumed)]]
    commands.append(arguments(folder / "rules", *RULES.split()))
    keys = arguments(folder / "rules-parts", *RULES.split())
    resume = ["--resume", str(folder / "rules-parts" / "weight-0.5-seed-0" / "checkpoint.pt")]
    first, second = ["--stop-at", "1"], ["--stop-at", "3"]
    commands += [[*keys, *first], [*keys, *second, *resume], [*keys, *resume]]
    return on_two_ranks(folder, commands)


def steps(run) -> list[str]:
    path = run / "log.csv"
    if not path.exists():
        return []
    with open(path) as file:
        return [row["step"] for row in csv.DictReader(file)]


def states(folder, out):
    """Returns the final states of both ranks."""
    paths = (folder / out / f"weight-0.5-seed-0.rank{rank}" for rank in (0, 1))
    return [torch.load(path, weights_only=True) for path in paths]


def stored(folder, out):
    return torch.load(folder / out / "weight-0.5-seed-0" / "checkpoint.pt", weights_only=True)


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def assert_same_end(folder, out, parts=(*NETWORKS, "contrast"), whole="whole"):
    for ours, theirs in zip(states(folder, whole), states(folder, out), strict=True):
        for part in parts:
            assert_equal(ours[part], theirs[part])
    ours, theirs = stored(folder, whole), stored(folder, out)
    assert ours["step"] == theirs["step"] == 8
    assert_equal(ours["contrast"], theirs["contrast"])
    assert_equal(ours["averages"], theirs["averages"])
    assert ours["scaler"] == theirs["scaler"]
    return ours["history"], theirs["history"]


@pytest.mark.parametrize("out", ["whole", "rules"])
def test_ranks_end_with_one_set_of_weights_and_one_bank(folder, printed, out):
    first, second = states(folder, out)
    own = {name: set() for name in NETWORKS}
    for part in own:
        for name, tensor in first[part].items():
            if not torch.equal(tensor, second[part][name]):
                own[part].add(name.split(".")[-1])
    assert all(names == {"running_mean", "running_var"} for names in own.values())
    assert first["contrast"]["bank.features"].any()
    assert_equal(first["contrast"], second["contrast"])
    of_ranks = stored(folder, out)
    assert of_ranks["ranks"] == 2
    for rank, state in enumerate((first, second)):
        for name, tensor in of_ranks["averages"].items():
            part, _, name = name.partition(".")
            assert torch.equal(tensor[rank], state[part][name])


def test_two_ranks_resume_exactly(folder, printed):
    whole, parts = assert_same_end(folder, "parts")
    assert whole == parts


def test_two_ranks_resume_exactly_under_the_published_rules(folder, printed):
    whole, parts = assert_same_end(folder, "rules-parts", whole="rules")
    assert whole == parts
    assert whole[-1]["contrast"] > 0
    assert stored(folder, "rules")["scaler"]["_growth_tracker"] > 0
    for state in states(folder, "rules"):  # the teacher has its own averages
        averages = [
            torch.cat([value for name, value in state[part].items() if "running_mean" in name])
            for part in ("student", "teacher")
        ]
        assert not torch.equal(*averages)


def test_a_sharded_bank_trains_alike_and_is_stored_whole(folder, printed):
    assert_same_end(folder, "sharded", NETWORKS)
    lengths = [len(state["contrast"]["bank.density"][0]) for state in states(folder, "sharded")]
    assert lengths == [32, 32]


def test_the_first_rank_alone_prints_and_writes(folder, printed):
    assert printed.count("on 2 x cpu") == 9
    assert printed.count("3 test images: mIoU") == 5
    run = folder / "parts" / "weight-0.5-seed-0"
    assert steps(run) == list("1233456678")
    assert [path.name for path in run.glob("checkpoint*")] == ["checkpoint.pt"]
    assert (folder / "whole" / "metrics.json").exists()


def test_a_run_goes_on_after_a_rank_was_killed(folder, printed):
    run = folder / "faulty" / "weight-0.5-seed-0"
    command = arguments(folder / "faulty", "--resume", "auto")
    said = on_two_ranks(folder, [command], "--max-restarts=1", fault=FAULT)
    # The interrupted checkpoint was half written, the previous one was whole.
    assert said.count("step     6/8") == 2
    assert said.count("continues") == said.count(f"{run / 'checkpoint.pt'} at step 3") == 1
    whole, went_on = assert_same_end(folder, "faulty")
    assert whole == went_on
    assert steps(run) == list("1233456678")
    logs = [folder / out / run.name / "log.csv" for out in ("whole", "faulty")]
    assert logs[0].read_text() == logs[1].read_text()
    assert [path.name for path in run.glob("checkpoint*")] == ["checkpoint.pt"]


def test_one_process_goes_on_from_two_ranks(folder, printed, tmp_path, capsys, monkeypatch):
    path = folder / "parts" / "weight-0.5-seed-0" / "checkpoint.pt"
    seen = []
    monkeypatch.setattr(train_segmentation, "run_training", lambda *given: seen.append(given[0]))
    train_segmentation.main(arguments(tmp_path, "--resume", path))
    assert "2 ranks wrote the checkpoint: this run continues with" in capsys.readouterr().out
    first = {name: of_ranks[0] for name, of_ranks in stored(folder, "parts")["averages"].items()}
    assert_equal(first, checkpoint.averages(seen[0]))
    assert_equal(seen[0].contrast.state_dict(), stored(folder, "parts")["contrast"])


def test_batch_norm_is_shared_on_cuda_alone(monkeypatch):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert distributed.with_shared_batch_norm(network, "cuda") is network  # one rank
    monkeypatch.setattr(distributed, "rank_and_world_size", lambda: (0, 2))
    assert distributed.with_shared_batch_norm(network, "cpu") is network
    assert isinstance(distributed.with_shared_batch_norm(network, "cuda:1")[1], nn.SyncBatchNorm)


def test_restarts_need_a_store_of_their_own(monkeypatch, tmp_path, capsys):
    names = {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3"}
    names["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        train_segmentation.main(arguments(tmp_path))
    assert f"--max-restarts needs {ISOLATED}=1" in capsys.readouterr().err


def test_alone_there_is_nothing_to_wait_for():
    assert distributed.rank_and_world_size() == (0, 1)
    assert distributed.start("cpu") == "cpu"
    assert distributed.agree(3, "cpu")
    distributed.barrier()
    distributed.stop()
