"""Does the density loss help on photographs? Trains matched runs on CCP (Clothing Co-Parsing) with few labels.

    python benchmarks/evidence/ccp.py --data DIR            # the gates; if they hold, all missing runs
    python benchmarks/evidence/ccp.py --data DIR --gates    # only the gates
    python benchmarks/evidence/ccp_test.py --data DIR       # then: the test images, tables and plot
    python benchmarks/evidence/ccp.py --report              # tables and plot only, no training

DIR holds train/, val/ and test/, each with images/ and labels/. It also holds unlabelled/. Labels are 0 to 13, and 255
for void pixels.

Each run adds a row to runs.csv when it ends, measured on the validation images. You can stop the program at any time.
It continues when you start it again, even in the middle of a run. ccp_test.py reads the test images once, at the end.

Runs with the same seed are matched: they share labelled images, initial weights, batches and random numbers.
Self-training is the same code with contrast weight 0. If a gate does not hold, the data cannot show an effect of the
method. The two gates use the validation images and two seeds:
- All labels beat few labels by 8 points.
- Self-training beats supervised training by 3 points.

ccp_settings.py has the settings. ccp_on_gpu.py trains the same arms with a tuned backbone on a GPU.
Needs `pip install ".[evidence]"`.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import MACHINE_COLUMNS, ROOT, append_rows, machine, say

sys.path.insert(0, str(ROOT / "examples"))
from semi_supervised import evaluate
from semi_supervised.images import Sample
from semi_supervised.pretrained import PretrainedNetwork
from semi_supervised.settings import Settings
from semi_supervised.trainer import Trainer

from evidence.ccp_report import ALL, FEW, gates, gates_text, read_rows
from evidence.ccp_settings import ARMS, BASE, CLASSES, FROZEN, Case, Setting
from evidence.ccp_tables import report
from evidence.compare import CONTROL, RANDOM, SUPERVISED
from evidence.photos import Photos, in_batches
from evidence.pool import outcomes

MEASURED = ("val_miou", "val_class_iou", "ready_classes", "mean_density", "start", "inputs")
COLUMNS = ("variant", "labelled", "seed", *MEASURED, "seconds", "settings", *MACHINE_COLUMNS)
HASHED_EVERY = 50  # steps
RANDOM_SEEDS = 3  # of random anchors and average keys; fixed before the test images were read


def gate_cases() -> list[Case]:
    """Returns the runs of the two gates."""
    kinds = (CONTROL, FEW), (SUPERVISED, FEW), (SUPERVISED, ALL)
    return [Case(*kind, seed) for kind in kinds for seed in (0, 1)]


def study_cases(seeds: Iterable[int]) -> list[Case]:
    """Returns the runs of the study, seed by seed. Long runs come first."""
    return [
        Case(arm, FEW, seed)
        for seed in seeds
        for arm in reversed(ARMS)
        if arm != RANDOM or seed < RANDOM_SEEDS
    ]


def settings_of(case: Case, steps: int, setting: Setting) -> Settings:
    """Returns a run's settings, with the warm-up scaled to the number of steps."""
    return setting.settings(case.arm, case.seed, steps)


def load(
    case: Case,
    folder: Path,
    setting: Setting,
    device: str | torch.device = "cpu",
    hidden: int | None = None,
) -> Photos:
    """Loads the images of a run into the memory of a device. The training labels omit a hidden class."""
    return Photos(
        folder,
        labelled=str(case.labelled),
        unlabelled=folder / "unlabelled",
        num_classes=len(CLASSES),
        crop=setting.crop,
        scale=setting.scale,
        pad=True,
        seed=case.seed,
        shown_in=2,
        device=device,
        hidden=hidden,
    )


def prepare(case: Case, data: Photos, steps: int, setting: Setting) -> Trainer:
    """Builds a run on the device of its images. Its initial weights depend only on the seed."""
    torch.manual_seed(case.seed)
    network = PretrainedNetwork(data.num_classes, **setting.network)
    return Trainer(network, data, settings_of(case, steps, setting), data.device)


