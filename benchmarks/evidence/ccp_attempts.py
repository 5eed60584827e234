"""Looks for settings in which self-training gains on CCP, with contrast weight 0 and one seed.

    python benchmarks/evidence/ccp_attempts.py --data DIR

The study's second gate requires that self-training beats supervised training by 3 points. Each attempt changes
ccp.BASE. The results come from the validation images. The contrast has weight 0, so all attempts use the strong view
for it and small banks, which saves time.
"""

import argparse
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import MACHINE_COLUMNS, ROOT, append_rows, machine, say

sys.path.insert(0, str(ROOT / "examples"))
from semi_supervised import evaluate
from semi_supervised.pretrained import PretrainedNetwork
from semi_supervised.settings import SMALL, Settings
from semi_supervised.trainer import Trainer

from evidence import ccp
from evidence.ccp_report import FEW, read_rows
from evidence.compare import CONTROL, SUPERVISED
from evidence.photos import in_batches
from evidence.pool import outcomes
from evidence.run import described

COLUMNS = (
    "variant",
    "labelled",
    "seed",
    "steps",
    "val_miou",
    "val_class_iou",
    "seconds",
    "settings",
)
COLUMNS += MACHINE_COLUMNS
WITHOUT = {"contrast_weight": 0.0, "contrast_view": "strong", "contrast": SMALL}
TUNED = {"learning_rate": 2e-4, "head_factor": 10.0}


@dataclass(frozen=True)
class Attempt:
    """Changes of ccp.BASE.

    Attributes:
        changes: changed settings.
        labelled: number of labelled images.
        steps: number of steps. In a supervised run, all of them are warm-up.
        supervised: whether to train on labelled images only.
        tuned: whether to train the backbone too, at a tenth of the learning rate.
    """

    changes: dict = field(default_factory=dict)
    labelled: int = FEW
    steps: int = ccp.BASE.steps
    supervised: bool = False
    tuned: bool = False

    def settings_of(self, seed: int) -> Settings:
        """Returns the run's settings."""
        warm_up = self.steps if self.supervised else self.steps // 5
        changes = WITHOUT | {"steps": self.steps, "warm_up": warm_up} | self.changes
        return replace(ccp.BASE, seed=seed, **(TUNED if self.tuned else {}), **changes)


ATTEMPTS = {
    f"{SUPERVISED}, tuned, 1,000 steps": Attempt(steps=1000, supervised=True, tuned=True),
    f"{CONTROL}, tuned, 1,000 steps": Attempt(steps=1000, tuned=True),
    "FixMatch": Attempt({"method": {"name": "fixmatch"}}),
    f"{SUPERVISED}, 14 labels": Attempt(labelled=14, supervised=True),
    f"{CONTROL}, 14 labels": Attempt(labelled=14),
    f"{CONTROL}, weight 1.5, jitter 0.8": Attempt({"unlabelled_weight": 1.5, "jitter": 0.8}),
    "UniMatch": Attempt({"method": {"name": "unimatch"}}),
}


def train(name: str, seed: int, folder: Path) -> dict:
    """Trains a run and returns its row."""
    torch.set_num_threads(1)
    started, attempt = time.perf_counter(), ATTEMPTS[name]
    data = ccp.load(ccp.Case(name, attempt.labelled, seed), folder, ccp.FROZEN)
    torch.manual_seed(seed)
    network = PretrainedNetwork(data.num_classes, frozen=not attempt.tuned)
    trainer = Trainer(network, data, attempt.settings_of(seed))
    trainer.run()
    with torch.autocast("cpu", torch.bfloat16):
        matrix = evaluate.confusion_matrix(
            trainer.predictor, in_batches(data.val, 10), data.num_classes, data.ignore_index
        )
    return {
        "variant": name,
        "labelled": attempt.labelled,
        "seed": seed,
        "steps": attempt.steps,
        "val_miou": round(evaluate.mean_iou(matrix), 3),
        "val_class_iou": " ".join(f"{iou:.1f}" for iou in evaluate.class_iou(matrix).tolist()),
        "seconds": round(time.perf_counter() - started, 1),
        "settings": described(trainer.settings),
        **machine(torch.device("cpu"), None, ("csrc", "dgcl_ops", "examples")),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, results = parser.add_argument, Path(__file__).parent / "results" / "ccp"
    add("--data", type=Path, required=True, help="CCP's folder")
    add("--attempts", nargs="+", choices=tuple(ATTEMPTS), default=tuple(ATTEMPTS), metavar="NAME")
    add("--seeds", nargs="+", type=int, default=[0])
    add("--workers", type=int, default=2, help="runs at a time, with one thread each")
    add("--out", type=Path, default=results / "attempts.csv", help="CSV file")
    options = parser.parse_args(arguments)
    done = {(row["variant"], row["seed"]) for row in read_rows(options.out)}
    jobs = [
        (name, seed, options.data)
        for seed in options.seeds
        for name in options.attempts
        if (name, seed) not in done
    ]
    for (name, seed, _), row in outcomes(train, jobs, options.workers):
        if isinstance(row, BaseException):
            raise row
        append_rows(options.out, COLUMNS, [row])
        say(f"{name}, seed {seed}: validation mIoU {row['val_miou']:.2f} ({row['seconds']:.0f} s)")


if __name__ == "__main__":
    main()
