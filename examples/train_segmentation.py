"""Trains a segmentation network on a few labelled and many unlabelled images, with the density loss or another method.

    python examples/train_segmentation.py --data DIR --labelled 46
    python examples/train_segmentation.py --data DIR --labelled 46 --seeds 0 1 --contrast-weight 0 0.5
    python examples/train_segmentation.py --data DIR --labelled 46 method.name=fixmatch
    python examples/train_segmentation.py --config examples/configs/voc_1_16.yaml data=VOCdevkit/VOC2012 weights=FILE
    torchrun --nproc-per-node 4 examples/train_segmentation.py --config ...
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --standalone --nproc-per-node 4 --max-restarts 3 \\
        examples/train_segmentation.py --resume auto --config ...

Without --config, DIR holds images/ and labels/, or train/, val/ and test/ with both in each; examples/README.md lists
more layouts. A label is a PNG or TIFF with its image's name and a class in each pixel. Several seeds or weights are
trained one after the other and compared seed by seed. Every run writes checkpoint, log, metrics and some overlays into
its own folder under --out.
"""

import argparse
import contextlib
import functools
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from semi_supervised import advice, distributed, evaluate, methods, summary
from semi_supervised.checks import check_images
from semi_supervised.config import Config, RunKeys, value_of
from semi_supervised.images import batches
from semi_supervised.logs import Log
from semi_supervised.options import build_parser, names_of
from semi_supervised.trainer import Trainer
from tqdm import tqdm

