"""Does density find wrong pixels in road scenes, and pixels of an unknown class in photographs? Trains and measures.

    python benchmarks/evidence/detect.py --study unknown --data CCP       # all runs missing from unknown.csv
    python benchmarks/evidence/detect.py --study errors --data CAMVID     # all runs missing from errors.csv
    python benchmarks/evidence/detect.py --report                         # tables only, no training

- unknown: CCP with 44 labelled images, trained as in ccp.py, but without the labels of one class. The class still
  occurs in the unlabelled images. On the test images, the figures compare its pixels with all other labelled pixels
  except the background.
- errors: CamVid with 12 labelled images, trained as in run.py, but the contrast uses the weak view, as published.

Both studies train two arms: self-training and the density contrast. detection.py defines scores and figures. Each run
adds its row when it ends. You can stop the program at any time. It continues when you start it again, even in the
middle of a run.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import MACHINE_COLUMNS, ROOT, append_rows, machine, say

sys.path.insert(0, str(ROOT / "examples"))
from semi_supervised import evaluate
from semi_supervised.folder import FolderData
from semi_supervised.pretrained import PretrainedNetwork
from semi_supervised.settings import Settings
from semi_supervised.trainer import Trainer

from evidence import ccp, detection, run
from evidence.ccp_report import FEW
from evidence.ccp_settings import CLASSES
from evidence.compare import CONTROL, METHOD
from evidence.detect_tables import read_rows, report
from evidence.photos import Photos, in_batches
from evidence.pool import outcomes

KEY = ("variant", "hidden", "seed")
SAVED_EVERY = 250  # steps


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        study: a key of STUDIES.
        arm: CONTROL or METHOD.
        seed: seed of the labelled images, weights and batches.
        hidden: a class that the training labels omit, or None.
    """

    study: str
    arm: str
    seed: int
    hidden: int | None = None

    @property
    def name(self) -> str:
        """The run's name in messages. Its checkpoint has the same name."""
        without = "" if self.hidden is None else f", without class {self.hidden}"
        return f"{self.study}, {self.arm}{without}, seed {self.seed}"

    @property
    def key(self) -> tuple[str, str, int]:
        """The values of KEY in the CSV file."""
        return self.arm, "" if self.hidden is None else str(self.hidden), self.seed


# ---- CCP without a class -------------------------------------------------------------------------------


def photos(case: Case, folder: Path) -> Photos:
    """Reads CCP without the hidden class."""
    return ccp.load(ccp.Case(case.arm, FEW, case.seed), folder, ccp.FROZEN, hidden=case.hidden)


def photo_settings(case: Case, steps: int) -> Settings:
    """Returns the settings of the study of CCP."""
    return ccp.settings_of(ccp.Case(case.arm, FEW, case.seed), steps, ccp.FROZEN)


def unknown_figures(case: Case, trainer: Trainer) -> dict:
    """Measures on the test images how well each score finds pixels of the hidden class."""
    data = trainer.data
    samples = in_batches(data.test, 10)
    pixels = detection.sample_pixels(trainer.student, trainer.contrast, samples, data.ignore_index)
    return detection.unknown_columns(pixels, case.hidden, background=0)


# ---- CamVid ----------------------------------------------------------------------------------------------

VARIANTS = {
    variant.name: replace(variant, changes=variant.changes | {"contrast_view": "weak"})
    for variant in (run.CONTROL, run.METHOD)
}


def road_scenes(case: Case, folder: Path) -> FolderData:
    """Reads CamVid as `run.train` does."""
    return FolderData(folder, labelled="12", crop=run.CROP, seed=case.seed, shown_in=1)


def road_settings(case: Case, steps: int) -> Settings:
    """Returns the settings of the study on CamVid, with the weak view."""
    settings = VARIANTS[case.arm].settings(case.seed)
    warm_up = settings.warm_up * steps // run.BASE.steps
    return replace(settings, steps=steps, warm_up=warm_up)


def error_figures(case: Case, trainer: Trainer) -> dict:
    """Measures on the test images how well each score finds wrong pixels."""
    data, student = trainer.data, (trainer.student, trainer.contrast)
    validation, pixels = (
        detection.sample_pixels(*student, run.together(samples), data.ignore_index)
        for samples in (data.val, data.test)
    )
    return detection.error_columns(pixels, detection.fitted(validation), data.num_classes)


# ---- both --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """What differs between the studies.

    Attributes:
        read: reads the images of a run.
        settings: returns a run's settings for a number of steps.
        figures: measures a trained run.
        measured: the columns that `figures` returns.
        steps: default number of steps.
        hidden: default classes to hide, one at a time. None: no hidden class.
        seeds: default seeds.
    """

    read: Callable[[Case, Path], Any]
    settings: Callable[[Case, int], Settings]
    figures: Callable[[Case, Trainer], dict]
    measured: tuple[str, ...]
    steps: int
    hidden: tuple[int | None, ...]
    seeds: tuple[int, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the CSV file."""
        return (*KEY, "steps", "miou", *self.measured, "seconds", "settings", *MACHINE_COLUMNS)


