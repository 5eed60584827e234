"""Why does the density loss lower mIoU on scenes of digits? Changes one thing at a time, seed by seed.

    python benchmarks/evidence/causes.py             # all runs missing from the CSV file, then the table
    python benchmarks/evidence/causes.py --report    # only the table

The scenes, network and settings are the demo's. The results come from the validation digits. Each run adds one row to
the CSV file when it ends. You can stop the program at any time. It continues when you start it again.

Each run is compared with a self-training run: the same seed, steps, labels and view, with contrast weight 0. With
weight 0 no other change has an effect. The view has one: the student's batch norms may see the weak view.

Changes to what the contrast sees:
- its labels: only those of labelled images; only pseudo labels that are right; the true labels of all pixels. In
  practice, nobody has the labels for the last two.
- another share of dropped pseudo labels; the strong view; banks of the teacher's features.

Changes to the contrast: its weight, its start, anchors and keys, the width of the projections.
Changes to the training: more steps, fewer labelled scenes.
"""

import argparse
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import MACHINE_COLUMNS, ROOT, append_rows, machine, say

sys.path.insert(0, str(ROOT / "examples"))
from semi_supervised import evaluate
from semi_supervised.runs import Plan, available_cores
from semi_supervised.settings import Settings

from evidence.causes_report import read_rows, table
from evidence.compare import CONTROL
from evidence.compare import METHOD as TREATED
from evidence.pool import outcomes
from evidence.probe import KnownScenes, build
from evidence.run import described, together

COLUMNS = (
    *("variant", "seed", "steps", "labelled", "miou", *evaluate.SCORES, "right", "seconds"),
    *("settings", *MACHINE_COLUMNS),
)
PLAN = Plan()


@dataclass(frozen=True)
class Variant:
    """One change to the demo's training.

    Attributes:
        probe: options of Probe.
        contrast: changed keys of `Settings.contrast`.
        settings: other changed settings.
        labelled: number of labelled scenes.
    """

    probe: dict = field(default_factory=dict)
    contrast: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    labelled: int = PLAN.labelled

    def settings_of(self, seed: int, steps: int) -> Settings:
        """Returns the run's settings. Variants that do not change the number of steps train for `steps`."""
        base = PLAN.settings
        steps = steps * self.settings.get("steps", base.steps) // base.steps
        changes = {
            **self.settings,
            "steps": steps,
            "warm_up": base.warm_up * steps // base.steps,
            "contrast": base.contrast | self.contrast,
            "method": {"name": "probe", **self.probe},
        }
        return replace(base, seed=seed, **changes)


WEIGHTLESS, STRONG = {"contrast_weight": 0.0}, {"contrast_view": "strong"}
LONG, FEW = {"steps": 2 * PLAN.settings.steps}, 10
VARIANTS = {
    CONTROL: Variant(settings=WEIGHTLESS),
    TREATED: Variant(),
    "labelled pixels alone": Variant({"labels": "labelled"}),
    "right pseudo labels": Variant({"labels": "right"}),
    "true labels": Variant({"labels": "true"}),
    "drops 80 to 50 %": Variant({"drop": [0.8, 0.5]}),
    f"{CONTROL}, strong view": Variant(settings=STRONG | WEIGHTLESS),
    "strong view": Variant(settings=STRONG),
    "bank of the teacher's features": Variant({"teacher_bank": True}),
    "weight 0.1": Variant(settings={"contrast_weight": 0.1}),
    "from half of the training": Variant({"from_progress": 0.5}),
    "anchors random, keys average": Variant(contrast={"anchors": "random", "keys": "average"}),
    "anchors and keys by confidence": Variant(
        contrast={"anchors": "low_confidence", "keys": "high_confidence"}
    ),
    "projections of 128": Variant(settings={"projection_dim": 128}),
    f"{CONTROL}, 1,000 steps": Variant(settings=LONG | WEIGHTLESS),
    f"{TREATED}, 1,000 steps": Variant(settings=LONG),
    f"{CONTROL}, 10 labelled scenes": Variant(settings=WEIGHTLESS, labelled=FEW),
    f"{TREATED}, 10 labelled scenes": Variant(labelled=FEW),
}


