"""Why does the density loss cost mIoU on scenes of digits? Changes one thing at a time, seed by seed.

    python benchmarks/evidence/causes.py             # all runs missing from the CSV file, then the table
    python benchmarks/evidence/causes.py --report    # only the table

The scenes, network and settings are the demo's. The results are those of the validation digits. Each run adds one row
to the CSV file when it ends. You can stop the program at any time; it continues when you start it again.

Each run is compared with self-training: the run with the same seed, steps, labels and view, and contrast weight 0. With
weight 0 no other change has an effect. The view has one: the student's batch norms see the weak view, or do not.

Changes of what the contrast sees:
- its labels: of the labelled pixels alone; right pseudo labels; the true labels of all pixels. Nobody has the last two.
- fewer or more dropped pseudo labels, the strong view, banks of the teacher's features.

Changes of the contrast: its weight, its start, anchors and keys, the width of the projections.
Changes of the training: more steps, fewer labelled scenes.
"""

import argparse
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import MACHINE_COLUMNS, ROOT, append_rows, machine, say

sys.path.insert(0, str(ROOT / "examples"))
from semi_supervised import evaluate
from semi_supervised.augment import random_crop
from semi_supervised.loading import Batch
from semi_supervised.methods import METHODS
from semi_supervised.methods.dgcl import DGCL, PseudoLabels
from semi_supervised.methods.options import MethodOptions, Rule, Share
from semi_supervised.network import SegmentationNetwork
from semi_supervised.runs import Plan, available_cores
from semi_supervised.scenes import CROP, DigitScenes, draw_scenes
from semi_supervised.settings import Settings
from semi_supervised.trainer import Trainer

from dgcl_ops import FeatureTap, resize_labels
from dgcl_ops.schedules import linear_schedule
from evidence.causes_report import read_rows, table
from evidence.compare import CONTROL
from evidence.compare import METHOD as TREATED
from evidence.pool import outcomes
from evidence.run import described, together

COLUMNS = (
    *("variant", "seed", "steps", "labelled", "miou", *evaluate.SCORES, "right", "seconds"),
    *("settings", *MACHINE_COLUMNS),
)
LABELS = ("pseudo", "labelled", "right", "true")
PLAN = Plan()


class KnownScenes(DigitScenes):
    """Scenes that also keep the true labels of the last unlabelled batch, `truth` [B, h, w]."""

    def __init__(self, labelled: int, unlabelled: int, seed: int, evaluated: int):
        super().__init__(labelled, unlabelled, seed, evaluated)
        self._true_labels = draw_scenes(labelled + unlabelled, "train", seed)[1][labelled:]

    def unlabelled(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """See `DigitScenes.unlabelled`."""
        chosen = rng.integers(len(self.unlabelled_images), size=count)
        crops = [
            random_crop(
                self.unlabelled_images[i], self._true_labels[i], (CROP, CROP), rng, scale=(0.9, 1.1)
            )
            for i in chosen
        ]
        images, self.truth = map(torch.stack, zip(*crops, strict=True))
        return images, torch.ones(self.truth.shape, dtype=torch.bool)


@dataclass(frozen=True)
class Probe(MethodOptions):
    """What differs from DGCL.

    Attributes:
        labels: one of LABELS.
        drop: shares of pseudo labels that the contrast drops, at the start and at the end. None: as published.
        from_progress: the contrast has weight 0 before.
        teacher_bank: whether densities and bank use the teacher's features.
    """

    labels: Annotated[str, Rule(f"be one of {', '.join(LABELS)}", LABELS.__contains__)] = "pseudo"
    drop: Annotated[tuple[float, ...] | None, Rule("be two", lambda drop: len(drop) == 2)] = None
    from_progress: Share = 0.0
    teacher_bank: bool = False


class ProbedDGCL(DGCL):
    """DGCL with a change that only an experiment can make."""

    Options = Probe

    def __init__(self, *given: Any):
        super().__init__(*given)
        self.full_weight, self.features, self.right = self.weight, None, []

    def losses(self, views: Any) -> dict[str, Tensor]:
        """See DGCL."""
        started = self.trainer.progress() >= self.options.from_progress
        self.weight = self.full_weight if started else 0.0
        return super().losses(views)

    def density_source(self, features: Tensor, projections: Tensor) -> Tensor:
        """See DGCL."""
        return self.features if self.options.teacher_bank else features

    def contrast_drop(self, progress: float) -> float:
        """See DGCL."""
        drop = self.options.drop
        return super().contrast_drop(progress) if drop is None else linear_schedule(*drop, progress)

    def teach(self, batch: Batch) -> PseudoLabels:
        """See DGCL."""
        tapped = FeatureTap(self.trainer.teacher.module, "classifier")
        with tapped if self.options.teacher_bank else nullcontext() as tap:
            pseudo = super().teach(batch)
            self.features = tap.pop() if tap else None
        used, ignore = pseudo.contrast, self.trainer.data.ignore_index
        truth = resize_labels(self.trainer.data.truth, used.shape[-2:])
        kept = used != ignore
        self.right.append(float((used == truth)[kept].float().mean()))
        changed = {
            "pseudo": used,
            "labelled": torch.full_like(used, ignore),
            "right": used.where(used == truth, ignore),
            "true": truth,
        }
        return pseudo._replace(contrast=changed[self.options.labels])


METHODS["probe"] = ProbedDGCL


@dataclass(frozen=True)
class Variant:
    """One change.

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
        """Returns the run's settings. `steps` is the number of steps of a variant that does not change it."""
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
        seed: seed of scenes, weights and batches.
        steps: see `Variant.settings_of`.

    Returns:
        A row of the file. "right" is the share of the contrast's pseudo labels that are right, in the last tenth of
        the steps.
    """
    torch.set_num_threads(1)
    started, variant = time.perf_counter(), VARIANTS[name]
    data = KnownScenes(variant.labelled, PLAN.unlabelled, seed, PLAN.evaluated)
    torch.manual_seed(seed)  # the weights at the start
    trainer = Trainer(SegmentationNetwork(data.num_classes), data, variant.settings_of(seed, steps))
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
    add("--steps", type=int, default=PLAN.settings.steps, help="a few suffice for a trial")
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
