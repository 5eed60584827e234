"""One file from which a run goes on, bit for bit. The first rank writes it, all ranks read it.

Weights, optimizer, gradient scaler and memory bank are equal on all ranks. What is a rank's own are the batch-norm
averages of its batches (on CUDA even these are equal): the file holds those of all ranks.
"""

import os
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor

from dgcl_ops._bank.exchange import gather, ranks_of
from semi_supervised import distributed
from semi_supervised.settings import Settings

NETWORKS = ("student", "teacher", "projection")
PARTS = (*NETWORKS, "contrast", "optimizer")
KINDS = dict.fromkeys((*PARTS, "averages", "run"), dict)
KINDS |= {"network": str, "ranks": int, "step": int, "history": list}


def save(trainer, path: Path) -> None:
    """Writes all that the next step depends on, the memory bank included; never half a file.

    All ranks have to call it. Once it returns, the file is there.

    Raises:
        RuntimeError: the ranks' banks are not equal.
    """
    if trainer.ranks > 1:
        trainer.contrast.bank.assert_synced()
    state = {name: getattr(trainer, name).state_dict() for name in PARTS}
    state["contrast"] = {name: whole(tensor) for name, tensor in state["contrast"].items()}
    state["averages"] = averages_of_ranks(trainer)
    state["scaler"] = trainer.scaler.state_dict()
    state |= {"run": description(trainer), "network": str(trainer.student), "ranks": trainer.ranks}
    state |= {"step": trainer.step, "history": trainer.history}
    if trainer.rank == 0:
        unfinished = path.with_suffix(".unfinished")
        with open(unfinished, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    distributed.barrier()


def load(trainer, path: Path) -> int:
    """Continues from a checkpoint of a run with the same settings and data. What does not fit changes nothing.

    At another number of ranks the first rank's batch-norm averages go to all.

    Returns:
        The number of ranks that wrote it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, or a setting, the network or the data differ.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    with open(path, "rb") as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # which, depends on where the file ends
            raise ValueError(
                f"{path} is no checkpoint of this program, or not all of one"
            ) from error
    check(trainer, state, path)
    try:  # the first: a bank looks at its rows, and takes all or nothing
        trainer.contrast.load_state_dict(state["contrast"])
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None
    for name in (*NETWORKS, "optimizer", "scaler"):
        getattr(trainer, name).load_state_dict(state[name])
    if state["ranks"] == trainer.ranks:
        for name, average in averages(trainer).items():
            average.copy_(state["averages"][name][trainer.rank])
    trainer.step, trainer.history = state["step"], state["history"]
    return state["ranks"]


def check(trainer, state, path: Path) -> None:
    """Raises ValueError unless the state fits the trainer; only the values in the bank are left to the bank."""
    found = state if isinstance(state, dict) else {}
    for name, kind in KINDS.items():
        if not isinstance(found.get(name), kind):
            raise ValueError(f"{path} is no checkpoint of this program: it has no {name!r}")
    stored, ours = state["run"], description(trainer)
    missing = [field.name for field in fields(Settings) if field.name not in stored]
    if missing:
        raise ValueError(
            f"{path} was written by an earlier version and cannot be resumed: it has no value for "
            f"{', '.join(missing)}"
        )
    for name in ours.keys() | stored.keys():
        if stored.get(name) != ours.get(name):
            raise ValueError(
                f"{name} must be {stored.get(name)!r} as in the checkpoint {path}, got {ours.get(name)!r}"
            )
    if not 0 <= state["step"] <= trainer.settings.steps:
        raise ValueError(
            f"{path} must hold a step in [0, {trainer.settings.steps}], got {state['step']}"
        )
    # Dilations and rates of dropout change no shape: the weights alone would fit.
    if state["network"] != str(trainer.student):
        raise ValueError(f"the network must be built like that of the checkpoint {path}")
    parts = {name: getattr(trainer, name).state_dict() for name in PARTS[:-1]}
    needed = {name: shapes(part) for name, part in parts.items()}
    needed["averages"] = {
        name: (dtype, (state["ranks"], *shape))
        for name, (dtype, shape) in shapes(averages(trainer)).items()
    }
    for part, ours in needed.items():
        theirs = shapes(state[part])
        for name in ours.keys() | theirs.keys():
            if ours.get(name) != theirs.get(name):
                raise ValueError(
                    f"{path} must hold {name} of {part} as {ours.get(name)}, got {theirs.get(name)}"
                )
    theirs, ours = state.get("scaler"), shapes(trainer.scaler.state_dict())
    if not isinstance(theirs, dict) or shapes(theirs) != ours:
        raise ValueError(f"{path} must hold the state of a gradient scaler as {ours}, got {theirs}")
    if not optimizer_fits(trainer.optimizer, state["optimizer"]):
        raise ValueError(f"{path} must hold the state of an optimizer of the same parameters")


def shapes(tensors: dict) -> dict:
    """Dtype and shape of each tensor; of what is none, its type."""
    return {
        name: (value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else type(value)
        for name, value in tensors.items()
    }


def optimizer_fits(optimizer, stored: dict) -> bool:
    """Whether groups and parameters are the same, and what is kept of each parameter is of its shape."""
    numbers = [group["params"] for group in optimizer.state_dict()["param_groups"]]
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    try:
        if [group["params"] for group in stored["param_groups"]] != numbers:
            return False
        return all(
            value.dim() == 0 or value.shape == parameters[number].shape
            for number, kept in stored["state"].items()
            for value in kept.values()
            if isinstance(value, Tensor)
        )
    except (LookupError, TypeError, AttributeError):
        return False


def description(trainer) -> dict:
    """What a run that goes on must find again."""
    return asdict(trainer.settings) | trainer.data.description()


def whole(tensor: Tensor) -> Tensor:
    """Of a sharded bank's rows, those of all ranks."""
    return tensor.full_tensor().cpu() if hasattr(tensor, "full_tensor") else tensor


def averages(trainer) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": buffer
        for part in NETWORKS
        for name, buffer in getattr(trainer, part).named_buffers()
        if buffer.is_floating_point()
    }


def averages_of_ranks(trainer) -> dict[str, Tensor]:
    """The same of all ranks: [W, ...]."""
    own = averages(trainer)
    rows = gather(ranks_of(None), torch.cat([each.flatten() for each in own.values()]))
    pieces = rows.split([each.numel() for each in own.values()], dim=1)
    return {
        name: piece.reshape(len(rows), *own[name].shape)
        for name, piece in zip(own, pieces, strict=True)
    }
