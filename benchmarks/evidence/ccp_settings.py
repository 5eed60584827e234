"""The settings of the study of CCP: a frozen backbone for CPUs, and a larger, tuned one for a GPU."""

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


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        arm: one of ARMS.
        labelled: number of labelled images.
        seed: seed of the labelled images, weights and batches.
    """

    arm: str
    labelled: int
    seed: int

    @property
    def name(self) -> str:
        """The run's name in messages. Its checkpoint has the same name."""
        return f"{self.arm}, {self.labelled} labels, seed {self.seed}"


@dataclass(frozen=True)
class Setting:
    """A setting of the study, the same for all arms.

    Attributes:
        name: part of the default folders' names.
        base: settings of the arm with the density contrast. The other arms change them, see `changes`.
        crop: height and width of the training windows.
        scale: smallest and largest random magnification.
        network: arguments of PretrainedNetwork.
        saved_every: steps between checkpoints.
        most: largest number of images to evaluate in a split. None: all.
        workers: default number of runs at a time.
        seconds: default time budget. With a budget, the program times the steps and picks their number. None: no limit.
    """

    name: str = "frozen"
    base: Settings = BASE
    crop: tuple[int, int] = (160, 128)
    scale: tuple[float, float] = (0.5, 2.0)
    network: dict[str, Any] = field(default_factory=lambda: {"frozen": True})
    saved_every: int = 250
    most: int | None = None
    workers: int = 2
    seconds: float | None = None

    def changes(self, arm: str) -> dict[str, Any]:
        """Returns the settings in which an arm differs from `base`. All arms run the same code."""
        contrast = self.base.contrast | {"anchors": "random", "keys": "average"}
        return {
            SUPERVISED: {"warm_up": self.base.steps, "contrast_weight": 0.0},
            CONTROL: {"contrast_weight": 0.0},
            METHOD: {},
            RANDOM: {"contrast": contrast},
        }[arm]

    def settings(self, arm: str, seed: int, steps: int) -> Settings:
        """Returns a run's settings, with the warm-up scaled to the number of steps."""
        settings = replace(self.base, seed=seed, **self.changes(arm))
        return replace(settings, steps=steps, warm_up=settings.warm_up * steps // self.base.steps)

    def described(self, settings: Settings) -> str:
        """Returns as JSON: a run's settings that are not the defaults, and what differs from the frozen setting."""
        names = ("crop", "scale", "network", "most")
        values = {name: getattr(self, name) for name in names}
        changed = {n: value for n, value in values.items() if value != getattr(FROZEN, n)}
        text = described(settings)
        return text[:-1] + "," + json.dumps(changed, separators=(",", ":"))[1:] if changed else text


ARMS = (SUPERVISED, CONTROL, METHOD, RANDOM)
FROZEN = Setting()
# The backbone trains at a tenth of the head's learning rate, as in the tuned runs of run.py.
TUNED = Setting(
    name="tuned",
    base=replace(BASE, steps=3000, warm_up=600, batch=16, learning_rate=2e-4, head_factor=10.0),
    crop=(224, 160),
    network={"size": 2},
    saved_every=1000,
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