BAG, OUTERWEAR = 11, 4
STUDIES = {
    "unknown": Study(
        *(photos, photo_settings, unknown_figures, detection.UNKNOWN, ccp.BASE.steps),
        hidden=(BAG, OUTERWEAR),
        seeds=(0, 1),
    ),
    "errors": Study(
        *(road_scenes, road_settings, error_figures, detection.ERRORS, run.BASE.steps),
        hidden=(None,),
        seeds=(0, 1, 2),
    ),
}


def cases_of(options: argparse.Namespace) -> list[Case]:
    """Returns the runs of a study, seed by seed."""
    study = STUDIES[options.study]
    return [
        Case(options.study, arm, seed, hidden)
        for seed in options.seeds or study.seeds
        for hidden in options.hidden or study.hidden
        for arm in (METHOD, CONTROL)
    ]


def train(case: Case, options: argparse.Namespace) -> dict:
    """Trains a run, or continues it, and measures it on the test images.

    Args:
        case: the run.
        options: the command line.

    Returns:
        A row of the study's file.
    """
    torch.set_num_threads(1)
    started, study = time.perf_counter(), STUDIES[case.study]
    data = study.read(case, options.data)
    torch.manual_seed(case.seed)  # the initial weights
    network = PretrainedNetwork(data.num_classes, frozen=True)
    trainer = Trainer(network, data, study.settings(case, options.steps))
    path = options.work / f"{case.name}.pt"
    if path.exists():
        trainer.load(path)

    def keep(trainer: Trainer) -> None:
        if trainer.step % SAVED_EVERY == 0 or trainer.step == trainer.settings.steps:
            trainer.save(path)

    trainer.run(record_every=SAVED_EVERY, after_step=keep)
    with torch.autocast("cpu", torch.bfloat16):  # as in the training
        matrix = evaluate.confusion_matrix(
            trainer.predictor, run.together(data.test), data.num_classes, data.ignore_index
        )
    return {
        **dict(zip(KEY, case.key, strict=True)),
        "steps": options.steps,
        "miou": round(evaluate.mean_iou(matrix), 3),
        **study.figures(case, trainer),
        "seconds": round(time.perf_counter() - started, 1),
        "settings": run.described(trainer.settings),
        **machine(torch.device("cpu"), None, ("csrc", "dgcl_ops", "examples")),
    }


def train_all(options: argparse.Namespace) -> None:
    """Trains every run of a study that is missing from its file.

    Raises:
        SystemExit: If the file has runs with other settings, or if runs failed.
    """
    study, path = STUDIES[options.study], options.out / f"{options.study}.csv"
    cases = {case.key: case for case in cases_of(options)}
    for row in read_rows(path):
        case = cases.pop(tuple(row[name] for name in KEY), None)
        if case and row["settings"] != run.described(study.settings(case, options.steps)):
            raise SystemExit(f"detect: {path} holds '{case.name}' with other settings")
    options.work.mkdir(parents=True, exist_ok=True)
    say(f"{len(cases)} runs to do, {options.workers} at a time")
    failed, jobs = [], [(case, options) for case in cases.values()]
    for (case, _), row in outcomes(train, jobs, options.workers):
        if isinstance(row, BaseException):
            failed.append(case.name)
            say(f"{case.name} failed with {type(row).__name__}: {row}")
            continue
        append_rows(path, study.columns, [row])
        say(f"{case.name}: mIoU {row['miou']:.2f} ({row['seconds']:.0f} s)")
    if failed:
        raise SystemExit(f"detect: {len(failed)} of {len(jobs)} runs failed: {'; '.join(failed)}")


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if not options.report:
        train_all(options)
    print(report(options.out))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, results = parser.add_argument, Path(__file__).parent / "results" / "detect"
    add("--study", choices=tuple(STUDIES))
    add("--data", type=Path, help="folder of CCP or CamVid")
    add("--out", type=Path, default=results, help="folder of the CSV files")
    add("--work", type=Path, default=Path("runs/detect"), help="folder of the checkpoints")
    add("--seeds", type=int, nargs="+", help="default: 0 1, and 0 1 2 for errors")
    add("--hidden", type=int, nargs="+", help="classes to hide, one at a time; default: 11 4")
    add("--steps", type=int, help="steps per run; default: 2000, and 600 for errors")
    add("--workers", type=int, default=2, help="runs at a time, with one thread each")
    add("--report", action="store_true", help="only tables")
    options = parser.parse_args(arguments)
    if options.report:
        return options
    if options.study is None or options.data is None:
        parser.error("--study and --data are required without --report")
    if not (options.data / "train").is_dir():
        parser.error(f"--data must hold train/, val/ and test/, got {options.data}")
    if options.hidden and options.study == "errors":
        parser.error("--hidden needs --study unknown")
    if options.hidden and not all(0 < hidden < len(CLASSES) for hidden in options.hidden):
        parser.error(f"--hidden must lie in [1, {len(CLASSES) - 1}], got {options.hidden}")
    if options.steps is None:
        options.steps = STUDIES[options.study].steps
    for name, least in (("steps", 5), ("workers", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    return options


if __name__ == "__main__":
    main()
