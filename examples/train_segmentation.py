"""Trains a segmentation network on a folder of images, few of them labelled, with the density loss.

    python examples/train_segmentation.py --data DIR --labelled 46
    python examples/train_segmentation.py --data DIR --labelled 46 --seeds 0 1 --contrast-weight 0 0.5

DIR holds images/ and labels/, or train/, val/ and test/ with both in each. A label is a PNG of its image's name, with
a class in each pixel. Several seeds or weights are trained one after the other and compared, seed by seed. Every run
writes its checkpoint, metrics and some overlays into a folder of its own under --out.
"""

import argparse
import csv
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from semi_supervised import evaluate, summary
from semi_supervised.folder import FolderData, batches
from semi_supervised.network import SegmentationNetwork
from semi_supervised.trainer import SMALL, Settings, Trainer

from dgcl_ops import viz


def main(arguments=None):
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        check(options)
        trained = [
            train(options, weight, seed)
            for weight in options.contrast_weight
            for seed in options.seeds
        ]
    except (FileNotFoundError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    if None in trained:  # stopped early
        return
    heaviest = max(options.contrast_weight)
    result = summary.summarise(trained, name_of(0.0), name_of(heaviest))
    print(f"\n{summary.as_text(result)}")
    facts = {name: str(value) for name, value in vars(options).items()} | summary.environment()
    text = json.dumps({"facts": facts, **result}, indent=1, allow_nan=False)
    (options.out / "metrics.json").write_text(text)
    print(f"\nresults are in {options.out}")


def check(options):
    """Rules between options; those of the data are FolderData's."""
    warm_up = options.steps // 3 if options.warm_up is None else options.warm_up
    if not 0 <= warm_up <= options.steps:
        raise ValueError(f"--warm-up must lie in [0, {options.steps}], got {warm_up}")
    options.warm_up = warm_up
    if len(options.crop) > 2 or min(options.crop) < 16:
        raise ValueError(f"--crop must be a height and a width from 16 on, got {options.crop}")
    if min(options.contrast_weight) < 0:
        raise ValueError(f"--contrast-weight must not be negative, got {options.contrast_weight}")
    if min(options.seeds) < 0:
        raise ValueError(f"--seeds must not be negative, got {options.seeds}")
    for name in ("seeds", "contrast_weight"):
        values = getattr(options, name)
        if len(set(values)) < len(values):
            raise ValueError(f"--{name.replace('_', '-')} must differ, got {values}")
        if len(values) > 1 and (options.resume or options.stop_at):
            raise ValueError(f"--resume and --stop-at are for one run, got {name} {values}")
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {options.device} cannot be used: {error}") from None


def name_of(weight):
    return "self-training" if weight == 0 else f"contrast weight {weight:g}"


def train(options, weight: float, seed: int) -> summary.Run | None:
    """One run; None if it was told to stop before its end."""
    started = time.perf_counter()
    data = FolderData(
        options.data,
        labelled=options.labelled,
        crop=(options.crop[0], options.crop[-1]),
        seed=seed,
        num_classes=options.num_classes,
        ignore_index=options.ignore_index,
        unlabelled=options.unlabelled,
        mirror=not options.no_mirror,
    )
    settings = Settings(
        seed=seed,
        contrast_weight=weight,
        steps=options.steps,
        warm_up=options.warm_up,
        batch=options.batch,
        learning_rate=options.learning_rate,
        ema_maximum=0.99,
        balance=options.balance,
        contrast={**SMALL, "exclude_classes": options.exclude_classes},
    )
    out = options.out / f"weight-{weight:g}-seed-{seed}"
    torch.manual_seed(seed)  # the weights at the start
    network = SegmentationNetwork(
        data.num_classes, widths=(32, 64, 128, 128), feature_dim=64, feature_stride=4
    )
    trainer = Trainer(network, data, settings, options.device)
    print(
        f"\n{name_of(weight)}, seed {seed}: {len(data.labelled_samples)} labelled and "
        f"{len(data.unlabelled_images)} unlabelled images, {data.num_classes} classes, on {options.device}"
    )
    unseen = np.flatnonzero(data.pixels == 0).tolist()
    if unseen:
        print(f"no labelled image shows the classes {unseen}: they cannot be learned")
    if options.resume:
        trainer.load(options.resume)
        print(f"continues {options.resume} at step {trainer.step}")
    out.mkdir(parents=True, exist_ok=True)
    run_training(trainer, out, options)
    if trainer.step < settings.steps:
        print(f"stopped at step {trainer.step}; continue with --resume {out / 'checkpoint.pt'}")
        return None
    return report(trainer, name_of(weight), out, started)


def run_training(trainer, out, options):
    """Trains, with a line now and then, and saves."""
    data, settings = trainer.data, trainer.settings
    first, started = trainer.step, time.perf_counter()

    def after_step(trainer):
        step, record = trainer.step, dict(trainer.history[-1]) if trainer.history else {}
        if record.pop("step", None) == step:
            left = (time.perf_counter() - started) / (step - first) * (settings.steps - step)
            losses = "  ".join(f"{name} {value:.3f}" for name, value in record.items())
            print(f"step {step:5d}/{settings.steps}  {losses}  {left:.0f} s left", flush=True)
        if step % options.evaluate_every == 0 and step < settings.steps:
            sizes = data.num_classes, data.ignore_index
            matrix = evaluate.confusion_matrix(trainer.teacher.module, batches(data.val), *sizes)
            trainer.history.append({"step": step, "validation": evaluate.mean_iou(matrix)})
            print(f"{len(data.val)} validation images: mIoU {evaluate.mean_iou(matrix):.2f} %")
        if step % options.save_every == 0 or step in (settings.steps, options.stop_at):
            trainer.save(out / "checkpoint.pt")

    trainer.run(until=options.stop_at, record_every=options.report_every, after_step=after_step)


def report(trainer, method, out, started) -> summary.Run:
    """Measures the teacher on the test images; writes metrics, IoU by class and overlays."""
    data, sizes = trainer.data, (trainer.data.num_classes, trainer.data.ignore_index)
    matrix = evaluate.confusion_matrix(trainer.teacher.module, batches(data.test), *sizes)
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
        errors=evaluate.error_by_density(
            trainer.student, trainer.contrast, batches(data.test), data.ignore_index
        ),
        history=[record for record in trainer.history if "supervised" in record],
    )
    with open(out / "classes.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["class", "IoU %", "labelled training pixels", "test pixels"])
        columns = run.class_iou, data.pixels.tolist(), matrix.sum(1).tolist()
        for c, (iou, trained, tested) in enumerate(zip(*columns, strict=True)):
            table.writerow([c, f"{iou:.2f}", trained, tested])
    measured = summary.row_of(run)
    measured |= {"settings": asdict(trainer.settings), "data": data.description()}
    (out / "metrics.json").write_text(json.dumps(measured | {"history": run.history}, indent=1))
    write_overlays(trainer, out)
    print(
        f"{len(data.test)} test images: mIoU {run.miou:.2f} %; by class "
        + " ".join(f"{iou:.1f}" for iou in run.class_iou)
    )
    print("features: " + ", ".join(f"{name} {value:.3f}" for name, value in run.scores.items()))
    by_fifths = " ".join(f"{error:.1f}" for error in run.errors)
    print(f"wrong pixels in %, by fifths from the sparsest features to the densest: {by_fifths}")
    return run


@torch.no_grad()
def write_overlays(trainer, out, count=6):
    """Strips of image, label, prediction and density, for images spread over the test."""
    test, num_classes = trainer.data.test, trainer.data.num_classes
    for i in np.linspace(0, len(test) - 1, min(count, len(test))).astype(int):
        [(images, labels)] = batches([test[i]])
        predicted = evaluate.predict(trainer.teacher.eval(), images).cpu()
        density = evaluate.density_map(trainer.student, trainer.contrast, images)[1][0].numpy()
        image = images[0].numpy()
        strip = (
            image.transpose(1, 2, 0),
            viz.class_image(labels[0], num_classes),
            viz.class_image(predicted[0], num_classes),
            viz.density_image(image, density),
        )
        pixels = (np.concatenate(strip, axis=1).clip(0, 1) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(out / f"overlay-{test[i].image.stem}.png")


def build_parser():
    parser = argparse.ArgumentParser(
        prog="train_segmentation.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of images and labels")
    add("--out", type=Path, default=Path("runs"), help="folder for the results (runs)")
    add("--labelled", default="1/8", help="how many labelled images, or which share (1/8)")
    add("--unlabelled", type=Path, help="a further folder of images without labels")
    add("--num-classes", type=positive, help="default: the largest label found, and one")
    add("--ignore-index", type=int, default=255, help="label of pixels without one (255)")
    add("--exclude-classes", type=int, nargs="*", default=[], help="classes without contrast")
    add("--steps", type=positive, default=800)
    add("--warm-up", type=int, help="supervised steps at first; default: a third of --steps")
    add("--batch", type=positive, default=4, help="labelled images a step, and unlabelled ones (4)")
    add("--crop", type=positive, nargs="+", default=[128, 160], help="height and width (128 160)")
    add("--no-mirror", action="store_true", help="left and right differ in meaning")
    add("--balance", type=float, default=0.5, help="weight of rare classes: 0 none, 1 full (0.5)")
    add("--learning-rate", type=float, default=3e-3)
    add("--contrast-weight", type=float, nargs="+", default=[0.5], help="0: plain self-training")
    add("--seeds", "--seed", type=int, nargs="+", default=[0])
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--resume", type=Path, help="checkpoint of one run with the same options")
    add("--stop-at", type=positive, help="end at this step, to --resume later")
    add("--save-every", type=positive, default=100, help="steps between checkpoints (100)")
    add("--evaluate-every", type=positive, default=200, help="steps between validations (200)")
    add("--report-every", type=positive, default=50, help="steps between lines (50)")
    return parser


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


if __name__ == "__main__":
    main()
