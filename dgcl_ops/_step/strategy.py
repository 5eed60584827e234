"""How a step chooses its rows."""

from dataclasses import dataclass
from typing import Literal, get_args

from dgcl_ops.ops import _arguments

Anchors = Literal["low_density", "random", "low_confidence"]
Keys = Literal["high_density", "average", "high_confidence"]
Start = Literal["per_class", "all_full"]


@dataclass(frozen=True)
class Strategy:
    """How to choose. The fields are the arguments of DensityContrastLoss of the same names."""

    num_anchors: int
    num_keys: int
    num_negatives: int
    max_candidates: int
    anchors: Anchors
    keys: Keys
    start: Start
    disjoint: bool
    normalize_keys: bool
    ignore_index: int

    def __post_init__(self) -> None:
        op = "DensityContrastLoss"
        for name in ("num_anchors", "num_keys", "num_negatives", "max_candidates"):
            _arguments.positive_integer(op, name, getattr(self, name))
        _arguments.one_of(op, "anchors", self.anchors, get_args(Anchors))
        _arguments.one_of(op, "keys", self.keys, get_args(Keys))
        _arguments.one_of(op, "start", self.start, get_args(Start))
        _arguments.integral(op, "ignore_index", self.ignore_index)
        if self.disjoint and self.keys == "average":
            raise ValueError(
                f"{op}: disjoint=True is not supported with keys='average': that mean includes the anchors"
            )

    @property
    def by_density(self) -> bool:
        return self.anchors == "low_density" or self.keys == "high_density"

    @property
    def by_confidence(self) -> bool:
        return self.anchors == "low_confidence" or self.keys == "high_confidence"
