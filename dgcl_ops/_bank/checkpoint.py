"""The state of a memory bank: its checksum, and loading it at another capacity, dtype or number of ranks.

A bank is loaded completely or not at all. Everything is checked before anything is written, so a state that does not
fit changes no buffer. The exception is torch.distributed.checkpoint: it writes into the buffers first, so a mismatch is
detected only afterwards.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops._bank import buffers, exchange
from dgcl_ops._bank.buffers import ROWS, is_shard
from dgcl_ops.ops import _arguments

if TYPE_CHECKING:
    from dgcl_ops.memory import MemoryBank

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
NAMES = (*ROWS, "counts", "heads", "num_pushes", "rng_state", "config")
OLD_NAMES = {"num_pushes": "pushes", "config": "meaning"}  # their names in old checkpoints


def checksum(bank: MemoryBank) -> Tensor:
    """See MemoryBank.checksum: a sum of hashes of (word, place in the whole bank), so shards add up."""
    total = torch.zeros((), dtype=torch.int64, device=bank.counts.device)
    # The words are widened to int64 in pieces. On a CPU, a piece fits into the cache.
    piece = 1 << (15 if total.device.type == "cpu" else 22)
    at = 0
    for name in (*ROWS, "counts", "heads"):
        buffer = getattr(bank, name)
        narrow = torch.int16 if buffer.element_size() == 2 else torch.int32
        words = buffer.view(narrow).view(bank.num_classes, -1)
        start, of_class = 0, words.shape[1]  # this rank's part of a class's words
        if name in ROWS:
            slot = of_class // bank.rings.length
            start, of_class = bank.rings.start * slot, bank.capacity * slot
        elif bank.rings.start > 0:  # the same on all ranks: counted once, on rank 0
            words = words[:, :0]
        for c, row in enumerate(words):
            first = at + c * of_class + start
            for part in row.split(piece):
                place = torch.arange(first, first + part.numel(), device=part.device)
                word = part.to(torch.int64) & 0xFFFFFFFF
                # 32-bit hashes: the sum holds 2^31 of them without overflow.
                total = total + reference.mix(word ^ reference.mix(place & 0xFFFFFFFF)).sum()
                first += part.numel()
        at += bank.num_classes * of_class
    return exchange.all_gather(bank.rings.ranks, total).sum(0)


def config(
    metric: str,
    dtype: torch.dtype,
    scales: tuple[int, ...],
    device: torch.device | str | None = None,
) -> Tensor:
    """[2 + scales] int64: metric, dtype and scales.

    Stored so that loading into a bank with another metric, dtype or scales is detected.
    """
    code = [_arguments.METRICS.index(metric), DTYPES.index(dtype), *scales]
    return torch.tensor(code, device=device)


def settings(bank: MemoryBank) -> dict[str, Tensor]:
    """Settings that must be equal on all ranks, each [] int64."""
    values = {
        "num_classes": bank.num_classes,
        "feature_dim": bank.feature_dim,
        "projection_dim": bank.projection_dim,
        "capacity": bank.capacity,
        "rows_per_push": bank.rows_per_push,
        "exchange_dtype": DTYPES.index(bank.exchange_dtype),
        "min_rows": bank.min_rows,
        "refresh_every": bank.refresh_every,
        "backfill": int(bank.backfill),
        "number of scales": len(bank.scales),
    }
    device = bank.counts.device
    scalars = {name: torch.tensor(value, device=device) for name, value in values.items()}
    return {**scalars, "config": bank.config}


def read(
    bank: MemoryBank,
    state_dict: dict[str, Any],
    prefix: str,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> dict[str, Tensor] | None:
    """The stored bank, adapted to this one, with its keys in `state_dict`. None if it does not fit.

    Appends the reasons to the lists, as `torch.nn.Module._load_from_state_dict` does.
    """
    keys = {name: prefix + name for name in NAMES}
    for name, old in OLD_NAMES.items():
        if keys[name] not in state_dict and prefix + old in state_dict:
            keys[name] = prefix + old
    absent = [prefix + name for name, key in keys.items() if key not in state_dict]
    known = set(keys.values())
    foreign = [key for key in state_dict if key.startswith(prefix) and key not in known]
    missing += absent
    if strict:
        unexpected += foreign
    if (
        foreign and not absent
    ):  # PyTorch passes strict=True in any case, so this raises also for strict=False
        errors.append(f"MemoryBank: a stored bank must have no keys but its own, got {foreign}")
    if absent or foreign:
        return None
    stored = {name: state_dict[key] for name, key in keys.items()}
    problems = _wrong_kind(bank, stored)
    if not problems and buffers.averaged(stored["features"], int(stored["config"][0])):
        text = (
            "the stored rows are averages over steps, not unit rows (AveragedModel with use_buffers=True, or an "
            "average of a state_dict). An average of banks is not a bank"
        )
        if not is_shard(stored["features"]):
            warnings.warn(
                f"MemoryBank: {text}. It was not loaded, and this bank keeps its own rows; load the student's state, "
                "or keep the loss outside the averaged model",
                stacklevel=2,
            )
            return None
        problems = [f"{text}; load the student's state"]
    problems = problems or _wrong_values(bank, stored)
    errors += [f"MemoryBank: {problem}" for problem in problems]
    if problems:
        return None
    return {prefix + name: value for name, value in _adapted(bank, stored).items()}


def _adapted(bank: MemoryBank, stored: dict[str, Any]) -> dict[str, Tensor]:
    """The stored bank at this bank's capacity, dtype and shard."""
    theirs = stored["config"].tolist()
    ours = config(bank.metric, bank.dtype, bank.scales, stored["config"].device)
    adapted = {**stored, "config": ours}
    if is_shard(stored["features"]):
        adapted.update((name, stored[name].to_local()) for name in ROWS)
    elif not bank.rings.whole or stored["features"].shape[1] != bank.capacity:
        adapted.update(_moved(bank, stored))
    # Rows cast outside the bank have a dtype that differs from the stored config.
    cast = any(adapted[name].dtype != bank._row_dtype(name) for name in ROWS)
    if cast or theirs[1] != ours[1]:
        adapted.update(buffers.converted(bank, adapted))
    return adapted


