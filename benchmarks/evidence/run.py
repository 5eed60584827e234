"""Does the density loss help on real images? Trains on CamVid with few labels, matched and seed by seed.

    python benchmarks/evidence/run.py --data DIR --out FILE           # every run that the CSV file lacks; hours
    python benchmarks/evidence/run.py --data DIR --out FILE --studies labels    # one study
    python benchmarks/evidence/run.py --report                        # tables and plots of what is there, no training

DIR holds train/, val/, test/ with images/ and labels/ in each (CamVid's 11 classes, 255 for void). A run is one row of
the CSV file, written when the run ends: end the program at any time, and start it again to go on.

Matched: runs of one seed and one number of labels have the same labelled images, weights at the start, batches and
random numbers; self-training is the very same code with contrast weight 0. Settings are compared by the validation
images; the tables give the test images. The contrast uses the strong, mixed view, as in the committed rows. The
published view is the weak one. Needs `pip install ".[evidence]"`.
"""

import argparse
import itertools
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
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

from evidence.report import read_rows, report

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
    """Changes of BASE, with the name that stands in tables."""

    name: str
    changes: dict = field(default_factory=dict)  # of Settings
    contrast: dict = field(default_factory=dict)  # of Settings.contrast
    tuned: bool = False  # the backbone is trained too, at a tenth of the rate

    def settings(self, seed: int) -> Settings:
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
# Study: (variants, numbers of labelled images, seeds). Runs that two studies ask for are done once.
STUDIES = {
    "labels": ((SUPERVISED, CONTROL, METHOD), (12, 46), range(5)),
    "ablation": ((CONTROL, *ABLATION, METHOD), (12,), range(5)),
    "attempts": ((CONTROL, METHOD, *ATTEMPTS, *OTHER_TRAINING), (12,), range(3)),
}


def main(arguments=None):
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
    add("--workers", type=int, default=2, help="runs at a time, of one thread each")
    add("--report", action="store_true", help="only the tables and plots")
    add("--steps", type=int, default=BASE.steps, help="of a run; fewer to try the program out")
    options = parser.parse_args(arguments)
    if not options.report:
        if options.data is None:
            parser.error("--data must name CamVid's folder")
        if not (options.data / "train" / "images").is_dir():
            parser.error(f"--data must hold train/, val/ and test/, got {options.data}")
        if options.steps < 4 or options.workers < 1:
            parser.error(
                f"--steps 4 and --workers 1 at least, got {options.steps}, {options.workers}"
            )
        train_all(options)
    print(report(read_rows(options.out), options.out))


def train_all(options):
    """Every case of the studies that the file lacks, with a line each."""
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
        if variant and named_now(row["settings"]) != named_now(
            described(settings_of(variant, row["seed"], options))
        ):
            raise SystemExit(
                f"{options.out} holds '{row['variant']}' with other settings; choose another --out"
            )
    if cases and any(is_older(row["settings"]) for row in done):
        raise SystemExit(
            f"{options.out} holds runs under earlier rules of the trainer, with which new runs cannot be compared; "
            "choose another --out"
        )
    say(f"{len(done)} runs are there, {len(cases)} to do")
    started = time.perf_counter()
    jobs = [(variant, *case[1:], options) for case, variant in cases.items()]
    for finished, row in enumerate(results(jobs, options.workers), 1):
        append_rows(options.out, COLUMNS, [row])
        left = (time.perf_counter() - started) / finished * (len(jobs) - finished) / 60
        say(
            f"{row['variant']}, {row['labelled']} labels, seed {row['seed']}: mIoU {row['miou']:.2f} "
            f"({row['seconds']:.0f} s; {finished} of {len(jobs)}, {left:.0f} min left)"
        )


def results(jobs: list[tuple], workers: int) -> Iterator[dict]:
    """The rows, in the order in which the runs end."""
    if workers == 1:
        yield from (train(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads
    with ProcessPoolExecutor(workers, context) as pool:
        for done in as_completed([pool.submit(train, *job) for job in jobs]):
            yield done.result()


def settings_of(variant: Variant, seed: int, options) -> Settings:
    settings = variant.settings(seed)
    warm_up = settings.warm_up * options.steps // BASE.steps
    return replace(settings, steps=options.steps, warm_up=warm_up)


def described(settings: Settings) -> str:
    """What differs from the defaults, as JSON."""
    usual = asdict(Settings())
    changed = {name: value for name, value in asdict(settings).items() if value != usual[name]}
    return json.dumps(changed, separators=(",", ":"))


def is_older(described: str) -> bool:
    """Whether a row's run had the earlier schedule of the contrast and drew negatives with replacement always."""
    return "bfloat16" in json.loads(described)


def named_now(described: str) -> dict:
    """The settings of a row. An old row has `bfloat16`, and no `contrast_view`, which was always "strong"."""
    changed = json.loads(described)
    if changed.pop("bfloat16", False):
        changed |= {"precision": "bfloat16", "contrast_view": "strong"}
    return changed


def train(variant: Variant, labelled: int, seed: int, options) -> dict:
    """One run: a row of the file."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    data = FolderData(options.data, labelled=str(labelled), crop=CROP, seed=seed, shown_in=1)
    torch.manual_seed(seed)  # the weights at the start
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
        "mean_density": round(trainer.mean_density(), 4),
        "seconds": round(time.perf_counter() - started, 1),
        "settings": described(settings),
        **machine(torch.device("cpu"), None),
    }


def together(samples, count=8):
    """The samples in batches: CamVid's images have one size."""
    one_by_one = batches(samples)
    while group := list(itertools.islice(one_by_one, count)):
        yield tuple(map(torch.cat, zip(*group, strict=True)))


if __name__ == "__main__":
    main()
