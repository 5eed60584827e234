"""The state of a memory bank: its checksum, and loading it from another capacity, dtype or number of processes.

A bank is loaded as a whole. Everything is looked at before anything is written: a file that does not fit changes
no buffer. torch.distributed.checkpoint alone writes into the buffers first, and is told what was wrong afterwards.
"""

import torch
from torch import Tensor

from dgcl_ops import _random
from dgcl_ops._bank import exchange
from dgcl_ops.ops import _arguments, memory_push

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ROWS = ("features", "projections", "density")  # of which a sharded bank holds a window
NAMES = (*ROWS, "counts", "heads", "pushes", "rng_state", "meaning")


def checksum(bank) -> Tensor:
    """See MemoryBank.checksum: a sum of hashes of (word, place in the whole bank), so windows add up."""
    total = torch.zeros((), dtype=torch.int64, device=bank.counts.device)
    # The words are widened to int64 in pieces, on a processor small enough for its cache.
    piece = 1 << (15 if total.device.type == "cpu" else 22)
    at = 0
    for name in (*ROWS, "counts", "heads"):
        buffer = getattr(bank, name)
        narrow = torch.int16 if buffer.element_size() == 2 else torch.int32
        words = buffer.view(narrow).view(bank.num_classes, -1)
        start, of_class = 0, words.shape[1]  # this process's part of a class's words
        if name in ROWS:
            slot = of_class // bank.rings.length
            start, of_class = bank.rings.start * slot, bank.capacity * slot
        elif bank.rings.start > 0:  # the same on all ranks, and counted once
            words = words[:, :0]
        for c, row in enumerate(words):
            first = at + c * of_class + start
            for part in row.split(piece):
                place = torch.arange(first, first + part.numel(), device=part.device)
                word = part.to(torch.int64) & 0xFFFFFFFF
                # Hashes of 32 bits: 2^31 of them fit into the sum.
                total = total + _random.mix(word ^ _random.mix(place & 0xFFFFFFFF)).sum()
                first += part.numel()
        at += bank.num_classes * of_class
    return exchange.gather(bank.rings.ranks, total).sum(0)


def meaning(metric: str, dtype: torch.dtype, scales: tuple[int, ...], device=None) -> Tensor:
    """[2 + scales] int64: metric, dtype and scales. Loaded as another metric's, rows and densities would look
    valid; and copied into float32, rows that are unit in bfloat16 would."""
    code = [_arguments.METRICS.index(metric), DTYPES.index(dtype), *scales]
    return torch.tensor(code, device=device)


def fitting(bank, state_dict, prefix: str, errors: list[str]) -> dict[str, Tensor] | None:
    """The stored bank as this one holds it, or None and the reasons. `state_dict` has all of NAMES."""
    stored = {name: state_dict[prefix + name] for name in NAMES}
    problems = _wrong_kind(bank, stored) or _wrong_values(bank, stored)
    errors += [f"MemoryBank: {problem}" for problem in problems]
    if problems:
        return None
    own = meaning(bank.metric, bank.dtype, bank.scales)
    was = stored["meaning"].tolist()
    fitted = {**stored, "meaning": own}
    if _is_window(stored["features"]):
        fitted.update((name, stored[name].to_local()) for name in ROWS)
    elif not bank.rings.whole or stored["features"].shape[1] != bank.capacity:
        fitted.update(_moved(bank, stored))
    # Rows that were cast on the way have another dtype than `meaning` says.
    if was[1] != own[1] or any(fitted[name].dtype != getattr(bank, name).dtype for name in ROWS):
        fitted.update(_converted(bank, fitted))
    return fitted


