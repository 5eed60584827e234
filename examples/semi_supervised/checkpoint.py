"""A checkpoint from which a run continues bit for bit. The first rank writes it, all ranks read it.

Weights, optimizer, gradient scaler and memory bank are equal on all ranks. Without CUDA each rank has its own
batch-norm averages. The file holds the averages of all ranks.
"""

import math
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dgcl_ops import MemoryBank
from semi_supervised import distributed
from semi_supervised.settings import Settings

if TYPE_CHECKING:
    from semi_supervised.trainer import Trainer

# The entries of every method. DGCL adds "projection" and "contrast", CPS adds "second", GTA-Seg adds "assistant" and
# "assistant_optimizer".
KINDS = dict.fromkeys(("student", "teacher", "optimizer", "averages", "run"), dict)
KINDS |= {"network": str, "ranks": int, "step": int, "history": list}
# Keys of a run that earlier versions did not write, and what they did.
EARLIER = {"method": {"name": "dgcl"}}


def networks(trainer: "Trainer") -> dict[str, nn.Module]:
    """Returns the run's networks and moving averages by their name in the checkpoint."""
    return {"student": trainer.student, "teacher": trainer.teacher, **trainer.method.networks}


def parts(trainer: "Trainer") -> dict[str, nn.Module]:
    """Returns the networks, and the other state of the method, such as its bank."""
    return networks(trainer) | trainer.method.state


def banks(trainer: "Trainer") -> list[MemoryBank]:
    """Returns the method's banks."""
    modules = (module for part in trainer.method.state.values() for module in part.modules())
    return [module for module in modules if isinstance(module, MemoryBank)]


def optimizers(trainer: "Trainer") -> dict[str, torch.optim.Optimizer]:
    """Returns the run's optimizers by their name in the checkpoint."""
    further = trainer.method.optimizers.items()
    return {"optimizer": trainer.optimizer} | {f"{name}_optimizer": each for name, each in further}


def save(trainer: "Trainer", path: Path) -> None:
    """Writes everything that the next step depends on, including the memory bank.

    All ranks must call it. An interrupted call leaves the previous file.

    Args:
        trainer: the run.
        path: the file.

    Raises:
        RuntimeError: If the ranks' banks differ.
    """
    if trainer.ranks > 1:
        for bank in banks(trainer):
            bank.assert_synced()
    state = {
        part: {name: whole(tensor) for name, tensor in module.state_dict().items()}
        for part, module in parts(trainer).items()
    }
    state |= {name: each.state_dict() for name, each in optimizers(trainer).items()}
    state["scaler"] = trainer.scaler.state_dict()
    state["averages"] = averages_of_ranks(trainer)
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


def load(trainer: "Trainer", path: Path) -> int:
    """Continues from a checkpoint of a run with the same settings and data.

    A checkpoint that does not match is refused, and nothing changes. With another number of ranks, all ranks take the
    first rank's batch-norm averages.

    Args:
        trainer: the run.
        path: the file.

    Returns:
        The number of ranks that wrote the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a checkpoint, is damaged, or has other settings, network or data.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    with open(path, "rb") as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # its type depends on where the file ends
            raise ValueError(
                f"{path} is not a checkpoint of this program, or is incomplete"
            ) from error
    check(trainer, state, path)
    for name, module in trainer.method.state.items():
        try:  # first, since a bank checks its rows and then takes all or nothing
            module.load_state_dict(state[name])
        except RuntimeError as error:
            raise ValueError(f"{path}: {error}") from None
    for name, network in networks(trainer).items():
        network.load_state_dict(state[name])
    for name, each in optimizers(trainer).items():
        each.load_state_dict(state[name])
    trainer.scaler.load_state_dict(state["scaler"])
    if state["ranks"] == trainer.ranks:
        for name, average in averages(trainer).items():
            average.copy_(state["averages"][name][trainer.rank])
    trainer.step, trainer.history = state["step"], state["history"]
    return state["ranks"]


def check(trainer: "Trainer", state: Any, path: Path) -> None:
    """Raises ValueError unless the state fits the trainer. The bank checks its own values."""
    check_entries(state, KINDS, path)
    stored, ours = EARLIER | state["run"], description(trainer)
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
    check_entries(state, dict.fromkeys(parts(trainer) | optimizers(trainer), dict), path)
    # Dilations and dropout rates do not change shapes, so the weights alone would fit.
    if state["network"] != str(trainer.student):
        raise ValueError(f"the network must have the structure of the one in {path}")
    needed = {name: shapes(part.state_dict()) for name, part in parts(trainer).items()}
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
    check_scaler(theirs, path)
    for name, each in optimizers(trainer).items():
        if not optimizer_fits(each, state[name]):
            raise ValueError(
                f"{path} must hold as {name!r} the state of an optimizer of the same parameters"
            )


def check_entries(state: Any, kinds: dict[str, type], path: Path) -> None:
    """Raises ValueError unless the state has these entries."""
    entries = state if isinstance(state, dict) else {}
    for name, kind in kinds.items():
        if not isinstance(entries.get(name), kind):
            raise ValueError(f"{path} is not a checkpoint of this program: it has no {name!r}")


def check_scaler(scaler: dict, path: Path) -> None:
    """Raises ValueError if a gradient scaler's state holds a number that it cannot train with."""
    for key, value in scaler.items():
        least = 0 if key == "_growth_tracker" else math.ulp(0.0)
        if not least <= value < math.inf:  # NaN too
            rule = "finite and not negative" if least == 0 else "finite and positive"
            raise ValueError(f"{path}: {key} of the gradient scaler must be {rule}, got {value}")


def shapes(tensors: dict) -> dict:
    """Returns dtype and shape of each tensor, and the type of any other value."""
    return {
        name: (value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else type(value)
        for name, value in tensors.items()
    }


def optimizer_fits(optimizer: torch.optim.Optimizer, stored: dict) -> bool:
    """Returns whether a stored state has the same groups and parameters, and moments of the right shapes."""
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


def description(trainer: "Trainer") -> dict:
    """Returns what must not change between save and resume."""
    method = {"name": trainer.settings.method["name"], **asdict(trainer.method.options)}
    return asdict(trainer.settings) | trainer.data.description() | {"method": method}


def whole(tensor: Tensor) -> Tensor:
    """Returns the rows of all ranks if the tensor is sharded."""
    return tensor.full_tensor().cpu() if hasattr(tensor, "full_tensor") else tensor


def averages(trainer: "Trainer") -> dict[str, Tensor]:
    """Returns the batch-norm averages of this rank."""
    return {
        f"{part}.{name}": buffer
        for part, network in networks(trainer).items()
        for name, buffer in network.named_buffers()
        if buffer.is_floating_point()
    }


def averages_of_ranks(trainer: "Trainer") -> dict[str, Tensor]:
    """Returns the batch-norm averages of all ranks, [world size, ...]."""
    own = averages(trainer)
    rows = distributed.gather(torch.cat([each.flatten() for each in own.values()]))
    pieces = rows.split([each.numel() for each in own.values()], dim=1)
    return {
        name: piece.reshape(len(rows), *own[name].shape)
        for name, piece in zip(own, pieces, strict=True)
    }
