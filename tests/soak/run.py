"""A long run of the loss under adverse conditions: forward, backward and push on small shapes, checked at each step.

    python -m soak.run                    # from tests/; 20,000 steps; takes minutes
    python -m soak.run --steps 600

There are several rounds, each with every setting. Batches are maps or flat, sometimes empty, in several dtypes, with
missing classes, NaN and infinity. From time to time the state is saved and loaded into a fresh module. The fresh
module runs in parallel with the old one, must give bitwise equal results, and then replaces it. checks.py lists what is
checked. Times are not compared. The CSV row records what was done and how memory changed.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from benchmark_runs import BENCHMARKS
from torch import Tensor

from dgcl_ops import DensityContrastLoss

from . import checks

sys.path.append(str(BENCHMARKS))
from common import MACHINE_COLUMNS, append_rows, machine, say

CLASSES, FEATURE_DIM, PROJECTION_DIM = 5, 6, 4
SMALL = {
    "scales": (2, 4),
    "num_anchors": 6,
    "num_keys": 3,
    "num_negatives": 9,
    "max_candidates": 15,
    "bank_capacity": 14,
    "rows_per_push": 6,
}
SETTINGS = [
    {"anchors": anchors, "keys": keys}
    for anchors in ("low_density", "random", "low_confidence")
    for keys in ("high_density", "average", "high_confidence")
]
SETTINGS += [
    {"refresh_every": 3},
    {"metric": "l2"},
    {"metric": "dot", "refresh_every": 2},
    {"bank_dtype": torch.bfloat16},
    {"start": "all_full", "backfill": False},
    {"disjoint": True, "normalize_keys": True, "eps": 1e-6},
    {"exclude_classes": (0, 3), "grad_scale": 0.5, "min_rows": 7},
]
ROUNDS = 5  # the first one is the warm-up
PARALLEL = 5  # steps that a resumed module runs in parallel with the old one
COUNTED = ("pushed_rows", "zero_losses", "empty_batches", "bad_batches", "resumes", "densities")
COLUMNS = (
    *MACHINE_COLUMNS,
    *("steps", "seed", "settings", "rounds", *COUNTED, "seconds"),
    *("tensors_warm", "tensors_end", "objects_warm", "objects_end", "rss_mb_warm", "rss_mb_end"),
    *("allocated_warm", "allocated_end"),
)


def batch_of(rng: random.Random) -> tuple[dict, set[str]]:
    """Draws a batch, and returns what is wrong with it."""
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    size = rng.choice(((2, 5, 7), (1, 6, 6), (3, 1, 9), (50,), (13,), (1,), (1, 1, 1)))
    if rng.random() < 0.05:
        size = rng.choice(((0,), (0, 4, 4), (2, 0, 3)))
    dtype = rng.choice((torch.float32, torch.float32, torch.float64, torch.bfloat16))
    present = rng.sample(range(CLASSES), rng.randint(1, CLASSES))
    choice = torch.tensor([*present, 255] if rng.random() < 0.7 else present)
    labels = choice[torch.randint(len(choice), size, generator=generator)]
    shift = torch.randn(CLASSES + 1, FEATURE_DIM, generator=generator)  # separates the classes

    def maps(channels: int) -> Tensor:
        drawn = torch.randn(*size, channels, generator=generator)
        drawn = drawn + 2 * shift[labels.clamp(max=CLASSES), :channels]
        return drawn.movedim(-1, 1).to(dtype)

    batch = {
        "projections": maps(PROJECTION_DIM),
        "labels": labels.to(rng.choice((torch.int64, torch.uint8, torch.int16))),
        "features": maps(FEATURE_DIM),
        "confidence": torch.rand(size, generator=generator),
    }
    bad = set() if labels.numel() else {"empty_batches"}
    for name in ("projections", "features", "confidence"):
        if labels.numel() and rng.random() < 0.15:
            bad.add("bad_batches")
            flat = batch[name].view(-1) if name == "confidence" else batch[name].reshape(-1)
            for _ in range(rng.choice((1, 3, flat.numel()))):
                flat[rng.randrange(len(flat))] = rng.choice((torch.nan, torch.inf, -torch.inf))
            batch[name] = flat.view(batch[name].shape)
    return batch, bad


def step(module: DensityContrastLoss, batch: dict) -> tuple[Tensor, Tensor]:
    """Returns loss and gradient of a step."""
    projections = batch["projections"].clone().requires_grad_()
    value = module(**{**batch, "projections": projections})
    checks.check_loss(value, projections)
    return value.detach(), projections.grad


def checked_step(
    module: DensityContrastLoss, batch: dict, rng: random.Random, done: Counter
) -> tuple[Tensor, Tensor]:
    """Runs a step and checks it. Sometimes it also runs one in evaluation mode, which must not change anything."""
    before = checks.state(module)
    if rng.random() < 0.03:
        module.eval()
        step(module, batch)
        module.train()
        checks.same_state(checks.state(module), before, "a module in evaluation mode")
    result = step(module, batch)
    came = checks.arrivals(module, batch)
    checks.check_bank(module.bank, before, came, pushed=batch["labels"].numel() > 0)
    if batch["labels"].numel():
        sampled = rng.randrange(CLASSES)
        done["densities"] += checks.check_densities(module.bank, before, came, sampled)
    done["pushed_rows"] += int(came.sum())
    done["zero_losses"] += not bool(result[0])
    return result


def new_module(setting: dict, seed: int) -> DensityContrastLoss:
    return DensityContrastLoss(
        CLASSES, FEATURE_DIM, PROJECTION_DIM, **{**SMALL, **setting}, seed=seed
    )


def resume(setting: dict, file: Path) -> DensityContrastLoss:
    fresh = new_module(setting, seed=7)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


def run_setting(setting: dict, steps: int, rng: random.Random, folder: Path, done: Counter) -> None:
    """Trains a new module, with resumes."""
    module = new_module(setting, rng.getrandbits(60))
    resumed, left = None, 0
    for _ in range(steps):
        if resumed is None and rng.random() < 0.02:
            torch.save(module.state_dict(), folder / "state.pt")
            resumed, left = resume(setting, folder / "state.pt"), PARALLEL
            sums = module.bank.checksum(), resumed.bank.checksum()
            checks.expect(torch.equal(*sums), "a resumed bank must have the same checksum", *sums)
            done["resumes"] += 1
        batch, bad = batch_of(rng)
        done.update(bad)
        mine = checked_step(module, batch, rng, done)
        if resumed is None:
            continue
        theirs = step(resumed, batch)
        for name, a, b in zip(("loss", "gradient"), mine, theirs, strict=True):
            checks.expect(torch.equal(a, b), f"a resumed module must have the same {name}", a, b)
        checks.same_state(checks.state(module), checks.state(resumed), "a resumed module")
        left -= 1
        if not left:
            module, resumed = resumed, None


def soak(steps: int, seed: int, rounds: int = ROUNDS) -> dict:
    """Runs all settings in each round.

    Args:
        steps: number of steps in all.
        seed: of the batches.
        rounds: number of rounds. The first is the warm-up.

    Returns:
        The figures of the CSV row.

    Raises:
        Broken: an invariant does not hold.
    """
    rng, done, began = random.Random(seed), Counter(dict.fromkeys(COUNTED, 0)), time.perf_counter()
    turns = [setting for _ in range(rounds) for setting in SETTINGS]
    warm_turns = len(SETTINGS)
    steps_of = [steps * (n + 1) // len(turns) - steps * n // len(turns) for n in range(len(turns))]
    with tempfile.TemporaryDirectory() as folder:
        for n, setting in enumerate(turns):
            try:
                run_setting(setting, steps_of[n], rng, Path(folder), done)
            except checks.Broken as error:
                raise checks.Broken(f"round {n // warm_turns}, {setting}: {error}") from error
            if n + 1 == warm_turns:
                warm = checks.usage()
            passed = time.perf_counter() - began
            say(f"{sum(steps_of[: n + 1])}/{steps} steps, {passed:.0f} s, turn {n + 1}: {setting}")
    end = checks.usage()
    checks.check_memory(warm, end, sum(steps_of[warm_turns:]))
    figures = {"steps": steps, "seed": seed, "settings": len(SETTINGS), "rounds": rounds, **done}
    for name, usage in (("warm", warm), ("end", end)):
        figures |= {f"tensors_{name}": usage["tensors"], f"objects_{name}": usage["objects"]}
        figures[f"rss_mb_{name}"] = "" if usage["rss"] is None else round(usage["rss"] / 2**20, 2)
        figures[f"allocated_{name}"] = "" if usage["allocated"] is None else usage["allocated"]
    return figures | {"seconds": round(time.perf_counter() - began, 1)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.csv"))
    options = parser.parse_args(arguments)
    if options.steps < ROUNDS * len(SETTINGS):
        parser.error(f"--steps must be at least {ROUNDS * len(SETTINGS)}, got {options.steps}")
    torch.set_num_threads(1)  # enough for small shapes
    try:
        figures = soak(options.steps, options.seed)
    except checks.Broken as error:
        say(f"BROKEN, nothing was recorded: {error}")
        return 1
    for name, figure in figures.items():
        print(f"{name}: {figure}")
    row = machine(torch.device("cpu"), None) | figures
    append_rows(options.out, COLUMNS, [row])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
