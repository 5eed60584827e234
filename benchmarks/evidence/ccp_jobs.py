"""The work of each process of ccp_on_gpu.py. It times its steps while the others do too. Then it trains runs."""

import argparse
import time
from typing import Any

import torch
from semi_supervised import evaluate
from semi_supervised.trainer import Trainer

from evidence import ccp
from evidence.ccp import Case
from evidence.ccp_settings import Setting
from evidence.ccp_timing import Times, seconds_per_step
from evidence.photos import Photos, in_batches

TESTED = ("miou", "class_iou", "class_pixels", *evaluate.SCORES)
TEST_COLUMNS = ("variant", "labelled", "seed", *TESTED, "settings")
PATIENCE = 120.0  # longest wait for all processes to load their images, in seconds
MANY_STEPS = 1_000_000  # more than can be timed

_together: Any = None  # a barrier for all processes
_images: dict[tuple[int, int], Photos] = {}  # images of the last run


def begin(together: Any) -> None:
    """Prepares a process. `together` is a barrier for all processes."""
    global _together
    _together = together
    torch.set_num_threads(1)


def images_of(case: Case, options: argparse.Namespace) -> Photos:
    """Loads the images of a run, or reuses those of the last run if they are the same."""
    key = case.labelled, case.seed
    if key not in _images:
        _images.clear()
        _images[key] = ccp.load(case, options.data, options.setting, options.device)
    return _images[key]


def measure_times(case: Case, options: argparse.Namespace) -> Times:
    """Times a run while the other processes time theirs. Releases them if this process fails."""
    try:
        return times_of(case, options)
    except BaseException:
        _together.abort()  # or the others would wait
        raise


def times_of(case: Case, options: argparse.Namespace) -> Times:
    """Times the parts of a run. The validation images stand in for the test images."""
    setting = options.setting
    data = images_of(case, options)
    begun = time.perf_counter()
    trainer = ccp.prepare(case, data, MANY_STEPS, setting)
    ends = time.perf_counter() - begun
    per_step = []
    for first in (0, trainer.settings.warm_up):
        trainer.step = first
        trainer.train_step()  # allocates memory
        _together.wait(PATIENCE)
        per_step.append(seconds_per_step(trainer, options.timing / 2))
    begun = time.perf_counter()
    test_row(case, trainer, data.val, setting)
    ends += (time.perf_counter() - begun) * (1 + len(data.test) / len(data.val))
    begun, file = time.perf_counter(), options.work / f"timing {case.seed}.pt"
    trainer.save(file)
    ends += time.perf_counter() - begun
    file.unlink()
    return Times(*per_step, ends)


def train(case: Case, options: argparse.Namespace) -> tuple[dict, dict]:
    """Trains a run, or continues it. Returns its rows of runs.csv and of test.csv."""
    load, setting = lambda: images_of(case, options), options.setting
    trainer, row = ccp.trained(case, options, load, setting)
    return row, test_row(case, trainer, trainer.data.test, setting)


def test_row(case: Case, trainer: Trainer, samples: list, setting: Setting) -> dict:
    """Measures IoU and cluster scores on some images. Returns a row of test.csv."""
    samples, data = samples[: setting.most], trainer.data
    matrix = ccp.matrix_of(trainer, samples)
    with torch.autocast(data.device.type, torch.bfloat16):
        sampled = evaluate.sample_features(
            trainer.predictor, in_batches(samples, 10), data.num_classes
        )
    scores = evaluate.cluster_scores(*sampled)
    return {
        "variant": case.arm,
        "labelled": case.labelled,
        "seed": case.seed,
        "miou": round(evaluate.mean_iou(matrix), 3),
        "class_iou": " ".join(f"{value:.2f}" for value in evaluate.class_iou(matrix).tolist()),
        "class_pixels": " ".join(map(str, matrix.sum(1).tolist())),
        **{name: None if value is None else round(value, 4) for name, value in scores.items()},
        "settings": setting.described(trainer.settings),
    }
