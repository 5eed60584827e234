"""Counts how often a batch's maps move between files of the package in one step of the loss: python tests/loss/hops.py

A room is a file of the package. A stay begins when a function in another room is called with the map's data among its
arguments, or when control returns to a room that still holds the data. Operators are listed separately: like functions
of PyTorch, they do not end a stay. The number of channels identifies the data, since it is unique here. Rows read from
a map count like the map.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch

import dgcl_ops
from dgcl_ops import DensityContrastLoss

PACKAGE = str(Path(dgcl_ops.__file__).parent)
CLASSES, FEATURES, PROJECTIONS = 3, 11, 13


class Way(NamedTuple):
    """The path of a map through one call."""

    rooms: list[str]  # in the order of the stays
    operators: list[str]  # in the order of the calls


def holds(value, channels: int) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_floating_point() and channels in value.shape
    return isinstance(value, tuple | list) and any(holds(each, channels) for each in value)


def from_package(frame) -> bool:
    """Whether the package made this call, or it is the first call from outside."""
    caller = frame.f_back
    while caller.f_code.co_filename.endswith(
        "_contextlib.py"
    ):  # a decorator, such as torch.no_grad
        caller = caller.f_back
    name = caller.f_code.co_filename
    return name.startswith(PACKAGE) or f"{Path('torch', 'nn', 'modules')}" in name


def way_through(call, channels: int) -> Way:
    way, held = Way([], []), []

    def enter(frame, called: bool):
        room = Path(frame.f_code.co_filename).relative_to(PACKAGE)
        if room.parent.name == "ops":
            if called and frame.f_code.co_name == room.stem:
                way.operators.append(room.stem)
        elif not way.rooms or way.rooms[-1] != str(room):
            way.rooms.append(str(room))

    def profile(frame, event, _):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return
        if not from_package(frame):
            return  # PyTorch's dispatcher calls back
        if event == "call":
            inside = any(holds(value, channels) for value in frame.f_locals.values())
            held.append((inside, frame))
            if inside:
                enter(frame, called=True)
        elif event == "return" and held:
            held.pop()
            if held and held[-1][0]:
                enter(held[-1][1], called=False)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return way


def of_a_step(channels: int) -> Way:
    """One training step of a full bank, without its backward."""
    torch.manual_seed(0)
    loss = DensityContrastLoss(
        CLASSES, FEATURES, PROJECTIONS, bank_capacity=64, rows_per_push=32, scales=(2,), seed=0
    )

    def batch():
        labels = torch.randint(0, CLASSES, (2, 9, 8))
        return torch.randn(2, PROJECTIONS, 9, 8), labels, torch.randn(2, FEATURES, 9, 8)

    for _ in range(3):
        loss(*batch())
    arguments = batch()
    return way_through(lambda: loss(*arguments), channels)


if __name__ == "__main__":
    for name, channels in (("projections", PROJECTIONS), ("features", FEATURES)):
        way = of_a_step(channels)
        print(f"{name}: {len(way.rooms)} stays in {len(set(way.rooms))} rooms")
        print("  " + " > ".join(way.rooms))
        print(f"  {len(way.operators)} calls of operators: " + ", ".join(way.operators))
