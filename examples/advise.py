"""Is the density loss worth a trial on your data? Reads finished runs of train_segmentation.py.

    python examples/train_segmentation.py method.name=supervised --data DIR --labelled 46 --seeds 0 1
    python examples/train_segmentation.py method.name=self_training --data DIR --labelled 46 --seeds 0 1
    python examples/advise.py runs
    python examples/train_segmentation.py --data DIR --labelled 46 --seeds 0 1   # the trial; then advise.py again

The first two commands train the baselines. All runs must be in one folder, with the same data and settings. The
figures come from the validation images. docs/should_i_use_it.md has the same figures of our own studies.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from semi_supervised import findings
from semi_supervised.findings import CONTROL, SUPERVISED, Found, Paired, mean

# Labelled images of a class. In the study of photographs, each class is in at least two. We have no evidence for fewer.
FEW_IMAGES = 2
EFFECT = 0.5  # points that a trial should be able to show; the paper reports 0.2 to 1.1 over the next best method


@dataclass(frozen=True)
class Figures:
    """The figures behind the verdict.

    Attributes:
        runs: all runs.
        gain: of self-training over supervised training.
        effects: of the density loss over self-training, by the arm's name.
        kept: share of right pseudo labels, in percent, over all kept pixels. None: no pixel was kept.
        classes: the same, averaged over the classes that the density loss uses and that have a density.
        sparse: the same average, in the sparsest fifth of each class only.
    """

    runs: list[Found]
    gain: Paired
    effects: dict[str, Paired]
    kept: float | None
    classes: float | None
    sparse: float | None


def figures_of(runs: list[Found]) -> Figures:
    """Computes the figures. The precision is the mean over the self-training runs."""
    findings.check(runs)
    treated = [
        arm for arm in dict.fromkeys(r.arm for r in runs) if arm not in (SUPERVISED, CONTROL)
    ]
    controls = [run for run in runs if run.arm == CONTROL]
    precisions = [findings.precision(run.advice["pseudo_labels"]) for run in controls]
    return Figures(
        runs,
        findings.compare(runs, CONTROL, SUPERVISED),
        {arm: findings.compare(runs, arm, CONTROL) for arm in treated},
        *(mean(part) for part in zip(*precisions, strict=True)),
    )


def table(figures: Figures) -> str:
    """Returns the figures as lines of text."""
    controls = [run for run in figures.runs if run.arm == CONTROL]
    settings = controls[0].metrics["settings"]
    images = [run.advice["labelled_images"] for run in controls]
    rows = [("self-training minus supervised, mIoU", str(figures.gain))]
    for arm, effect in figures.effects.items():
        rows.append((f"{arm}, minus self-training, mIoU", str(effect)))
        if len(effect.differences) > 1:
            needed = effect.seeds_for(EFFECT) or "over 100"
            shown = f"{effect.detectable():.2f} points; {EFFECT} points need {needed} seeds"
            rows.append(("  detectable with 80 % power", shown))
    rows += [
        ("right pseudo labels, of all kept ones", percent(figures.kept)),
        ("  mean over the classes of the loss", percent(figures.classes)),
        ("  in the sparsest fifth of each class", percent(figures.sparse)),
        ("labelled images", str(controls[0].advice["labelled"])),
        (f"  classes in fewer than {FEW_IMAGES} of them", scarce(images, FEW_IMAGES)),
        ("labelled pixels of the rarest class", rarest(controls)),
        ("steps", f"{settings['steps']:,}, of which {settings['warm_up']:,} are supervised only"),
        ("rows that a class's bank received", turnover(controls[0])),
        ("  classes whose bank is not full", unfilled(controls)),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f} %"


def scarce(images: list[list[int]], least: int) -> str:
    """Lists the classes that are in fewer images with some seed, such as "3 (1), 7 (0)": class (images)."""
    fewest = [min(counts) for counts in zip(*images, strict=True)]
    return ", ".join(f"{c} ({n})" for c, n in enumerate(fewest) if n < least) or "none"


def rarest(runs: list[Found]) -> str:
    counts = [min(each) for each in zip(*(r.advice["labelled_pixels"] for r in runs), strict=True)]
    return f"{min(counts):,} (class {counts.index(min(counts))})"


def turnover(run: Found) -> str:
    bank = run.advice["bank"]
    rows = bank["pushes"] * bank["rows_per_push"]
    times = rows / bank["capacity"]
    return f"at most {rows:,}, {times:.1f} times its capacity of {bank['capacity']:,}"


def unfilled(runs: list[Found]) -> str:
    """Lists the classes that the loss uses and whose bank is not full in some run."""
    short = {
        c
        for run in runs
        for c, (rows, included) in enumerate(
            zip(run.advice["bank"]["rows"], run.advice["bank"]["included"], strict=True)
        )
        if included and rows < run.advice["bank"]["capacity"]
    }
    return ", ".join(map(str, sorted(short))) or "none"


def idle(run: Found) -> bool:
    """Returns whether the density loss stays 0 for the whole run, because banks lack rows."""
    bank = run.advice["bank"]
    if bank["all_full"]:
        return unfilled([run]) != "none"
    return not any(bank["ready"])


def verdict(figures: Figures) -> str:
    """Returns the advice with its reason."""
    if figures.effects:
        texts = [after_trial(arm, effect) for arm, effect in figures.effects.items()]
        if len(texts) > 1:
            texts.append("If you try several weights, some intervals exclude 0 by chance.")
        return "\n".join(texts)
    return before_trial(figures)


def before_trial(figures: Figures) -> str:
    """Returns the advice if there are no runs with the density loss."""
    if any(idle(run) for run in figures.runs if run.arm == CONTROL):
        return (
            "The loss cannot act. It stays 0, because the banks have too few rows. Train longer, lower "
            "contrast.bank_capacity, or set contrast.start=per_class."
        )
    return (
        "Only a trial can say. In our studies neither self-training's gain nor the share of right pseudo labels "
        "predicted the effect of the loss. Train the same seeds with the loss, five or more."
    )


def after_trial(arm: str, effect: Paired) -> str:
    """Returns the advice for a weight that was tried."""
    seeds = len(effect.differences)
    if seeds == 1:
        return f"{arm}: unknown. One seed cannot show an effect. Train more seeds."
    if effect.mean > effect.half:
        return f"{arm}: use it. The interval is above 0. Check it on the test images."
    if effect.mean < -effect.half:
        return f"{arm}: leave it out. It costs mIoU, and the interval is below 0."
    return (
        f"{arm}: no difference shown. With this spread, {seeds} seeds can detect {effect.detectable():.2f} points or "
        "more. Leave the loss out, or train more seeds."
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="advise.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, help="--out of train_segmentation.py")
    options = parser.parse_args(arguments)
    try:
        runs, others = findings.read_runs(options.runs)
        figures = figures_of(runs)
    except (FileNotFoundError, ValueError) as error:
        print(f"advise.py: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    first = runs[0].advice
    print(
        f"{len(runs)} runs, {len(first['labelled_pixels'])} classes, {first['validation_images']} validation images"
    )
    if first["validated_on_test"]:
        print(
            "The validation images are the test images: the folder has no other labelled images to hold out."
        )
    if others:
        print(f"Not used: {', '.join(others)}.")
    print(f"\n{table(figures)}\n\n{verdict(figures)}")


if __name__ == "__main__":
    main()
