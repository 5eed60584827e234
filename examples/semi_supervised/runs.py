"""The demo's runs: every method with every seed, in parallel processes.

Each run has one thread, so that results do not depend on the number of cores.
"""

import contextlib
import multiprocessing
import os
import queue
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from dgcl_ops import entropy_filter, viz
from dgcl_ops.schedules import CLASSIFICATION_DROP
from semi_supervised import evaluate
from semi_supervised.network import SegmentationNetwork
from semi_supervised.scenes import DigitScenes, draw_scenes
from semi_supervised.settings import SMALL, Settings
from semi_supervised.summary import Run
from semi_supervised.trainer import Trainer

CONTROL, TREATED = "self-training", "density contrast"
METHODS = {
    "supervised": "labelled scenes only",
    CONTROL: "+ pseudo labels (contrast weight 0)",
    TREATED: "+ density loss (contrast weight 0.5)",
}


@dataclass(frozen=True)
class Plan:
    """The size of the demo."""

    labelled: int = 40
    unlabelled: int = 400
    evaluated: int = 100  # held-out scenes
    evaluate_every: int = 50  # steps
    shown: int = 6  # held-out scenes in the report
    split: str = "test"  # "val" to tune settings
    settings: Settings = field(
        default_factory=lambda: Settings(contrast={**SMALL, "exclude_classes": (0,)})
    )

    def settings_of(self, method: str, seed: int) -> Settings:
        """Returns a method's settings. Methods differ in one number only."""
        settings = replace(self.settings, seed=seed)
        if method == "supervised":
            return replace(settings, warm_up=settings.steps)
        if method == CONTROL:
            return replace(settings, contrast_weight=0.0)
        return settings


def train(
    plan: Plan,
    method: str,
    seed: int,
    report: Callable[[tuple[str, int, int]], None] = lambda done: None,
) -> Run:
    """Trains and evaluates one run.

    Args:
        plan: the demo's size.
        method: a key of METHODS.
        seed: seed of scenes, weights and batches.
        report: called with (method, seed, step) after each step.
    """
    torch.set_num_threads(1)
    started = time.perf_counter()
    data = DigitScenes(plan.labelled, plan.unlabelled, seed)
    sizes = data.num_classes, data.ignore_index
    images, labels = held_out_scenes(plan)
    held_out = list(zip(images.split(25), labels.split(25), strict=True))

    torch.manual_seed(seed)  # the weights at the start
    trainer = Trainer(SegmentationNetwork(data.num_classes), data, plan.settings_of(method, seed))
    matrices, densities = {}, {}

    def after_step(trainer: Trainer) -> None:
        report((method, seed, trainer.step))
        if trainer.step % plan.evaluate_every == 0 or trainer.step == trainer.settings.steps:
            matrices[trainer.step] = evaluate.confusion_matrix(trainer.predictor, held_out, *sizes)
            densities[f"step {trainer.step}"] = viz.bank_densities(trainer.contrast.bank).numpy()

    trainer.run(record_every=1, after_step=after_step)
    features, classes = evaluate.sample_features(trainer.teacher.module, held_out, data.num_classes)
    return Run(
        method=method,
        seed=seed,
        seconds=time.perf_counter() - started,
        miou=evaluate.mean_iou(matrices[trainer.step]),
        curve=[(step, evaluate.mean_iou(matrix)) for step, matrix in matrices.items()],
        class_iou=evaluate.class_iou(matrices[trainer.step]).tolist(),
        scores=evaluate.cluster_scores(features, classes),
        errors=evaluate.error_by_density(
            trainer.student, trainer.contrast, held_out, data.ignore_index
        ),
        history=trainer.history,
        shown=_to_show(trainer, images[: plan.shown], held_out, sizes) | {"bank": densities},
    )


def held_out_scenes(plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws the scenes on which all runs are evaluated. They do not depend on the seed."""
    return draw_scenes(plan.evaluated, plan.split, seed=0)


@torch.no_grad()
def _to_show(
    trainer: Trainer, images: torch.Tensor, held_out: list, sizes: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Returns predictions and densities of some scenes, and features for a scatter plot.

    The teacher predicts. Densities are the student's, since the bank holds the student's features.
    """
    student, teacher, contrast = trainer.student, trainer.teacher, trainer.contrast
    logits = teacher.eval()(images)
    pseudo = entropy_filter(logits, 1 - CLASSIFICATION_DROP[0], ignore_index=sizes[1])
    features, classes = evaluate.sample_features(student, held_out, sizes[0], per_class=60)
    marks = viz.anchors_and_keys(contrast, features, classes, num_anchors=6, num_keys=6)
    return {
        "prediction": logits.argmax(1).numpy(),
        "pseudo label": pseudo.numpy(),
        "density": evaluate.predict_with_density(student, contrast, images)[1].numpy(),
        "features": features.numpy(),
        "classes": classes.numpy(),
        "anchors": marks[0].numpy(),
        "keys": marks[1].numpy(),
    }


# ---- many runs ----------------------------------------------------------------------------------


def train_all(plan: Plan, seeds: list[int], workers: int) -> list[Run]:
    """Trains every method with every seed, `workers` at a time, and shows the progress."""
    # Long runs first, so that no core is idle at the end.
    jobs = [(method, seed) for method in reversed(METHODS) for seed in seeds]
    progress = Progress(plan, jobs)
    if workers == 1:
        runs = [train(plan, *job, report=progress.update) for job in jobs]
    else:
        context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads
        with context.Manager() as manager, ProcessPoolExecutor(workers, context) as pool:
            steps = manager.Queue()
            futures = [pool.submit(train, plan, *job, report=steps.put) for job in jobs]
            while not all(future.done() for future in futures):
                with contextlib.suppress(queue.Empty):
                    progress.update(steps.get(timeout=0.5))
                for future in futures:
                    if future.done() and future.exception():
                        pool.shutdown(cancel_futures=True)
                        future.result()  # raises with the process's traceback
            runs = [future.result() for future in futures]
    progress.close()
    order = list(METHODS)
    return sorted(runs, key=lambda run: (order.index(run.method), run.seed))


class Progress:
    """A progress bar with the remaining time. It prints a line per tenth if stderr is not a terminal."""

    def __init__(self, plan: Plan, jobs: list[tuple[str, int]]):
        self.plan, self.done, self.started = plan, dict.fromkeys(jobs, 0), time.perf_counter()
        self.total = sum(self._cost(job, plan.settings.steps) for job in jobs)
        self.live, self.printed = sys.stderr.isatty(), -1

    def _cost(self, job: tuple[str, int], step: int) -> int:
        """Counts a semi-supervised step as three: it has three times the images, a teacher and a bank."""
        warm_up = self.plan.settings_of(*job).warm_up
        return step + 2 * max(0, step - warm_up)

    def update(self, done: tuple[str, int, int]) -> None:
        """Shows a step of a run: (method, seed, step)."""
        method, seed, step = done
        self.done[method, seed] = step
        share = sum(self._cost(job, step) for job, step in self.done.items()) / self.total
        tick = round(share * (1000 if self.live else 10))
        if tick == self.printed:
            return
        self.printed = tick
        spent = time.perf_counter() - self.started
        bar = "█" * round(30 * share)
        left = f"{spent / share - spent:4.0f} s left" if share > 0.01 else ""
        line = f"{bar:░<30} {share:4.0%}  {spent:4.0f} s  {left}"
        print(
            f"\r{line}" if self.live else line,
            end="" if self.live else "\n",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """Completes the bar."""
        for job in self.done:
            self.update((*job, self.plan.settings.steps))
        if self.live:
            print(file=sys.stderr)


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
