"""Compares density-guided contrast with plain self-training on scenes of handwritten digits, and writes a report.

    python examples/demo.py --out demo_out

For each seed it trains a small segmentation network in three ways: on labelled scenes only, with pseudo labels, and
with the density loss. It prints a table and writes `index.html`, three pictures and `metrics.json`. It needs no
download and no GPU.
"""

import argparse
import json
import shlex
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from semi_supervised import page, runs, summary


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    plan = plan_from(options)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)  # a bad path fails before the training
    started = time.perf_counter()
    jobs = len(runs.METHODS) * len(options.seeds)
    workers = max(1, min(options.workers or runs.available_cores(), jobs))
    print(f"{jobs} runs of {plan.settings.steps} steps, {workers} at a time", file=sys.stderr)
    trained = runs.train_all(plan, options.seeds, workers)

    result = summary.summarise(trained, runs.CONTROL, runs.TREATED)
    print(summary.as_text(result))
    facts = {
        "command": shlex.join(["python", *sys.argv]) if arguments is None else "",
        "seconds of training": round(time.perf_counter() - started, 1),
        "cores": runs.available_cores(),
        "runs at a time": workers,
        **summary.environment(),
    }
    metrics = {"facts": facts, "plan": asdict(plan), **result}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1, allow_nan=False))
    page.write(out, plan, trained, result, facts)
    print(f"\nreport: {out / 'index.html'} ({time.perf_counter() - started:.0f} s in all)")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = runs.Plan()
    add = parser.add_argument
    add("--out", default="demo_out", help="folder for the report")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run of each method per seed")
    add("--workers", type=int, default=0, help="runs at a time; 0: one per core")
    add("--steps", type=int, default=default.settings.steps, help="steps per run")
    add(
        "--warm-up",
        type=int,
        default=default.settings.warm_up,
        help="supervised steps at the start",
    )
    add("--labelled", type=int, default=default.labelled, help="labelled scenes")
    add("--unlabelled", type=int, default=default.unlabelled, help="unlabelled scenes")
    add("--evaluated", type=int, default=default.evaluated, help="held-out scenes")
    add("--split", choices=("test", "val"), default=default.split, help="val: to tune settings")
    options = parser.parse_args(arguments)
    for name in ("steps", "labelled", "unlabelled", "evaluated"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if not 0 <= options.warm_up < options.steps:
        parser.error(f"--warm-up must lie in [0, {options.steps}), got {options.warm_up}")
    if len(set(options.seeds)) < len(options.seeds) or min(options.seeds) < 0:
        parser.error(f"--seeds must be distinct and not negative, got {options.seeds}")
    return options


def plan_from(options: argparse.Namespace) -> runs.Plan:
    default = runs.Plan()
    return replace(
        default,
        labelled=options.labelled,
        unlabelled=options.unlabelled,
        evaluated=options.evaluated,
        evaluate_every=max(1, options.steps // 10),
        shown=min(default.shown, options.evaluated),
        split=options.split,
        settings=replace(default.settings, steps=options.steps, warm_up=options.warm_up),
    )


if __name__ == "__main__":
    main()