def _wrong_kind(bank: MemoryBank, stored: dict[str, Any]) -> list[str]:
    """The problems with types, shapes and dtypes."""
    wrong = []
    for name, value in stored.items():
        if not isinstance(value, Tensor):
            wrong.append(f"the stored {name} must be a torch.Tensor, got {type(value).__name__}")
    if wrong:
        return wrong
    classes, slots = bank.num_classes, stored["density"].shape[1:2] or (bank.capacity,)
    shapes = {
        "features": (classes, *slots, bank.feature_dim),
        "projections": (classes, *slots, bank.projection_dim),
        "density": (classes, *slots),
        "counts": (classes,),
        "heads": (classes,),
        "num_pushes": (),
        "rng_state": (2,),
        "config": (2 + len(bank.scales),),
    }
    for name, value in stored.items():
        if name in ROWS and value.dtype not in DTYPES:
            wrong.append(
                f"the stored {name} must have one of the dtypes {DTYPES}, got {value.dtype}"
            )
        if name not in ROWS and value.dtype != torch.int64:
            wrong.append(f"the stored {name} must have dtype torch.int64, got {value.dtype}")
        # A config of another length has other scales: that is reported with the values.
        fits = (
            value.dim() == 1 and len(value) >= 3
            if name == "config"
            else value.shape == shapes[name]
        )
        if not fits:
            wrong.append(
                f"the stored {name} must have shape {list(shapes[name])}, got {list(value.shape)}"
            )
    shards = [is_shard(stored[name]) for name in ROWS]
    if any(shards) and not (all(shards) and _own_shard(bank, stored)):
        wrong.append(
            f"the stored rows are DTensors that do not match this rank's shard (shape "
            f"{list(stored['features'].shape)}, stored by rank {_owner(stored['features'])}, loaded on rank "
            f"{bank._ranks().rank}); load them with torch.distributed.checkpoint, or save with full_state_dict=True"
        )
    return wrong


