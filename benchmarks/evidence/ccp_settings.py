"""The settings of the study on CCP: a frozen backbone for CPUs, and a tuned, larger one for a GPU."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

from semi_supervised.settings import Settings

from evidence.compare import CONTROL, METHOD, RANDOM, SUPERVISED
from evidence.run import described

CLASSES = (
    *("background", "skin", "hair", "top", "outerwear", "dress", "skirt", "trousers"),
    *("shorts", "legwear", "shoes", "bag", "hat", "scarf"),
)
CONTRAST = {
    "exclude_classes": (0,),
    "temperature": 0.5,
    "bank_capacity": 4096,
    "rows_per_push": 256,
    "scales": (3, 6, 13),  # the published 8, 16 and 32 of 10,000 rows
    "max_candidates": 4096,
    "num_anchors": 256,
    "num_keys": 32,
    "num_negatives": 512,
}
BASE = Settings(
    steps=2000,
    warm_up=400,
    batch=4,
    learning_rate=2e-3,
    ema_maximum=0.996,
    teacher_mode="eval",
    cutmix=1.0,
    balance=0.5,
    precision="bfloat16",
    contrast_view="weak",
    projection_dim=64,
    contrast=CONTRAST,
)


# What each arm changes, of the settings and of their `contrast`. All arms run the same code.
ARMS: dict[str, dict[str, Any]] = {
    SUPERVISED: {"contrast_weight": 0.0},  # and all steps belong to the warm-up
    CONTROL: {"contrast_weight": 0.0},
    METHOD: {},
    RANDOM: {"contrast": {"anchors": "random", "keys": "average"}},
}


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        arm: one of ARMS.
        labelled: number of labelled images.
        seed: of the labelled images, weights and batches.
    """

    arm: str
    labelled: int
    seed: int

    @property
    def name(self) -> str:
        """The name in messages and of the checkpoint."""
        return f"{self.arm}, {self.labelled} labels, seed {self.seed}"


@dataclass(frozen=True)
class Setting:
    """A setting of the study, the same for all arms.

    Attributes:
        name: of --setting.
        base: settings of the density contrast. The other arms change them, see ARMS.
        crop: height and width of the training windows.
        scale: limits of the magnification.
        network: arguments of PretrainedNetwork.
        saved_every: steps between checkpoints.
        tested: whether a run reads the test images at its end, since its checkpoint does not outlive the machine.
        most: evaluated images of a split, at most. None: all.
        workers: default number of runs at a time.
        seconds: default time budget. A setting with a budget measures the time of a step, and then fixes the number of
            steps. None: no limit.
    """

    name: str = "frozen"
    base: Settings = BASE
    crop: tuple[int, int] = (160, 128)
    scale: tuple[float, float] = (0.5, 2.0)
    network: dict[str, Any] = field(default_factory=lambda: {"frozen": True})
    saved_every: int = 250
    tested: bool = False
    most: int | None = None
    workers: int = 2
    seconds: float | None = None

    def settings(self, arm: str, seed: int, steps: int) -> Settings:
        """Returns a run's settings. The warm-up is scaled to the number of steps, and is all of a supervised run."""
        changes = dict(ARMS[arm])
        contrast = self.base.contrast | changes.pop("contrast", {})
        warm_up = steps if arm == SUPERVISED else self.base.warm_up * steps // self.base.steps
        fixed = {"seed": seed, "steps": steps, "warm_up": warm_up, "contrast": contrast}
        return replace(self.base, **fixed, **changes)

    def described(self, settings: Settings) -> str:
        """Returns the settings of a run that differ from the defaults, and from the frozen setting, as JSON."""
        names = ("crop", "scale", "network", "most")
        values = {name: getattr(self, name) for name in names}
        changed = {n: value for n, value in values.items() if value != getattr(FROZEN, n)}
        text = described(settings)
        return text[:-1] + "," + json.dumps(changed, separators=(",", ":"))[1:] if changed else text


FROZEN = Setting()
# The backbone trains at a tenth of the head's learning rate, as in the tuned runs of run.py.
TUNED = Setting(
    name="tuned",
    base=replace(BASE, steps=3000, warm_up=600, batch=16, learning_rate=2e-4, head_factor=10.0),
    crop=(224, 160),
    network={"size": 2},
    saved_every=1000,
    tested=True,
    workers=5,
    seconds=560.0,
)
# The same program within minutes on a CPU. Its results mean nothing.
REHEARSAL = replace(
    TUNED,
    name="rehearsal",
    base=replace(TUNED.base, steps=20, warm_up=4, batch=4),
    saved_every=5,
    most=10,
    workers=1,
    seconds=3600.0,
)
SETTINGS = {each.name: each for each in (FROZEN, TUNED, REHEARSAL)}
