"""Keeps DistributedDataParallel away from the memory bank."""

from torch import nn

from dgcl_ops.memory import MemoryBank


def ddp_ignore_bank(root: nn.Module) -> list[str]:
    """Keeps DistributedDataParallel from broadcasting rank 0's bank in every step.

    Call it on the module that you will pass to DDP, before wrapping it. It is not needed if the bank lies outside that
    module or with `broadcast_buffers=False`.

    DDP broadcasts the buffers of the wrapped module from rank 0, at construction and before each forward. For a
    `MemoryBank` this costs the size of the whole bank per step. A "replicated" bank is the same on all ranks and stays
    correct. A "sharded" bank loses its shards, and the next step raises an error. A "local" bank loses the other ranks'
    rows.

    Args:
        root: the module that DDP will wrap.

    Returns:
        The names of the buffers of every bank inside `root`. Names ignored before stay ignored.

    Raises:
        TypeError: If `root` is not a module, or is wrapped already.
    """
    if not isinstance(root, nn.Module):
        raise TypeError(f"ddp_ignore_bank: root must be a Module, got {type(root).__name__}")
    if isinstance(root, nn.parallel.DistributedDataParallel):
        raise TypeError(
            "ddp_ignore_bank: root is already wrapped in DistributedDataParallel, which reads the names at "
            "construction; call this before wrapping"
        )
    names = []
    for prefix, module in root.named_modules(remove_duplicate=False):
        if isinstance(module, MemoryBank):
            for name, buffer in module.named_buffers(prefix):
                names.append(name)
                buffer._ddp_ignored = True  # type: ignore[attr-defined]  # read by DDP's mixed precision
    ignored = list(getattr(root, "_ddp_params_and_buffers_to_ignore", ()))
    ignored += [name for name in names if name not in ignored]
    root._ddp_params_and_buffers_to_ignore = ignored  # type: ignore[assignment]  # read by DDP
    return names
