"""What the modules share: buffers that keep their dtype, checks of arguments."""

from torch import Tensor, nn

from dgcl_ops.ops import _arguments


class FixedDtypeModule(nn.Module):
    """A module whose buffers keep their dtype under `.half()` and `.to(dtype)`, and that refuses DataParallel.

    A cast to half precision would destroy what the buffers are for: unit rows that are unit to float32's
    last bit, and a state that resumes exactly. Moves between devices work as ever.
    """

    def _apply(self, fn, recurse=True):
        def apply_without_cast(tensor: Tensor) -> Tensor:
            probe = fn(tensor.new_empty(0))  # tells device and dtype without casting the whole bank
            return fn(tensor) if probe.dtype == tensor.dtype else tensor.to(probe.device)

        return super()._apply(apply_without_cast, recurse)

    def _replicate_for_data_parallel(self):
        raise RuntimeError(
            f"{type(self).__name__}: torch.nn.DataParallel is not supported, got a replica: replicas are "
            "thrown away after each forward, and the rows pushed into them with them; use "
            "torch.nn.parallel.DistributedDataParallel, or call the loss outside the replicated model"
        )


def at_least(op: str, name: str, value, minimum: int) -> int:
    """The value, if it is an integer of at least `minimum`."""
    value = _arguments.integral(op, name, value)
    if value < minimum:
        raise ValueError(f"{op}: {name} must be at least {minimum}, got {value}")
    return value


def one_of(op: str, name: str, value, choices: tuple):
    """The value, if it is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {choices}, got {value!r}")
    return value
