"""Configurations: flat YAML files.

A key is an argument of the data set or of the network, a field of `Settings`, or a field of `RunKeys`.
"""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import yaml
from torch import nn

from dgcl_ops import DensityContrastLoss
from semi_supervised import budget, methods
from semi_supervised.cityscapes import CityscapesData
from semi_supervised.deeplab import DeepLabV3Plus
from semi_supervised.deeplab_published import PublishedDeepLab
from semi_supervised.folder import FolderData
from semi_supervised.network import SegmentationNetwork
from semi_supervised.pretrained import PretrainedNetwork
from semi_supervised.scenes import DigitScenes
from semi_supervised.settings import SMALL, Settings, check_types, fits, refuse_unknown
from semi_supervised.voc import VocData

DATASETS = {
    "folder": FolderData,
    "voc": VocData,
    "cityscapes": CityscapesData,
    "scenes": DigitScenes,
}
NETWORKS = {
    "small": SegmentationNetwork,
    "efficientnet_lite0": PretrainedNetwork,
    "deeplabv3plus": DeepLabV3Plus,
    "deeplab_published": PublishedDeepLab,
}


@dataclass(frozen=True)
class RunKeys:
    """Keys that do not belong to the data, the network or the settings."""

    dataset: str  # one of DATASETS
    network: str  # one of NETWORKS
    # Instead of `steps`: {"steps": N} or {"passes": N}, see `budget.affordable`.
    budget: dict | None = None
    # Instead of `steps`. An epoch draws as many unlabelled images as there are.
    epochs: int | None = None
    warm_up_epochs: int | None = None  # instead of `warm_up`
    report_every: int = 50  # steps
    evaluate_every: int = 200
    # [800, 800]: compute mIoU and overlays in overlapping windows of this height and width. null: on whole images.
    # Features and densities are always measured on whole images.
    evaluate_window: tuple[int, int] | None = None
    save_every: int = 100
    workers: int = 0  # number of processes that read ahead

    def __post_init__(self):
        check_types(self)
        for name in ("epochs", "report_every", "evaluate_every", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.budget is not None:
            budget.check(self.budget)
        window = self.evaluate_window
        if window is not None and (len(window) != 2 or min(window) < 2):
            raise ValueError(
                f"evaluate_window must be a height and a width, each at least 2, got {list(window)}"
            )


class Config:
    """A checked configuration.

    Args:
        path: a YAML file. Its key `base` names another file, relative to its folder, whose keys it extends or changes.
        overrides: "key=value", or `contrast.temperature=0.1` for a key inside `contrast`. They override the file.
        given: keys with values. They override both. None leaves a key as it is.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key is unknown or missing, or a value does not fit.
    """

    def __init__(self, path: Path, overrides: Sequence[str] = (), **given: Any):
        self.values = read(Path(path))
        contrast = self.values.get("contrast")
        if contrast is None or (isinstance(contrast, dict) and "paper" not in contrast):
            self.values["contrast"] = SMALL | (contrast or {})
        overridden = set()
        for text in overrides:
            key, equals, value = text.partition("=")
            if not equals:
                raise ValueError(f"an override must be key=value, got {text!r}")
            outer, dot, inner = key.partition(".")
            overridden.add(outer)
            value = value_of(value)
            merge(self.values, {outer: {inner: value}} if dot else {key: value})
        merge(self.values, {key: value for key, value in given.items() if value is not None})
        for key, choices in (("dataset", DATASETS), ("network", NETWORKS)):
            if self.values.get(key) not in tuple(choices):
                raise ValueError(
                    f"{key} must be one of {', '.join(choices)}, got {self.values.get(key)!r}"
                )
        self.dataset = DATASETS[self.values["dataset"]]
        self.network = NETWORKS[self.values["network"]]
        method = self.values.get("method")
        method = {"name": "dgcl"} if method is None else method
        if not isinstance(method, dict):
            raise ValueError(
                f"method must hold keys with values, got {method!r}; write method.name={method}"
            )
        self.method, _ = methods.choose(method)
        self.method_name = method["name"]
        self._check_keys()
        for key in sorted(overridden):
            self.check_use(key)
        self.run = checked(RunKeys, self._of(field.name for field in fields(RunKeys)))

    def _check_keys(self) -> None:
        needed, optional = keywords(self.dataset)
        needed -= {"seed"}
        known = needed | optional | keywords(self.network)[1]
        known |= {field.name for kind in (RunKeys, Settings) for field in fields(kind)}
        where = f"dataset {self.values['dataset']} and network {self.values['network']}"
        given = {key for key, value in self.values.items() if value is not None}
        for key in sorted(self._options() & given - known):
            raise ValueError(
                f"{key} is an option of method {self.method_name}, not a key; write method.{key}"
            )
        refuse_unknown(given, known, where)
        contrast = self.values.get("contrast") or {}
        if not isinstance(contrast, dict):
            raise ValueError(f"contrast must hold keys with values, got {contrast!r}")
        refuse_unknown(contrast, contrast_keywords(), "contrast")
        for key in sorted(needed - self.values.keys()):
            raise ValueError(f"dataset {self.values['dataset']} needs the key {key}")
        for key, kind in (types_of(self.network) | types_of(self.dataset)).items():
            if key in self.values and key != "seed" and not fits(self.values[key], kind):
                name = getattr(kind, "__name__", kind) if get_origin(kind) is None else kind
                raise ValueError(f"{key} must be of type {name}, got {self.values[key]!r}")

    def check_use(self, key: str) -> None:
        """Raises ValueError for a key that other methods use, but not this one."""
        users = [name for name, kind in methods.METHODS.items() if key in kind.keys]
        if users and key not in self.method.keys:
            own = f"; write method.{key}" if key in self._options() else ""
            raise ValueError(
                f"{key} is a key of method {' and '.join(users)}, and method {self.method_name} does not use it{own}"
            )

    def _options(self) -> set[str]:
        return {field.name for field in fields(self.method.Options)}

    def _of(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: self.values[name] for name in names if name in self.values}

    def make_data(self, seed: int) -> Any:
        """Builds the data set."""
        needed, optional = keywords(self.dataset)
        return self.dataset(**self._of(needed | optional) | {"seed": seed})

    def make_network(self, num_classes: int) -> nn.Module:
        """Builds the network."""
        return self.network(num_classes, **self._of(keywords(self.network)[1]))

    def make_settings(self, unlabelled: int, ranks: int, **changes: Any) -> Settings:
        """Builds the settings, with epochs converted into steps.

        Args:
            unlabelled: number of unlabelled images.
            ranks: number of processes.
            changes: settings that override the configuration.

        Raises:
            ValueError: If a value does not fit, or two keys exclude each other.
        """
        chosen = self._of(field.name for field in fields(Settings))
        chosen = {key: value for key, value in chosen.items() if value is not None} | changes
        settings = checked(Settings, chosen)
        if self.run.budget is not None:
            for name in ("steps", "epochs"):
                if self.values.get(name) is not None:
                    raise ValueError(
                        f"{name} and budget exclude each other, got {name}={self.values[name]}; "
                        f"{name}=null removes the key of the file"
                    )
            settings = budget.affordable(settings, self.run.budget, "warm_up" in chosen)
        if min(settings.steps, settings.batch) < 1:
            raise ValueError(
                f"steps and batch must be at least 1, got {settings.steps} and {settings.batch}"
            )
        if self.run.epochs is not None:
            replaced = {"steps": "epochs", "warm_up": "warm_up_epochs", "epoch_steps": "epochs"}
            for name, other in replaced.items():
                if name in chosen:
                    raise ValueError(
                        f"{name} and {other} exclude each other, got {name}={chosen[name]}; "
                        "epochs=null warm_up_epochs=null removes the keys of the file"
                    )
            epoch = max(1, unlabelled // (settings.batch * ranks))
            warm_up = (self.run.warm_up_epochs or 0) * epoch
            steps = self.run.epochs * epoch
            settings = replace(settings, steps=steps, warm_up=warm_up, epoch_steps=epoch)
        elif self.run.warm_up_epochs is not None:
            raise ValueError(f"warm_up_epochs needs epochs, got only {self.run.warm_up_epochs}")
        elif "warm_up" not in chosen:
            settings = replace(settings, warm_up=settings.steps // 3)
        if not 0 <= settings.warm_up <= settings.steps:
            raise ValueError(f"warm_up must lie in [0, {settings.steps}], got {settings.warm_up}")
        return settings


def checked(kind: type, values: dict[str, Any]) -> Any:
    """Builds a dataclass. A value of the wrong type raises ValueError."""
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(str(error)) from None


def contrast_keywords() -> set[str]:
    """Returns the loss's arguments, except those that data, settings and trainer determine."""
    fixed = {"self", "num_classes", "feature_dim", "projection_dim", "bank", "device"}
    fixed.add("process_group")
    return {"paper", *inspect.signature(DensityContrastLoss.__init__).parameters} - fixed


def read(path: Path, above: tuple[Path, ...] = ()) -> dict:
    """Reads the keys of a file and of its bases. `above` holds the files that are based on it."""
    if path.resolve() in above:
        raise ValueError(f"{path} must not be its own base")
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration {path}")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"cannot read {path} as YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold keys with values, got {type(values).__name__}")
    base = values.pop("base", None)
    words = [*values] if base is None else [*values, base]
    for text in words:  # YAML reads `on` as true and 1 as a number
        if not isinstance(text, str):
            raise ValueError(f"keys and base of {path} must be strings, got {text!r}")
    if base is None:
        return values
    return merge(read(path.parent / base, (*above, path.resolve())), values)


def merge(values: dict, changes: dict) -> dict:
    """Updates `values` in place. Mappings are merged key by key."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            merge(values[key], value)
        else:
            values[key] = value
    return values


def value_of(text: str) -> Any:
    """Parses a value as YAML does, but 1e-3 is a number."""
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    except yaml.YAMLError:
        raise ValueError(f"cannot read the value {text!r} as YAML") from None


def keywords(kind: type) -> tuple[set[str], set[str]]:
    """Returns the required and the optional arguments of a class, including those of its bases."""
    needed, optional = set(), set()
    for one in kind.__mro__:
        if one in (object, nn.Module):
            break
        for name, parameter in inspect.signature(one.__init__).parameters.items():
            if name == "self" or parameter.kind is parameter.VAR_KEYWORD:
                continue
            (needed if parameter.default is parameter.empty else optional).add(name)
    return needed - optional, optional


def types_of(kind: type) -> dict[str, Any]:
    """Returns the declared types of a class's arguments, including those of its bases."""
    hints = {}
    for one in reversed(kind.__mro__):
        if one not in (object, nn.Module) and "__init__" in vars(one):
            hints |= get_type_hints(one.__init__)
    return hints
