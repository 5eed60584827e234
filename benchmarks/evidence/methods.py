"""Compares all methods of the example trainer on scenes of handwritten digits, with equal steps and with equal passes.

    python benchmarks/evidence/methods.py                                      # all runs missing from the CSV file
    python benchmarks/evidence/methods.py --methods dgcl fixmatch --seeds 0    # some of them
    python benchmarks/evidence/methods.py --report --page docs/comparison.md   # tables and plot only, no training

Each run adds one row to the CSV file when it ends. You can stop the program at any time; it continues when you start it
again. A run that ended is not repeated, even if the code has changed since: use another --out for a new comparison.

Data, network, optimizer, learning rate, teacher and batches are the same for all methods. The settings are the demo's,
and none is tuned for a method. Each method has its default options, except in SIZES. A third of the steps is the
supervised warm-up. With equal passes, all runs get as many passes as self-training needs for --steps. Runs with the
same seed share scenes, initial weights and batches. Each run uses one thread. Needs `pip install ".[examples]"`.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import MACHINE_COLUMNS, ROOT, append_rows, machine, say
from peak_memory import MEGABYTE, peak_beyond_inputs

sys.path.insert(0, str(ROOT / "examples"))
from semi_supervised import budget, evaluate
from semi_supervised.methods import METHODS, passes_of
from semi_supervised.network import SegmentationNetwork
from semi_supervised.runs import Plan, available_cores
from semi_supervised.scenes import DigitScenes
from semi_supervised.settings import Settings
from semi_supervised.trainer import Trainer

from evidence.methods_report import BUDGETS, CONTROL, in_page, read_rows, report
from evidence.pool import outcomes
from evidence.run import described, together

# `curve` holds the test mIoU after each tenth of the steps, as passes:mIoU.
MEASURED = ("steps", "passes", "miou", "val_miou", "curve", "networks", "cpu_seconds", "peak_mb")
COLUMNS = ("method", "budget", "seed", *MEASURED, "settings", "versions", *MACHINE_COLUMNS)
STEPS = 270
LEGS = 10  # evaluations of a run
PLAN = Plan()
# A detector of the default width, 64, costs several times as much as the networks at this size.
SIZES = {"gct": {"detector_width": 8}}


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if not options.report:
        train_all(options)
    rows = read_rows(options.out)
    text = report(rows, options.out)
    print(text)
    if options.page:
        options.page.write_text(in_page(options.page.read_text(), text))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, results = parser.add_argument, Path(__file__).parent / "results"
    add("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS), metavar="NAME")
    add("--budgets", nargs="+", choices=BUDGETS, default=BUDGETS)
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--steps", type=int, default=STEPS, help="steps per run; a few suffice for a trial")
    add("--workers", type=int, default=available_cores(), help="runs at a time")
    add("--out", type=Path, default=results / "methods.csv", help="CSV file")
    add("--report", action="store_true", help="only tables and plot")
    add("--page", type=Path, help="also write the tables into the section Results of this page")
    options = parser.parse_args(arguments)
    for name in ("steps", "workers"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if min(options.seeds) < 0:
        parser.error(f"--seeds must not be negative, got {options.seeds}")
    if options.page and not options.page.is_file():
        parser.error(f"--page must name a file, got {options.page}")
    return options


def settings_of(method: str, matched: str, seed: int, steps: int) -> Settings:
    """Returns the settings of a run.

    Args:
        method: a key of METHODS.
        matched: one of BUDGETS.
        seed: the seed of scenes, weights and batches.
        steps: steps of the run. With equal passes: of self-training, whose passes every run gets.
    """
    equal = {"steps": steps}
    if matched == "passes":
        equal = {"passes": passes_of(settings_of(CONTROL, "steps", seed, steps))}
    settings = replace(PLAN.settings, method={"name": method, **SIZES.get(method, {})}, seed=seed)
    return budget.affordable(settings, equal, fixed_warm_up=False)


def train_all(options: argparse.Namespace) -> None:
    """Trains every run that is missing from the file, and prints a line for each.

    Raises:
        SystemExit: If the file has runs with other settings, or if runs failed.
    """
    cases = {
        (method, matched, seed): settings_of(method, matched, seed, options.steps)
        for seed in dict.fromkeys(options.seeds)
        for matched in options.budgets
        for method in options.methods
    }
    done = read_rows(options.out)
    for row in done:
        settings = cases.pop((row["method"], row["budget"], row["seed"]), None)
        if settings and json.loads(row["settings"]) != json.loads(described(settings)):
            raise SystemExit(
                f"methods: {options.out} holds {row['method']}, seed {row['seed']}, with other settings; choose "
                "another --out"
            )
    say(f"{len(done)} runs done, {len(cases)} to do, {options.workers} at a time")
    left, started, failed = sum(map(passes_of, cases.values())), time.perf_counter(), []
    trained = 0  # passes
    jobs = [(*case, settings) for case, settings in cases.items()]
    for finished, (job, row) in enumerate(outcomes(train, jobs, options.workers), 1):
        *case, settings = job
        name = "{}, equal {}, seed {}".format(*case)
        trained, left = trained + passes_of(settings), left - passes_of(settings)
        minutes = (time.perf_counter() - started) / trained * left / 60
        if isinstance(row, BaseException):
            failed.append(name)
            result = f"failed with {type(row).__name__}: {row}"
        else:
            append_rows(options.out, COLUMNS, [row])
            result = f"mIoU {row['miou']:.2f} after {row['passes']} passes, {row['cpu_seconds']} s"
        say(f"{name}: {result} ({finished} of {len(jobs)}, {minutes:.0f} min left)")
    if failed:
        raise SystemExit(f"methods: {len(failed)} of {len(jobs)} runs failed: {'; '.join(failed)}")


def train(method: str, matched: str, seed: int, settings: Settings) -> dict:
    """Trains and evaluates one run.

    Args:
        method: a key of METHODS.
        matched: one of BUDGETS.
        seed: seed of scenes, weights and batches.
        settings: see `settings_of`.

    Returns:
        A row of the file.
    """
    torch.set_num_threads(1)
    data = DigitScenes(PLAN.labelled, PLAN.unlabelled, seed, PLAN.evaluated)

    def build() -> SegmentationNetwork:
        return SegmentationNetwork(data.num_classes)

    def miou(samples: list) -> float:
        sizes = data.num_classes, data.ignore_index
        matrix = evaluate.confusion_matrix(trainer.predictor, together(samples, 25), *sizes)
        return round(evaluate.mean_iou(matrix), 4)

    def run_in_legs() -> None:
        nonlocal cpu_seconds
        for until in sorted({-(-settings.steps * leg // LEGS) for leg in range(1, LEGS + 1)}):
            started = time.process_time()
            trainer.run(until=until)
            cpu_seconds += time.process_time() - started
            curve.append(f"{passes_of(replace(settings, steps=until))}:{miou(data.test)}")

    torch.manual_seed(seed)  # the weights at the start
    trainer = Trainer(build(), data, settings, make_network=build)
    cpu_seconds, curve, peak = 0.0, [], None
    if os.access("/proc/self/clear_refs", os.W_OK):
        peak = peak_beyond_inputs(run_in_legs, torch.device("cpu"))
    else:
        run_in_legs()
    return {
        "method": method,
        "budget": matched,
        "seed": seed,
        "steps": settings.steps,
        "passes": passes_of(settings),
        "miou": miou(data.test),
        "val_miou": miou(data.val),
        "curve": " ".join(curve),
        "networks": round(parameters(trainer.predictor) / parameters(trainer.student)),
        "cpu_seconds": round(cpu_seconds, 1),
        "peak_mb": "" if peak is None else round(peak / MEGABYTE),
        "settings": described(settings),
        "versions": versions(),
        **machine(torch.device("cpu"), None, ("csrc", "dgcl_ops", "examples")),
    }


def parameters(network: nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())


def versions() -> str:
    """Returns the versions of Python and of the packages that draw the scenes."""
    packages = ("numpy", "scikit-learn")
    return ", ".join(
        [f"python {platform.python_version()}"]
        + [f"{name} {importlib.metadata.version(name)}" for name in packages]
    )


if __name__ == "__main__":
    main()
