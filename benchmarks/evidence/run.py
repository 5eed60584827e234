"""Does the density loss help on real images? Trains on CamVid with few labels, in matched runs, seed by seed.

    python benchmarks/evidence/run.py --data DIR --out FILE                     # all runs missing from FILE; hours
    python benchmarks/evidence/run.py --data DIR --out FILE --studies labels    # one study
    python benchmarks/evidence/run.py --report                                  # tables and plots only, no training

DIR holds train/, val/ and test/, each with images/ and labels/ (CamVid's 11 classes, 255 for void). Each run adds one
row to the CSV file when it ends. You can stop the program at any time; it continues when you start it again.

Runs with the same seed and number of labels are matched: they share labelled images, initial weights, batches and
random numbers. Self-training is the same code with contrast weight 0. Settings were chosen on the validation images.
The tables show results on the test images. The contrast uses the strong, mixed view, as in the committed rows. The
published program uses the weak view. Needs `pip install ".[evidence]"`.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import MACHINE_COLUMNS, ROOT, append_rows, machine, say

sys.path.insert(0, str(ROOT / "examples"))
from semi_supervised import evaluate
from semi_supervised.folder import FolderData
from semi_supervised.images import batches
from semi_supervised.pretrained import PretrainedNetwork
from semi_supervised.settings import SMALL, Settings
from semi_supervised.trainer import Trainer

from evidence.compare import read_rows
from evidence.pool import outcomes
from evidence.report import report

MEASURED = ("miou", "val_miou", *evaluate.SCORES, "class_iou", "ready_classes", "mean_density")
COLUMNS = ("variant", "labelled", "seed", *MEASURED, "seconds", "settings", *MACHINE_COLUMNS)
BASE = Settings(
    steps=600,
    warm_up=150,
    batch=4,
    learning_rate=2e-3,
    ema_maximum=0.99,
    teacher_mode="eval",
    cutmix=1.0,
    balance=0.5,
    precision="bfloat16",
    contrast_view="strong",  # as in the committed rows
    projection_dim=64,
)
CROP = (128, 160)


@dataclass(frozen=True)
class Variant:
    """Changes of BASE.

    Attributes:
        name: its name in tables.
        changes: changed settings.
        contrast: changed keys of `Settings.contrast`.
        tuned: whether to train the backbone, too, at a tenth of the learning rate.
    """

    name: str
    changes: dict = field(default_factory=dict)
    contrast: dict = field(default_factory=dict)
    tuned: bool = False

    def settings(self, seed: int) -> Settings:
        """Returns the variant's settings."""
        settings = replace(BASE, seed=seed, contrast={**SMALL, **self.contrast})
        if self.tuned:
            settings = replace(settings, learning_rate=BASE.learning_rate / 10, head_factor=10.0)
        return replace(settings, **self.changes)


WITHOUT = {"contrast_weight": 0.0}
SUPERVISED = Variant("supervised", {"warm_up": BASE.steps, **WITHOUT})
CONTROL = Variant("self-training", WITHOUT)
METHOD = Variant("density contrast")
ABLATION = [
    Variant(f"anchors {anchors}, keys {keys}", contrast={"anchors": anchors, "keys": keys})
    for anchors, keys in (("random", "average"), ("low_confidence", "high_confidence"))
]
ATTEMPTS = [
    Variant("temperature 0.1", contrast={"temperature": 0.1}),
    Variant("weight 0.1", {"contrast_weight": 0.1}),
    Variant("weight 2", {"contrast_weight": 2.0}),
    Variant("scales 1, 2, 4", contrast={"scales": (1, 2, 4)}),
    Variant("density of projections", {"density_of": "projections"}),
    Variant("keys normalised", contrast={"normalize_keys": True}),
    Variant("all banks full first", contrast={"start": "all_full"}),
    Variant("8 anchors", contrast={"num_anchors": 8}),
]
OTHER_TRAINING = [
    Variant("self-training, teacher in train mode", {"teacher_mode": "train", **WITHOUT}),
    Variant("density contrast, teacher in train mode", {"teacher_mode": "train"}),
    Variant("self-training, backbone tuned", WITHOUT, tuned=True),
    Variant("density contrast, backbone tuned", tuned=True),
]
# Study: (variants, numbers of labelled images, seeds). A run that occurs in two studies is trained once.
STUDIES = {
    "labels": ((SUPERVISED, CONTROL, METHOD), (12, 46), range(5)),
    "ablation": ((CONTROL, *ABLATION, METHOD), (12,), range(5)),
    "attempts": ((CONTROL, METHOD, *ATTEMPTS, *OTHER_TRAINING), (12,), range(3)),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="CamVid's folder")
    add(
        "--out",
        type=Path,
        default=Path(__file__).parent / "results" / "evidence.csv",
        help="CSV file",
    )
    add("--studies", nargs="+", choices=tuple(STUDIES), default=tuple(STUDIES))
    add("--workers", type=int, default=2, help="runs at a time, with one thread each")
    add("--report", action="store_true", help="only tables and plots")
    add("--steps", type=int, default=BASE.steps, help="steps per run; use few to try the program")
    options = parser.parse_args(arguments)
    if not options.report:
        if options.data is None:
            parser.error("--data must name CamVid's folder")
        if not (options.data / "train" / "images").is_dir():
            parser.error(f"--data must hold train/, val/ and test/, got {options.data}")
        if options.steps < 4 or options.workers < 1:
            parser.error(
                f"--steps must be at least 4 and --workers at least 1, got {options.steps}, {options.workers}"
            )
        train_all(options)
    print(report(read_rows(options.out), options.out))