AUTO = Path("auto")  # --resume: the run's own checkpoint, if there is one


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser(__doc__)
    options = parser.parse_intermixed_args(arguments)
    with usage_errors():
        shorthands = {name: getattr(options, name) for name in ("data", "labelled", "unlabelled")}
        if options.labelled is not None:
            shorthands["labelled"] = value_of(options.labelled)
        config = Config(options.config, options.overrides, **shorthands)
        check(options, config)
        options.device = distributed.start(options.device)
    trained = [
        train(options, config, weight, seed)
        for weight in options.contrast_weight
        for seed in options.seeds
    ]
    distributed.stop()
    if None in trained:  # a run stopped early, or this is not the first rank
        return
    heaviest = max(options.contrast_weight)
    control, treated = (names_of(config, weight)[0] for weight in (0.0, heaviest))
    result = summary.summarise(trained, control, treated)
    print(f"\n{summary.as_text(result)}")
    facts = {name: str(value) for name, value in (vars(options) | config.values).items()}
    summary.write_json(
        options.out / "metrics.json", {"facts": facts | summary.environment(), **result}
    )
    print(f"\nresults are in {options.out}")


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Prints errors that the user can fix as one line. Errors of the training itself keep their traceback."""
    try:
        yield
    except (FileNotFoundError, ImportError, ValueError) as error:
        print(f"train_segmentation.py: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def check(options: argparse.Namespace, config: Config) -> None:
    """Checks the options, and fills in their defaults from the configuration."""
    config.make_settings(unlabelled=1, ranks=1)  # reports wrong values before reading the data
    if options.stop_at is not None and options.stop_at < 1:
        raise ValueError(f"--stop-at must be at least 1, got {options.stop_at}")
    if options.contrast_weight is not None:
        config.check_use("contrast_weight")
    options.seeds = options.seeds or [config.values.get("seed", 0)]
    options.contrast_weight = options.contrast_weight or [config.values.get("contrast_weight", 0.5)]
    if not all(0 <= weight < float("inf") for weight in options.contrast_weight):
        raise ValueError(
            f"contrast_weight must be finite and not negative, got {options.contrast_weight}"
        )
    if min(options.seeds) < 0:
        raise ValueError(f"seeds must not be negative, got {options.seeds}")
    for name in ("seeds", "contrast_weight"):
        values = getattr(options, name)
        if len(set(values)) < len(values):
            raise ValueError(f"{name} must differ, got {values}")
        if len(values) > 1 and (options.resume not in (None, AUTO) or options.stop_at):
            raise ValueError(f"--resume FILE and --stop-at need a single run, got {name} {values}")
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {options.device} cannot be used: {error}") from None


def train(
    options: argparse.Namespace, config: Config, weight: float, seed: int
) -> summary.Run | None:
    """Runs one training.

    Args:
        options: the command line.
        config: the configuration.
        weight: weight of the contrast.
        seed: seed of the labelled images, weights and batches.

    Returns:
        Its results. None if --stop-at ended it, and on all ranks except the first.
    """
    started = time.perf_counter()
    rank, ranks = distributed.rank_and_world_size()
    method, folder = names_of(config, weight)
    out = options.out / f"{folder}-seed-{seed}"
    with usage_errors():
        checkpoint, resume = out / "checkpoint.pt", options.resume
        if resume == AUTO:
            resume = checkpoint if checkpoint.exists() else None
        elif checkpoint.exists() and not resume:
            raise ValueError(
                f"{out} already holds a run; pass --resume auto to continue it, or another --out"
            )
        data = config.make_data(seed)
        check_images(data.files(), options.out)
        settings = config.make_settings(
            len(data.unlabelled_images), ranks, seed=seed, contrast_weight=weight
        )
        torch.manual_seed(seed)  # the weights at the start
        make_network = functools.partial(config.make_network, data.num_classes)
        place = options.device, config.run.workers
        trainer = Trainer(make_network(), data, settings, *place, make_network)
        stored_ranks = trainer.load(resume) if resume else ranks
    say = print if rank == 0 else lambda *_: None
    say(
        f"\n{method}, seed {seed}: {len(data.labelled_samples)} labelled and "
        f"{len(data.unlabelled_images)} unlabelled images, {data.num_classes} classes, on {ranks} x {options.device}"
    )
    for note in data.notes():
        say(note)
    unseen = np.flatnonzero(data.pixels == 0).tolist()
    if unseen:
        say(f"no labelled image contains the classes {unseen}, so they cannot be learned")
        if (
            trainer.contrast is not None
            and trainer.contrast.strategy.start == "all_full"
            and trainer.contrast.included[unseen].any()
        ):
            say(
                "the density loss waits for all classes, so it stays 0; set contrast.start=per_class to change this"
            )
    if resume:
        say(f"continues {resume} at step {trainer.step}")
    if stored_ranks != ranks:
        say(
            f"{stored_ranks} ranks wrote the checkpoint: this run continues with the batch-norm averages of the first "
            "rank and draws different batches"
        )
    out.mkdir(parents=True, exist_ok=True)
    run_training(trainer, out, options, config.run)
    if trainer.contrast is not None:
        say(f"\nthe density loss at the end:\n{trainer.contrast.report()}\n")
    if trainer.step < settings.steps:
        say(f"stopped at step {trainer.step}; continue with --resume {checkpoint}")
        return None
    return report(trainer, method, out, started, config.run.evaluate_window)


def run_training(trainer: Trainer, out: Path, options: argparse.Namespace, every: RunKeys) -> None:
    """Trains, reports and saves."""
    data, settings, first = trainer.data, trainer.settings, trainer.rank == 0
    log = Log(out, trainer.history) if first else None
    hidden = None if first else True  # None: hidden unless standard error is a terminal
    bar = tqdm(total=settings.steps, initial=trainer.step, unit="step", disable=hidden)

    def say(text: str) -> None:
        if first:
            bar.write(text, file=sys.stdout)

    def after_step(trainer: Trainer) -> None:
        step, record = trainer.step, dict(trainer.history[-1]) if trainer.history else {}
        bar.update()
        if record.pop("step", None) == step:
            losses = "  ".join(f"{name} {value:.3f}" for name, value in record.items())
            say(f"step {step:5d}/{settings.steps}  {losses}")
        if step % every.evaluate_every == 0 and step < settings.steps:
            matrix = confusion_matrix(trainer, data.val, every.evaluate_window)
            miou = evaluate.mean_iou(matrix)
            trainer.history.append({"step": step, "validation": miou})
            say(f"{len(data.val)} validation images: mIoU {miou:.2f} %")
        if first and trainer.history and trainer.history[-1]["step"] == step:
            log.write(trainer.history)
        if step % every.save_every == 0 or step in (settings.steps, options.stop_at):
            trainer.save(out / "checkpoint.pt")

    trainer.run(until=options.stop_at, record_every=every.report_every, after_step=after_step)
    bar.close()
    if first:
        log.close()


def confusion_matrix(
    trainer: Trainer, samples: list, window: tuple[int, int] | None
) -> torch.Tensor:
    """Evaluates the predictor. Each rank predicts a part of the images."""
    sizes = trainer.data.num_classes, trainer.data.ignore_index
    own = batches(samples[trainer.rank :: trainer.ranks])
    return evaluate.confusion_matrix(evaluated_network(trainer, window), own, *sizes)


def evaluated_network(trainer: Trainer, window: tuple[int, int] | None) -> torch.nn.Module:
    return evaluate.as_evaluated(trainer.predictor, window, trainer.data.border_colour)


def report(
    trainer: Trainer, method: str, out: Path, started: float, window: tuple[int, int] | None
) -> summary.Run | None:
    """Evaluates the predictor on the test images, and writes metrics, IoU by class and overlays.

    The figures for advise.py come from the validation images. Features and densities are always measured on whole
    images. The features are the teacher's.

    Args:
        trainer: the finished run.
        method: its name.
        out: its folder.
        started: time.perf_counter() at its start.
        window: height and width of the windows for predictions, or None.

    Returns:
        The results, or None on all ranks except the first.
    """
    data = trainer.data
    if trainer.rank == 0:
        print(f"evaluating {len(data.test)} test images", flush=True)
    matrix = confusion_matrix(trainer, data.test, window)
    val = matrix if data.val is data.test else confusion_matrix(trainer, data.val, window)
    # On all ranks, since each rank may hold only a shard of the bank.
    figures = advice.measure(trainer, val)
    of_features = trainer.settings.density_of == "features"
    source = trainer.student, trainer.contrast if of_features else None
    errors = evaluate.error_by_density(*source, batches(data.test), data.ignore_index)
    strips = evaluate.overlays(evaluated_network(trainer, window), *source, data)
    if trainer.rank > 0:
        return None
    features, classes = evaluate.sample_features(
        trainer.teacher.module, batches(data.test), data.num_classes
    )
    run = summary.Run(
        method=method,
        seed=trainer.settings.seed,
        seconds=time.perf_counter() - started,
        miou=evaluate.mean_iou(matrix),
        curve=[(r["step"], r["validation"]) for r in trainer.history if "validation" in r],
        class_iou=evaluate.class_iou(matrix).tolist(),
        scores=evaluate.cluster_scores(features, classes),
        errors=errors,
        history=[record for record in trainer.history if "supervised" in record],
    )
    pixels = data.pixels.tolist(), matrix.sum(1).tolist()
    summary.write_classes(out / "classes.csv", run.class_iou, *pixels)
    measured = summary.row_of(run)
    measured |= {"settings": asdict(trainer.settings), "data": data.description()}
    measured |= {"evaluate_window": window, "passes": methods.passes_of(trainer.settings)}
    measured |= {"advice": figures, "history": run.history}
    summary.write_json(out / "metrics.json", measured)
    for name, strip in strips.items():
        Image.fromarray(strip).save(out / f"overlay-{name}.png")
    print(
        f"{len(data.test)} test images: mIoU {run.miou:.2f} %; by class "
        + " ".join(f"{iou:.1f}" for iou in run.class_iou)
    )
    if None in run.scores.values():
        print(
            "features: no cluster scores; they need 2 classes in the test images, and finite features"
        )
    else:
        print("features: " + ", ".join(f"{name} {value:.3f}" for name, value in run.scores.items()))
    if run.errors:  # empty if no class was ready
        fifths = " ".join(f"{error:.1f}" for error in run.errors)
        print(f"wrong pixels in % by fifths of density, sparsest first: {fifths}")
    return run


if __name__ == "__main__":
    main()
