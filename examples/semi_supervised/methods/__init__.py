"""The methods of semi-supervised training, one file each."""

from dataclasses import fields
from typing import Any

from semi_supervised.methods.augseg import AugSeg
from semi_supervised.methods.base import Method
from semi_supervised.methods.cct import CCT
from semi_supervised.methods.cps import CPS
from semi_supervised.methods.cutmix_seg import CutMixSeg
from semi_supervised.methods.density_step import DensityStep
from semi_supervised.methods.dgcl import DGCL
from semi_supervised.methods.fixmatch import FixMatch
from semi_supervised.methods.gct import GCT
from semi_supervised.methods.gta_seg import GTASeg
from semi_supervised.methods.mean_teacher import MeanTeacher
from semi_supervised.methods.pcr import PCR
from semi_supervised.methods.ps_mt import PSMT
from semi_supervised.methods.reco import ReCo
from semi_supervised.methods.self_training import SelfTraining
from semi_supervised.methods.supervised import Supervised
from semi_supervised.methods.u2pl import U2PL
from semi_supervised.methods.unimatch import UniMatch
from semi_supervised.methods.unimatch_v2 import UniMatchV2
from semi_supervised.settings import Settings, refuse_unknown

METHODS: dict[str, type[Method]] = {
    # The systems of the paper's tables, and self-training: DGCL without its contrast.
    "supervised": Supervised,
    "self_training": SelfTraining,
    "mean_teacher": MeanTeacher,
    "cutmix_seg": CutMixSeg,
    "cct": CCT,
    "gct": GCT,
    "cps": CPS,
    "u2pl": U2PL,
    "ps_mt": PSMT,
    "pcr": PCR,
    "gta_seg": GTASeg,
    "dgcl": DGCL,
    # Others.
    "fixmatch": FixMatch,
    "unimatch": UniMatch,
    "unimatch_v2": UniMatchV2,
    "augseg": AugSeg,
    "reco": ReCo,
    "density_step": DensityStep,
}


def choose(values: dict) -> tuple[type[Method], Any]:
    """Returns a method and its options.

    Args:
        values: its name, and options that differ from the defaults.

    Raises:
        ValueError: If the name or an option is unknown, or a value does not fit.
    """
    given = dict(values)
    name = given.pop("name", None)
    if name not in tuple(METHODS):
        raise ValueError(f"method.name must be one of {', '.join(METHODS)}, got {name!r}")
    kind = METHODS[name]
    refuse_unknown(given, {each.name for each in fields(kind.Options)}, f"method {name}")
    try:
        return kind, kind.Options(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"method {name}: {error}") from None


def passes_of(settings: Settings) -> int:
    """Returns the cost of a whole run, in forward passes of a labelled batch, see `Passes`."""
    kind, options = choose(settings.method)
    warm_up = min(settings.warm_up, settings.steps)
    rest = settings.steps - warm_up
    return warm_up * kind.warm_up_passes.units + rest * kind.passes(settings, options).units
