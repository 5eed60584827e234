"""What joins the losses to a trainer, beside the tap on the features: a projection head, a rule for DDP.

tap = FeatureTap(network)                          # the input of its last classifier
head = ProjectionHead(tap.channels)
logits = network(images)["out"]
features = tap.pop()                               # [B, D, H, W], with its graph
loss = contrast(head(features), resize_labels(labels, features.shape[-2:]), features)
"""

from torch import Tensor, nn

from dgcl_ops.memory import MemoryBank
from dgcl_ops.ops import _arguments


class ProjectionHead(nn.Module):
    """Per pixel: linear, batch norm, ReLU, linear, as 1x1 convolutions.

    The first layer has no bias, since the batch norm takes any constant away again. Give the
    head the learning rate of the decoder, and use it in every step (DDP counts on its gradients).
    Outside of a model that DDP wraps it needs a DDP of its own, or each process trains another head.

    Args:
        in_channels: D, the channels of the features.
        hidden_channels: channels between the two layers.
        out_channels: E, the channels of the projections.

    Raises:
        ValueError: a number of channels is not positive; in the forward, a shape does not fit.

    Shape:
        - features: [B, D, H, W]
        - output: [B, E, H, W]

    Reference: Wang et al., CVPR 2023, section 4.1.
    """

    def __init__(self, in_channels: int, hidden_channels: int = 256, out_channels: int = 256):
        super().__init__()
        _arguments.positive_integer("ProjectionHead", "in_channels", in_channels)
        _arguments.positive_integer("ProjectionHead", "hidden_channels", hidden_channels)
        _arguments.positive_integer("ProjectionHead", "out_channels", out_channels)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, hidden_channels, 1, bias=False),
            nn.BatchNorm2d(hidden_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden_channels, out_channels, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() != 4 or features.shape[1] != self.in_channels:
            raise ValueError(
                f"ProjectionHead: features must have shape [B, {self.in_channels}, H, W], "
                f"got {list(features.shape)}"
            )
        return self.layers(features)


def ddp_ignore_bank(root: nn.Module) -> list[str]:
    """Keeps DistributedDataParallel from sending rank 0's bank to the other ranks in every step.

    DDP broadcasts the buffers of what it wraps from rank 0, at once and before each forward. For a
    :class:`MemoryBank` that costs the whole bank's size a step. A "replicated" bank is the same on all
    ranks, and stays as it is; a "sharded" one loses its windows, and the next step raises an error; a
    "local" one loses what the other ranks pushed. DDP skips the names in
    ``_ddp_params_and_buffers_to_ignore``, which it reads only on the module it is given: so call this
    with that very module, before DDP wraps it. A bank outside the wrapped module, or
    ``broadcast_buffers=False``, needs no such call.

    Args:
        root: the module that DDP is going to wrap.

    Returns:
        The names of the buffers of every bank inside root, empty if there is none. Names that were
        ignored before stay ignored.

    Raises:
        TypeError: root is not a module, or is wrapped already.
    """
    if not isinstance(root, nn.Module):
        raise TypeError(f"ddp_ignore_bank: root must be a Module, got {type(root).__name__}")
    if isinstance(root, nn.parallel.DistributedDataParallel):
        raise TypeError(
            "ddp_ignore_bank: root must be the module before it is wrapped, got a "
            "DistributedDataParallel, which has read the names already"
        )
    names = []
    for prefix, module in root.named_modules(remove_duplicate=False):
        if isinstance(module, MemoryBank):
            for name, buffer in module.named_buffers(prefix):
                names.append(name)
                buffer._ddp_ignored = True  # what DDP's mixed precision asks before it casts
    ignored = list(getattr(root, "_ddp_params_and_buffers_to_ignore", ()))
    ignored += [name for name in names if name not in ignored]
    root._ddp_params_and_buffers_to_ignore = ignored
    return names