def _is_window(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")  # a DTensor, which a sharded bank gives and takes


def _wrong_kind(bank, stored: dict) -> list[str]:
    """What is wrong with types, shapes and dtypes."""
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
        "pushes": (),
        "rng_state": (2,),
        "meaning": (2 + len(bank.scales),),
    }
    for name, value in stored.items():
        if name in ROWS and value.dtype not in DTYPES:
            wrong.append(
                f"the stored {name} must have one of the dtypes {DTYPES}, got {value.dtype}"
            )
        if name not in ROWS and value.dtype != torch.int64:
            wrong.append(f"the stored {name} must have dtype torch.int64, got {value.dtype}")
        if name != "meaning" and value.shape != shapes[name]:
            wrong.append(
                f"the stored {name} must have shape {list(shapes[name])}, got {list(value.shape)}"
            )
    if stored["meaning"].dim() != 1 or len(stored["meaning"]) < 3:
        wrong.append(
            f"the stored meaning must have shape {list(shapes['meaning'])}, got {list(stored['meaning'].shape)}"
        )
    windows = [_is_window(stored[name]) for name in ROWS]
    if any(windows) and not (all(windows) and _own_windows(bank, stored)):
        wrong.append(
            f"the stored rows must be whole tensors, or windows of {bank.capacity} slots from the same processes, "
            f"got DTensors of shape {list(stored['features'].shape)}, the window of rank {_owner(stored['features'])} "
            f"on rank {bank.ranks().rank}; torch.distributed.checkpoint brings them to other processes, and its "
            "full_state_dict=True makes whole tensors of them"
        )
    return wrong


def _owner(tensor: Tensor) -> int | None:
    """The rank that made a window, also where torch.load has read another rank's file."""
    place = tensor.device_mesh.get_coordinate() if _is_window(tensor) else None
    return place[0] if place else None


def _own_windows(bank, stored: dict) -> bool:
    ours = [bank.features, bank.projections, bank.density]
    theirs = [stored[name] for name in ROWS]
    if bank.rings.whole or stored["density"].shape[1] != bank.capacity:
        return False
    return all(
        t.to_local().shape == o.shape and _owner(t) == bank.rings.ranks.rank
        for t, o in zip(theirs, ours, strict=True)
    )


def _wrong_values(bank, stored: dict) -> list[str]:
    """What is wrong with the numbers that say where rows are and what they mean."""
    code, dtype, *scales = stored["meaning"].tolist()
    if not (0 <= code < len(_arguments.METRICS) and 0 <= dtype < len(DTYPES)):
        return [f"the stored meaning must name a metric and a dtype, got {[code, dtype]}"]
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
                f"the stored counts and heads must be those of rings of {capacity} slots, that fill from slot 0 "
                f"on, got count {count} and head {head} of class {c}"
            )
            break
    return wrong


def _moved(bank, stored: dict) -> dict[str, Tensor]:
    """The slots of this process, from whole rings of any capacity. Of more rows than fit, the newest are kept; in
    another capacity they stand in the order of their age, the oldest in slot 0."""
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
    held = here < counts[:, None]
    moved = {"counts": counts, "heads": heads}
    for name in ROWS:
        rows = stored[name]
        mask = held if rows.dim() == 2 else held.unsqueeze(2)
        moved[name] = torch.stack([of_class[at] for of_class, at in zip(rows, origin, strict=True)])
        moved[name].masked_fill_(~mask, 0)
    return moved


def _converted(bank, stored: dict) -> dict[str, Tensor]:
    """The rows in the bank's dtype, the features unit again where they have to be."""
    counts = stored["counts"]
    rings = [
        torch.zeros(stored[name].shape, dtype=getattr(bank, name).dtype, device=counts.device)
        for name in ROWS
    ]
    memory_push(
        *rings,
        torch.zeros_like(counts),
        torch.zeros_like(counts),
        *(stored[name] for name in ROWS),
        bank.rings.counts(counts),
        bank.metric == "cosine",
    )
    return dict(zip(ROWS, rings, strict=True))


def as_windows(bank, state_dict: dict, prefix: str) -> None:
    """Puts DTensors in place of this process's windows, which tell torch.distributed.checkpoint of the whole."""
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