def train_all(options: argparse.Namespace) -> None:
    """Trains every case of the studies that is missing from the file, and prints a line for each."""
    cases = {
        (variant.name, labelled, seed): variant
        for study in options.studies
        for variants, counts, seeds in [STUDIES[study]]
        for labelled in counts
        for seed in seeds
        for variant in variants
    }
    done = read_rows(options.out) if options.out.exists() else []
    for row in done:
        variant = cases.pop((row["variant"], row["labelled"], row["seed"]), None)
        if variant and settings_in(row["settings"]) != settings_in(
            described(settings_of(variant, row["seed"], options))
        ):
            raise SystemExit(
                f"evidence: {options.out} holds '{row['variant']}' with other settings; choose another --out"
            )
    if cases and any(is_older(row["settings"]) for row in done):
        raise SystemExit(
            f"evidence: {options.out} holds runs by an older version of the trainer, which are not comparable; choose "
            "another --out"
        )
    say(f"{len(done)} runs done, {len(cases)} to do")
    started = time.perf_counter()
    jobs = [(variant, *case[1:], options) for case, variant in cases.items()]
    for finished, (_, row) in enumerate(outcomes(train, jobs, options.workers), 1):
        if isinstance(row, BaseException):
            raise row
        append_rows(options.out, COLUMNS, [row])
        left = (time.perf_counter() - started) / finished * (len(jobs) - finished) / 60
        say(
            f"{row['variant']}, {row['labelled']} labels, seed {row['seed']}: mIoU {row['miou']:.2f} "
            f"({row['seconds']:.0f} s; {finished} of {len(jobs)}, {left:.0f} min left)"
        )


def settings_of(variant: Variant, seed: int, options: argparse.Namespace) -> Settings:
    """Returns a variant's settings, with the warm-up scaled to --steps."""
    settings = variant.settings(seed)
    warm_up = settings.warm_up * options.steps // BASE.steps
    return replace(settings, steps=options.steps, warm_up=warm_up)


def described(settings: Settings) -> str:
    """Returns the settings that differ from the defaults, as JSON."""
    defaults = asdict(Settings())
    changed = {name: value for name, value in asdict(settings).items() if value != defaults[name]}
    return json.dumps(changed, separators=(",", ":"))


def is_older(described: str) -> bool:
    """Returns whether a run used the old schedule of the contrast and always drew negatives with replacement."""
    return "bfloat16" in json.loads(described)


def settings_in(described: str) -> dict:
    """Returns the settings of a row. Older rows have `bfloat16` and no `contrast_view`, which was always "strong"."""
    changed = json.loads(described)
    if changed.pop("bfloat16", False):
        changed |= {"precision": "bfloat16", "contrast_view": "strong"}
    return changed


def train(variant: Variant, labelled: int, seed: int, options: argparse.Namespace) -> dict:
    """Trains and evaluates one run.

    Args:
        variant: what to train.
        labelled: number of labelled images.
        seed: of the labelled images, weights and batches.
        options: the command line.

    Returns:
        A row of the file.
    """
    torch.set_num_threads(1)
    started = time.perf_counter()
    data = FolderData(options.data, labelled=str(labelled), crop=CROP, seed=seed, shown_in=1)
    torch.manual_seed(seed)  # the initial weights
    network = PretrainedNetwork(data.num_classes, frozen=not variant.tuned)
    settings = settings_of(variant, seed, options)
    trainer = Trainer(network, data, settings)
    trainer.run()
    sizes, teacher = (data.num_classes, data.ignore_index), trainer.teacher.module
    with torch.autocast("cpu", torch.bfloat16):
        miou = {
            name: evaluate.confusion_matrix(teacher, together(samples), *sizes)
            for name, samples in (("val_miou", data.val), ("miou", data.test))
        }
        sampled = evaluate.sample_features(teacher, together(data.test[::2]), sizes[0])
    scores = evaluate.cluster_scores(*sampled)
    iou = evaluate.class_iou(miou["miou"]).tolist()
    return {
        "variant": variant.name,
        "labelled": labelled,
        "seed": seed,
        **{name: round(evaluate.mean_iou(matrix), 3) for name, matrix in miou.items()},
        **{name: round(value, 4) for name, value in scores.items()},
        "class_iou": " ".join(f"{value:.1f}" for value in iou),
        "ready_classes": int(trainer.contrast.diagnostics()["ready"].sum()),
        "mean_density": round(trainer.method.report()["density"], 4),
        "seconds": round(time.perf_counter() - started, 1),
        "settings": described(settings),
        **machine(torch.device("cpu"), None),
    }


def together(samples: list, count: int = 8) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yields samples in batches, since CamVid's images have one size."""
    single = batches(samples)
    while group := list(itertools.islice(single, count)):
        yield tuple(map(torch.cat, zip(*group, strict=True)))


if __name__ == "__main__":
    main()
