"""A small segmentation network that trains from scratch on a CPU in minutes.

It is independent of the density loss. The trainer taps the input of `classifier`, as in any network.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Takes the encoded maps of all images. Returns perturbed maps of some of them.
Perturbation = Callable[[list[Tensor]], list[Tensor]]


class SegmentationNetwork(nn.Module):
    """Convolutions at strides 2, 4, 8, ..., a top-down path to the feature stride, and a 1x1 classifier.

    Input: images [B, 3, H, W] in [0, 1]. Output: logits [B, C, H, W]. With `perturb`, the logits of the perturbed maps
    are appended to the batch.

    Args:
        num_classes: C.
        widths: channels at strides 2, 4, 8, ...
        feature_dim: channels of the classifier's input.
        feature_stride: stride of the classifier's input, 2, 4, ...
        align_corners: option of the bilinear upsampling, see torch.nn.functional.interpolate.

    Raises:
        ValueError: If no stage has the feature stride.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        widths: tuple[int, ...] = (24, 48, 96),
        feature_dim: int = 48,
        feature_stride: int = 2,
        align_corners: bool = False,
    ):
        super().__init__()
        self.align_corners = align_corners
        strides = [2 ** (i + 1) for i in range(len(widths))]
        if feature_stride not in strides:
            raise ValueError(
                f"feature_stride must be one of {strides} with {len(widths)} widths, got {feature_stride}"
            )
        self.finest = feature_stride.bit_length() - 2  # the stage with the feature stride
        inputs = (3, *widths[:-1])
        self.down = nn.ModuleList(
            nn.Sequential(convolution(before, width, stride=2), convolution(width, width))
            for before, width in zip(inputs, widths, strict=True)
        )
        self.lateral = nn.ModuleList(
            nn.Conv2d(width, feature_dim, kernel_size=1) for width in widths[self.finest :]
        )
        self.smooth = convolution(feature_dim, feature_dim)
        self.classifier = nn.Conv2d(feature_dim, num_classes, kernel_size=1)

    def forward(self, images: Tensor, perturb: Perturbation | None = None) -> Tensor:
        x, stages = (images - 0.5) * 4, []
        for stage in self.down:
            x = stage(x)
            stages.append(x)
        stages = joined(stages[self.finest :], perturb)
        maps = [f(stage) for f, stage in zip(self.lateral, stages, strict=True)]
        x = maps.pop()
        for finer in reversed(maps):
            x = finer + resize(x, finer.shape[-2:], self.align_corners)
        return resize(self.classifier(self.smooth(x)), images.shape[-2:], self.align_corners)

    @property
    def last_convolutions(self) -> nn.Module:
        """The convolutions before the classifier."""
        return self.smooth

    def extra_repr(self) -> str:  # checkpoints compare it
        return f"align_corners={self.align_corners}"


def joined(maps: list[Tensor], perturb: Perturbation | None) -> list[Tensor]:
    """Returns the maps. If there is a perturbation, the perturbed maps are appended along the batch."""
    if perturb is None:
        return maps
    return [torch.cat(pair) for pair in zip(maps, perturb(maps), strict=True)]


def convolution(
    inputs: int,
    outputs: int,
    *,
    kernel_size: int = 3,
    stride: int = 1,
    dilation: int = 1,
    bias: bool = False,
) -> nn.Sequential:
    """Builds a convolution with batch norm and ReLU."""
    options = {"stride": stride, "padding": kernel_size // 2 * dilation, "dilation": dilation}
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size, **options, bias=bias),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def resize(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Resizes a map bilinearly."""
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
