"""The soak's checks: of each step, and of memory at the end."""

import gc

import torch
from process_memory import allocated_bytes, resident_bytes
from torch import Tensor

from dgcl_ops import DensityContrastLoss, MemoryBank, reference

# Error of a density, relative to 1 + |density|. Stored rows are features rounded to the bank's dtype, and densities are
# float32 or wider: a few dozen roundings of 2^-24, or some of bfloat16's 2^-8 and a few of float32.
DENSITY_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-6}
# Error of a unit row's length: the rounding of its elements.
LENGTH_TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8}
# Allowed growth of malloc()'s bytes after the warm-up, per step and once. The smallest block takes 32 bytes, so one
# leak per step shows as 32 or more. Without leaks the number is the same to the byte after each round. The one-time
# slack is for caches.
ALLOCATED_PER_STEP, ALLOCATED_SLACK = 16, 2 << 10
# Resident bytes include memory outside malloc(), but are coarse: holes in the heap can hide 100 bytes per step.
RSS_PER_STEP, RSS_SLACK = 200, 2 << 20
# Python's objects: caches of PyTorch and Python fill slowly, but a leak has at least one object per step.
OBJECTS_PER_STEP, OBJECTS_SLACK = 0.05, 200


class Broken(AssertionError):
    """An invariant does not hold."""


def expect(holds: bool, what: str, *got: object) -> None:
    """Raises Broken if an invariant does not hold."""
    if not holds:
        raise Broken(what + (f", got {', '.join(map(str, got))}" if got else ""))


# ---- a step -----------------------------------------------------------------------------------------


def check_loss(value: Tensor, projections: Tensor) -> None:
    """Checks a loss and its gradient."""
    expect(bool(value.isfinite()), "the loss must be finite", value.item())
    expect(value.grad_fn is not None, "the loss must be connected to the projections")
    value.backward()
    expect(projections.grad is not None, "the projections must have a gradient")
    expect(bool(projections.grad.isfinite().all()), "the gradient must be finite")


def arrivals(module: DensityContrastLoss, batch: dict) -> Tensor:
    """Returns how many rows of each class the batch pushes, [C], counted from its labels."""
    usable = batch["labels"].reshape(-1).long()
    for name in ("features", "projections", "confidence"):
        if name == "confidence" and not module.strategy.by_confidence:
            continue
        maps = batch[name].detach()
        flat = maps.movedim(1, -1).flatten(0, -2) if name != "confidence" else maps.reshape(-1, 1)
        usable = torch.where(flat.isfinite().all(1), usable, 255)
    counts = torch.stack([(usable == c).sum() for c in range(module.num_classes)])
    counts[list(module.exclude_classes)] = 0
    return counts.clamp(max=module.bank.rows_per_push)


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same_state(a: dict[str, Tensor], b: dict[str, Tensor], what: str) -> None:
    """Checks that two states are bitwise equal. NaN equals NaN."""
    for name, tensor in a.items():
        same = torch.equal(tensor.nan_to_num(7.0), b[name].nan_to_num(7.0))
        expect(tensor.dtype == b[name].dtype and same, f"{what} must have the same {name}")


def check_bank(bank: MemoryBank, before: dict[str, Tensor], came: Tensor, pushed: bool) -> None:
    """Checks a bank after a push.

    Args:
        bank: the bank.
        before: the module's state before.
        came: [C], pushed rows.
        pushed: whether the step pushed.
    """
    counts, heads = before["bank.counts"], before["bank.heads"]
    expect(
        torch.equal(bank.counts, (counts + came).clamp(max=bank.capacity)), "counts", bank.counts
    )
    expect(torch.equal(bank.heads, (heads + came) % bank.capacity), "heads", bank.heads)
    expect(
        int(bank.num_pushes) == int(before["bank.num_pushes"]) + pushed,
        "num_pushes",
        bank.num_pushes,
    )
    filling = bank.counts < bank.capacity
    expect(
        torch.equal(bank.heads[filling], bank.counts[filling]), "heads of rings that are not full"
    )
    held = bank.valid_slots()
    for name in ("features", "projections", "density"):
        expect(bool(getattr(bank, name)[held].isfinite().all()), f"held {name} must be finite")
    if bank.metric == "cosine":
        length = bank.features[held].double().norm(dim=1)
        wrong = (length - 1).abs() > LENGTH_TOLERANCE[bank.dtype]
        expect(not bool(wrong.any()), "held features must be unit rows", length[wrong])


def check_densities(bank: MemoryBank, before: dict[str, Tensor], came: Tensor, c: int) -> int:
    """Compares the densities of a class with the reference.

    Args:
        bank: the bank.
        before: the module's state before.
        came: [C], pushed rows.
        c: the class.

    Returns:
        How many densities were compared.
    """
    rows, held = bank.features[c].double(), int(bank.counts[c])
    was_ready = int(before["bank.counts"][c]) >= bank.min_rows
    due = bank.backfill and not was_ready
    due |= bool(bank.refresh_every) and int(bank.num_pushes) % max(1, bank.refresh_every) == 0
    slots = (int(before["bank.heads"][c]) + torch.arange(int(came[c]))) % bank.capacity
    expected = before["bank.density"][c].double()
    search = bank.scales, bank.metric
    if due and held >= bank.min_rows:
        expected[:held] = reference.knn_density(
            rows[:held], rows[:held], *search, exclude_self=True
        )
    elif was_ready:
        old = before["bank.features"][c, : int(before["bank.counts"][c])].double()
        expected[slots] = reference.knn_density(rows[slots], old, *search)
    else:
        expected[slots] = 0
    error = (bank.density[c].double() - expected).abs()
    allowed = DENSITY_TOLERANCE[bank.dtype] * (1 + expected.abs())
    expect(
        bool((error <= allowed)[:held].all()), f"densities of class {c} must be", expected[:held]
    )
    untouched = torch.ones(bank.capacity, dtype=torch.bool)
    untouched[slots] = False
    if not due:
        same = torch.equal(bank.density[c][untouched], before["bank.density"][c][untouched])
        expect(same, f"densities of older rows of class {c} must not change")
    return held if due else len(slots)


# ---- memory -----------------------------------------------------------------------------------------


def usage() -> dict[str, int | None]:
    """Returns the number of tensors and Python objects, malloc()'s bytes and resident bytes."""
    gc.collect()
    objects = gc.get_objects()
    tensors, count = sum(issubclass(type(o), Tensor) for o in objects), len(objects)
    del objects  # the list takes megabytes
    bytes_held = {"allocated": allocated_bytes(), "rss": resident_bytes()}
    return {"tensors": tensors, "objects": count, **bytes_held}


def check_memory(warm: dict, end: dict, steps: int) -> None:
    """Checks the growth of memory. No module may be alive at the two measurements.

    Args:
        warm: usage after the warm-up.
        end: usage at the end.
        steps: number of steps in between.
    """
    expect(
        end["tensors"] <= warm["tensors"],
        f"tensors alive must stay {warm['tensors']}",
        end["tensors"],
    )
    most = warm["objects"] + OBJECTS_SLACK + OBJECTS_PER_STEP * steps
    expect(end["objects"] <= most, f"objects alive must stay below {most:.0f}", end["objects"])
    limits = {
        "allocated": (ALLOCATED_SLACK + ALLOCATED_PER_STEP * steps, "bytes of malloc()"),
        "rss": (RSS_SLACK + RSS_PER_STEP * steps, "resident bytes"),
    }
    for kind, (more, words) in limits.items():
        if end[kind] is not None:
            most = warm[kind] + more
            expect(end[kind] <= most, f"{words} must stay below {most}", end[kind])