def train(name: str, seed: int, steps: int) -> dict:
    """Trains a run and evaluates its teacher on the validation scenes.

    Args:
        name: a key of VARIANTS.
        seed: seed of the scenes, weights and batches.
        steps: see `Variant.settings_of`.

    Returns:
        A row of the CSV file. "right" is the share of right pseudo labels of the contrast in the last tenth of the
        steps.
    """
    torch.set_num_threads(1)
    started, variant = time.perf_counter(), VARIANTS[name]
    data = KnownScenes(variant.labelled, PLAN.unlabelled, seed, PLAN.evaluated)
    trainer = build(data, variant.settings_of(seed, steps))
    trainer.run()
    sizes = data.num_classes, data.ignore_index
    held_out = list(together(data.val, 25))
    matrix = evaluate.confusion_matrix(trainer.predictor, held_out, *sizes)
    scores = evaluate.cluster_scores(
        *evaluate.sample_features(trainer.predictor, held_out, data.num_classes)
    )
    last = trainer.method.right[-max(1, trainer.settings.steps // 10) :]
    return {
        "variant": name,
        "seed": seed,
        "steps": trainer.settings.steps,
        "labelled": variant.labelled,
        "miou": round(evaluate.mean_iou(matrix), 4),
        **{score: round(value, 4) for score, value in scores.items()},
        "right": round(float(np.mean(last)), 4),
        "seconds": round(time.perf_counter() - started, 1),
        "settings": described(trainer.settings),
        **machine(torch.device("cpu"), None, ("csrc", "dgcl_ops", "examples")),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, results = parser.add_argument, Path(__file__).parent / "results"
    add("--variants", nargs="+", choices=tuple(VARIANTS), default=tuple(VARIANTS), metavar="NAME")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2, 3])
    add("--steps", type=int, default=PLAN.settings.steps, help="use few to try the program")
    add("--workers", type=int, default=available_cores(), help="runs at a time")
    add("--out", type=Path, default=results / "causes.csv", help="CSV file")
    add("--report", action="store_true", help="only the table")
    options = parser.parse_args(arguments)
    for name, least in (("steps", 10), ("workers", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    if min(options.seeds) < 0:
        parser.error(f"--seeds must not be negative, got {options.seeds}")
    if not options.report:
        train_all(options)
    print(table(read_rows(options.out)))


def train_all(options: argparse.Namespace) -> None:
    """Trains every run that is missing from the file.

    Raises:
        SystemExit: If the file has runs with other settings, or if runs failed.
    """
    jobs = dict.fromkeys(
        (name, seed, options.steps) for seed in options.seeds for name in options.variants
    )
    for row in read_rows(options.out):
        job = row["variant"], row["seed"], options.steps
        if job in jobs:
            del jobs[job]
            if row["settings"] != described(VARIANTS[job[0]].settings_of(job[1], options.steps)):
                raise SystemExit(
                    f"causes: {options.out} holds '{job[0]}', seed {job[1]}, with other settings; choose another --out"
                )
    say(f"{len(jobs)} runs to do, {options.workers} at a time")
    started, failed = time.perf_counter(), []
    for finished, ((name, seed, _), row) in enumerate(outcomes(train, jobs, options.workers), 1):
        if isinstance(row, BaseException):
            failed.append(f"{name}, seed {seed}")
            say(f"{failed[-1]}: failed with {type(row).__name__}: {row}")
            continue
        append_rows(options.out, COLUMNS, [row])
        left = (time.perf_counter() - started) / finished * (len(jobs) - finished) / 60
        say(
            f"{name}, seed {seed}: mIoU {row['miou']:.2f} ({row['seconds']:.0f} s; {finished} of {len(jobs)}, "
            f"{left:.0f} min left)"
        )
    if failed:
        raise SystemExit(f"causes: {len(failed)} of {len(jobs)} runs failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