class Inputs:
    """Hashes the student's inputs in every 50th step. A resumed run continues with the saved hash."""

    def __init__(self, trainer: Trainer, digest: str = ""):
        self.digest, self.trainer = digest, trainer
        trainer.student.register_forward_pre_hook(self._see)

    def _see(self, network: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        if self.trainer.step % HASHED_EVERY == 0 and torch.is_grad_enabled():
            self.digest = hashed([given[0]], self.digest)


def hashed(tensors: Iterable[Tensor], before: str = "") -> str:
    """Returns a hash of an earlier hash and of the values of tensors."""
    state = hashlib.sha256(before.encode())
    for tensor in tensors:
        state.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return state.hexdigest()[:16]


def train(case: Case, options: argparse.Namespace) -> dict:
    """Trains a run, or continues it, and evaluates it on the validation images.

    Args:
        case: the run.
        options: the command line.

    Returns:
        A row of runs.csv.
    """
    torch.set_num_threads(1)
    _, row = trained(case, options, lambda: load(case, options.data, FROZEN), FROZEN)
    return row


def trained(
    case: Case, options: argparse.Namespace, load: Callable[[], Photos], setting: Setting
) -> tuple[Trainer, dict]:
    """Trains a run, or continues it. Returns its trainer and its row of runs.csv.

    Args:
        case: the run.
        options: the command line. It has the number of steps and the folder of the checkpoints.
        load: loads the images.
        setting: the setting of the study.
    """
    started = time.perf_counter()
    data = load()
    trainer = prepare(case, data, options.steps, setting)
    names = "".join(sample.name for sample in data.labelled_samples)
    modules = (trainer.student, trainer.method.head.module)
    start = hashed((p for m in modules for p in m.parameters()), names)
    inputs = Inputs(trainer)
    path, note = (options.work / f"{case.name}{suffix}" for suffix in (".pt", ".json"))
    spent = 0.0
    if path.exists():
        trainer.load(path)
        inputs.digest, spent = json.loads(note.read_text())[str(trainer.step)]

    def keep(trainer: Trainer) -> None:
        if trainer.step % setting.saved_every == 0 or trainer.step == trainer.settings.steps:
            notes = json.loads(note.read_text()) if note.exists() else {}
            notes[trainer.step] = inputs.digest, spent + time.perf_counter() - started
            written = note.with_suffix(".written")
            written.write_text(json.dumps(notes))
            written.replace(note)  # atomic, since the program may be stopped at any time
            trainer.save(path)

    trainer.run(record_every=setting.saved_every, after_step=keep)
    matrix = matrix_of(trainer, data.val[: setting.most])
    iou = evaluate.class_iou(matrix).tolist()
    facts = machine(data.device, None, ("csrc", "dgcl_ops", "examples"))
    return trainer, {
        "variant": case.arm,
        "labelled": case.labelled,
        "seed": case.seed,
        "val_miou": round(evaluate.mean_iou(matrix), 3),
        "val_class_iou": " ".join(f"{value:.1f}" for value in iou),
        "ready_classes": int(trainer.contrast.diagnostics()["ready"].sum()),
        "mean_density": round(trainer.method.report()["density"], 4),
        "start": start,
        "inputs": inputs.digest,
        "seconds": round(spent + time.perf_counter() - started, 1),
        "settings": setting.described(trainer.settings),
        **{name: facts[name] for name in MACHINE_COLUMNS},
    }


def matrix_of(trainer: Trainer, samples: list[Sample]) -> Tensor:
    """Counts pixels by label and predicted class, [C, C]. The predictor is the run's."""
    data = trainer.data
    with torch.autocast(data.device.type, torch.bfloat16):
        return evaluate.confusion_matrix(
            trainer.predictor, in_batches(samples, 10), data.num_classes, data.ignore_index
        )


def missing(cases: Iterable[Case], path: Path, steps: int, setting: Setting) -> list[Case]:
    """Returns the runs without a row.

    Raises:
        SystemExit: If the file holds one of the runs with other settings.
    """
    left = dict.fromkeys(cases)
    for row in read_rows(path):
        case = Case(row["variant"], row["labelled"], row["seed"])
        if case in left:
            del left[case]
            if row["settings"] != setting.described(settings_of(case, steps, setting)):
                raise SystemExit(f"ccp: {path} holds '{case.name}' with other settings")
    return list(left)


def train_all(cases: Iterable[Case], options: argparse.Namespace) -> list[dict]:
    """Trains every case that is missing from runs.csv.

    Returns:
        All rows.

    Raises:
        SystemExit: If the file has runs with other settings, or if runs failed.
    """
    path = options.out / "runs.csv"
    cases = missing(cases, path, options.steps, FROZEN)
    options.work.mkdir(parents=True, exist_ok=True)
    say(f"{len(cases)} runs to do, {options.workers} at a time")
    started, failed = time.perf_counter(), []
    jobs = [(case, options) for case in cases]
    for finished, ((case, _), row) in enumerate(outcomes(train, jobs, options.workers), 1):
        if isinstance(row, BaseException):
            failed.append(case.name)
            say(f"{case.name} failed with {type(row).__name__}: {row}")
            continue
        append_rows(path, COLUMNS, [row])
        left = (time.perf_counter() - started) / finished * (len(jobs) - finished) / 60
        say(
            f"{case.name}: validation mIoU {row['val_miou']:.2f} ({row['seconds']:.0f} s; "
            f"{finished} of {len(jobs)}, {left:.0f} min left)"
        )
    if failed:
        raise SystemExit(f"ccp: {len(failed)} of {len(jobs)} runs failed: {'; '.join(failed)}")
    return read_rows(path)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if not options.report:
        rows = train_all(gate_cases(), options)
        print(gates_text(rows))
        if options.gates:
            return
        if not all(gate.holds for gate in gates(rows)) and not options.past_gates:
            raise SystemExit(
                "ccp: a gate does not hold, so the data cannot show an effect of the method"
            )
        train_all(study_cases(options.seeds), options)
    print(report(options.out))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, results = parser.add_argument, Path(__file__).parent / "results" / "ccp"
    add("--data", type=Path, help="CCP's folder")
    add("--out", type=Path, default=results, help="folder of the CSV files")
    add("--work", type=Path, default=Path("runs/ccp"), help="folder of the checkpoints")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    add("--workers", type=int, default=2, help="runs at a time, with one thread each")
    add("--steps", type=int, default=BASE.steps, help="steps per run; use few to try the program")
    add("--gates", action="store_true", help="only the gates")
    add("--past-gates", action="store_true", help="train all arms even if a gate does not hold")
    add("--report", action="store_true", help="only tables and plot")
    options = parser.parse_args(arguments)
    for name, least in (("steps", 5), ("workers", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    if min(options.seeds) < 0:
        parser.error(f"--seeds must not be negative, got {options.seeds}")
    if not options.report:
        if options.data is None:
            parser.error("--data must name CCP's folder")
        if not (options.data / "unlabelled").is_dir():
            parser.error(
                f"--data must hold train/, val/, test/ and unlabelled/, got {options.data}"
            )
    return options


if __name__ == "__main__":
    main()
