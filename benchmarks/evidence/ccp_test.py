"""Measures the runs of the study of CCP on the test images, after the last run.

    python benchmarks/evidence/ccp_test.py --data DIR --work DIR    # all rows missing from test.csv, then the report
    python benchmarks/evidence/ccp_test.py --data DIR --work DIR --split val    # validation images, into val.csv

It loads each run's checkpoint and measures:
- with the teacher: IoU, and how tight the clusters of features are,
- on the validation images: how many pseudo labels of the contrast are right, see `advice.pseudo_labels`,
- with the student: how well density, entropy and confidence find wrong pixels, see detection.py.

It refuses to read the test images while a run of the study is missing from runs.csv. It writes a run's row as soon as
the run is measured. You can stop the program at any time. It continues when you start it again.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import MACHINE_COLUMNS, ROOT, append_rows, machine, say

sys.path.insert(0, str(ROOT / "examples"))
from semi_supervised import advice, evaluate
from semi_supervised.findings import precision

from evidence import ccp, detection
from evidence.ccp import Case
from evidence.ccp_report import read_rows
from evidence.ccp_tables import report
from evidence.photos import in_batches

# Right pseudo labels in percent: of all kept pixels, and in the mean over the classes in the sparsest fifth of each.
LABELS = ("kept_right", "sparse_right")
COLUMNS = (
    *("variant", "labelled", "seed", "miou", "class_iou", "class_pixels", *evaluate.SCORES),
    *(*LABELS, *detection.ERRORS, "seconds", "settings", *MACHINE_COLUMNS),
)


def measure(case: Case, options: argparse.Namespace) -> dict:
    """Measures the last model of a run.

    Args:
        case: the run.
        options: the command line.

    Returns:
        A row of test.csv or val.csv.

    Raises:
        ValueError: If the checkpoint is not from the run's last step.
    """
    torch.set_num_threads(1)
    started = time.perf_counter()
    data = ccp.load(case, options.data, ccp.FROZEN)
    trainer = ccp.prepare(case, data, options.steps, ccp.FROZEN)
    path = checkpoint_of(case, options)
    trainer.load(path)
    if trainer.step != options.steps:
        raise ValueError(f"{path} must be from step {options.steps}, got step {trainer.step}")
    sizes = data.num_classes, data.ignore_index
    images = list(in_batches(getattr(data, options.split), 10))  # read once
    with torch.autocast("cpu", torch.bfloat16):  # as in the training
        matrix = evaluate.confusion_matrix(trainer.predictor, images, *sizes)
        sampled = evaluate.sample_features(trainer.predictor, images, data.num_classes)
    scores = evaluate.cluster_scores(*sampled)
    student = trainer.student, trainer.contrast
    pixels = detection.sample_pixels(*student, images, data.ignore_index)
    held_out = (
        pixels
        if options.split == "val"
        else detection.sample_pixels(*student, in_batches(data.val, 10), data.ignore_index)
    )
    kept, _, sparse = precision(advice.pseudo_labels(trainer, in_batches(data.val, 10)))
    return {
        "variant": case.arm,
        "labelled": case.labelled,
        "seed": case.seed,
        "miou": round(evaluate.mean_iou(matrix), 3),
        "class_iou": " ".join(f"{value:.2f}" for value in evaluate.class_iou(matrix).tolist()),
        "class_pixels": " ".join(map(str, matrix.sum(1).tolist())),
        **{name: None if value is None else round(value, 4) for name, value in scores.items()},
        **{n: detection.text(v) for n, v in zip(LABELS, (kept, sparse), strict=True)},
        **detection.error_columns(pixels, detection.fitted(held_out), data.num_classes),
        "seconds": round(time.perf_counter() - started, 1),
        "settings": ccp.FROZEN.described(trainer.settings),
        **machine(torch.device("cpu"), None, ("csrc", "dgcl_ops", "examples")),
    }


def checkpoint_of(case: Case, options: argparse.Namespace) -> Path:
    """Returns the checkpoint that `ccp.train` wrote."""
    return options.work / f"{case.name}.pt"


def measure_all(options: argparse.Namespace) -> None:
    """Measures every run of the study that is missing from test.csv or val.csv.

    Raises:
        SystemExit: If a file holds a run with other settings. For the split "test": also if runs are missing.
    """
    trained, cases = read_rows(options.out / "runs.csv"), ccp.study_cases(options.seeds)
    settings = {
        case: ccp.FROZEN.described(ccp.settings_of(case, options.steps, ccp.FROZEN))
        for case in cases
    }
    stored = {case_of(row): row["settings"] for row in trained}
    for case in cases:
        if stored.get(case, settings[case]) != settings[case]:
            raise SystemExit(f"ccp: runs.csv holds '{case.name}' with other settings")
    ready = [case for case in cases if case in stored and checkpoint_of(case, options).exists()]
    missing = [case.name for case in cases if case not in ready]
    if missing and options.split == "test":
        raise SystemExit(
            f"ccp: the test images must wait for the last run; {len(missing)} of {len(cases)} runs are missing from "
            f"{options.out / 'runs.csv'} or have no checkpoint in {options.work}: {'; '.join(missing[:4])}"
            f"{', ...' if len(missing) > 4 else ''}"
        )
    path = options.out / f"{options.split}.csv"
    done = {case_of(row): row["settings"] for row in read_rows(path)}
    for case in ready:
        if done.get(case, settings[case]) != settings[case]:
            raise SystemExit(f"ccp: {path} holds '{case.name}' with other settings")
    jobs = [case for case in ready if case not in done]
    say(f"{len(jobs)} runs to measure")
    for case in jobs:
        row = measure(case, options)
        append_rows(path, COLUMNS, [row])
        say(f"{case.name}: {options.split} mIoU {row['miou']:.2f} ({row['seconds']:.0f} s)")


def case_of(row: dict) -> Case:
    """Returns the run of a row."""
    return Case(row["variant"], row["labelled"], row["seed"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, results = parser.add_argument, Path(__file__).parent / "results" / "ccp"
    add("--data", type=Path, required=True, help="CCP's folder")
    add("--out", type=Path, default=results, help="folder of the CSV files")
    add("--work", type=Path, default=Path("runs/ccp"), help="folder of the checkpoints")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    add("--steps", type=int, default=ccp.BASE.steps, help="steps of the runs")
    add("--split", choices=("test", "val"), default="test", help="images to measure on")
    options = parser.parse_args(arguments)
    measure_all(options)
    if options.split == "test":
        print(report(options.out))


if __name__ == "__main__":
    main()