def _owner(tensor: Any) -> int | None:
    """The rank that stored a shard, even if torch.load has read another rank's file."""
    place = tensor.device_mesh.get_coordinate() if is_shard(tensor) else None
    return place[0] if place else None


def _own_shard(bank: MemoryBank, stored: dict[str, Any]) -> bool:
    ours = [bank.features, bank.projections, bank.density]
    theirs = [stored[name] for name in ROWS]
    if bank.rings.whole or stored["density"].shape[1] != bank.capacity:
        return False
    return all(
        t.to_local().shape == o.shape and _owner(t) == bank.rings.ranks.rank
        for t, o in zip(theirs, ours, strict=True)
    )


def _wrong_values(bank: MemoryBank, stored: dict[str, Any]) -> list[str]:
    """The problems with config, counts and heads."""
    code, dtype, *scales = stored["config"].tolist()
    if not (0 <= code < len(_arguments.METRICS) and 0 <= dtype < len(DTYPES)):
        return [f"the stored config must name a metric and a dtype, got {[code, dtype]}"]
    wrong = []
    for name, theirs in (("metric", _arguments.METRICS[code]), ("scales", tuple(scales))):
        if theirs != getattr(bank, name):
            wrong.append(
                f"{name} must be {theirs!r} as in the stored bank, got {getattr(bank, name)!r}"
            )
    counts, heads = stored["counts"].tolist(), stored["heads"].tolist()
    capacity = stored["density"].shape[1]
    for c, (count, head) in enumerate(zip(counts, heads, strict=True)):
        if not (0 <= count <= capacity and 0 <= head < capacity and count in (head, capacity)):
            wrong.append(
                f"the stored counts and heads do not describe rings of {capacity} slots filled from slot 0, got "
                f"count {count} and head {head} for class {c} (an averaged state_dict cannot be loaded)"
            )
            break
    return wrong


def _moved(bank: MemoryBank, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The slots of this process, from whole rings of any capacity.

    If not all rows fit, the newest are kept. At another capacity they are in the order of age, the oldest in slot 0.
    """
    counts, heads = stored["counts"], stored["heads"]
    slots = stored["density"].shape[1]
    start = bank.rings.start
    here = torch.arange(start, start + bank.rings.length, device=counts.device)
    if slots == bank.capacity:
        origin = here.expand(len(counts), -1)
    else:
        counts = counts.clamp(max=bank.capacity)
        origin = (heads[:, None] - counts[:, None] + here) % slots
        heads = counts % bank.capacity
    valid = here < counts[:, None]
    moved = {"counts": counts, "heads": heads}
    for name in ROWS:
        rows = stored[name]
        mask = valid if rows.dim() == 2 else valid.unsqueeze(2)
        moved[name] = torch.stack([of_class[at] for of_class, at in zip(rows, origin, strict=True)])
        moved[name].masked_fill_(~mask, 0)
    return moved


def as_dtensors(bank: MemoryBank, state_dict: dict[str, Any], prefix: str) -> None:
    """Replaces this rank's shards with DTensors, so that torch.distributed.checkpoint sees the whole bank."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

    device = bank.counts.device.type
    mesh = DeviceMesh.from_group(bank.rings.ranks.group, device)
    for name in ROWS:
        local = state_dict[prefix + name]
        shape = torch.Size((bank.num_classes, bank.capacity, *local.shape[2:]))
        stride = torch.empty(shape, device="meta").stride()
        state_dict[prefix + name] = DTensor.from_local(
            local, mesh, [Shard(1)], run_check=False, shape=shape, stride=stride
        )
