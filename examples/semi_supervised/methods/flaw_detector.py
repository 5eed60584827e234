"""The flaw detector of GCT. It predicts where a network's probabilities are wrong. Ke et al., ECCV 2020.

Deviations: each of the program's layers loses a pixel, so images need at least 60 pixels. Ours are padded: a layer
keeps its input's size, or halves it and rounds up. The program's instance norm is a group norm here. It gives the same
values, and also works on a single pixel.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS = ((1, 2), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2), (8, 1))  # width and stride
NO_FLAW = 0.1  # an image whose largest flaw is at most this has none


class FlawDetector(nn.Module):
    """4x4 convolutions with a batch norm on half of the channels, and an instance norm on the others.

    Input: images [B, 3, H, W] and probabilities [B, C, H, W]. Output: flaws [B, 1, H, W], without an activation.

    Args:
        num_classes: C.
        width: channels of the first layer. The last has eight times as many.
    """

    def __init__(self, num_classes: int, width: int = 64):
        super().__init__()
        layers, inputs = [], 3 + num_classes
        for multiple, stride in LAYERS:
            outputs = multiple * width
            layers += [padded(inputs, outputs, stride), HalfNorm(outputs), nn.LeakyReLU(0.2)]
            inputs = outputs
        self.layers = nn.Sequential(*layers, padded(inputs, 1, 2))

    def forward(self, images: Tensor, probabilities: Tensor) -> Tensor:
        flaws = self.layers(torch.cat((images, probabilities), 1))
        return F.interpolate(flaws, images.shape[-2:], mode="bilinear", align_corners=True)


class HalfNorm(nn.Module):
    """Batch norm of the first half of the channels, instance norm of the others."""

    def __init__(self, channels: int):
        super().__init__()
        self.batch_norm = nn.BatchNorm2d(channels // 2)
        others = channels - channels // 2
        self.instance_norm = nn.GroupNorm(others, others, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        first, others = x.tensor_split((self.batch_norm.num_features,), 1)
        return torch.cat((self.batch_norm(first), self.instance_norm(others)), 1)


def padded(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Builds a 4x4 convolution. It returns ceil(side / stride) pixels per side."""
    convolution = nn.Conv2d(inputs, outputs, kernel_size=4, stride=stride)
    return nn.Sequential(nn.ZeroPad2d((1, 2, 1, 2)), convolution)


# ---- flaw maps [B, 1, H, W], without gradients, scaled in float32 or float64 -------------------------


@torch.no_grad()
def without_noise(flaws: Tensor) -> Tensor:
    """Returns the detector's flaws without negative values, blurred, and scaled to [0, 1] per image."""
    flaws = blurred(flaws.clamp(min=0), 16)
    return scaled(flaws) * (flaws.amax((1, 2, 3), keepdim=True) > NO_FLAW)


@torch.no_grad()
def true_flaws(probabilities: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
    """Returns what the detector should predict, in [0, 1].

    The sum over the classes of |one-hot(y) - p|, halved, is 1 - p of the label. It is blurred, dilated, and blurred.

    Args:
        probabilities: [B, C, H, W].
        labels: [B, H, W].
        counted: [B, H, W] bool. Other pixels have no label and are no flaws.
    """
    own = probabilities.gather(1, labels.masked_fill(~counted, 0)[:, None])
    flaws = blurred((1 - own) * counted[:, None], 8)
    return scaled(blurred(F.max_pool2d(flaws, 3, stride=1, padding=1), 4))


def scaled(maps: Tensor) -> Tensor:
    """Scales each map to [0, 1]. A constant map becomes 0."""
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))  # in float16, 1e-9 is 0
    least, most = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    return (maps - least) / (most - least + 1e-9)


def blurred(maps: Tensor, share: int) -> Tensor:
    """Blurs with a Gaussian. Its kernel spans 1 / `share` of each side of the map. Borders are reflected."""
    with torch.autocast(maps.device.type, enabled=False):
        for kernel_shape, side in (((1, 1, -1, 1), maps.shape[2]), ((1, 1, 1, -1), maps.shape[3])):
            size = side // share | 1  # odd
            radius = size // 2
            sigma = 0.3 * (radius - 1) + 0.8
            x = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
            kernel = (x / sigma).square().div(-2).exp()
            kernel = (kernel / kernel.sum()).view(kernel_shape)
            around = (0, 0, radius, radius) if kernel_shape[2] == -1 else (radius, radius, 0, 0)
            maps = F.conv2d(F.pad(maps, around, mode="reflect"), kernel)
    return maps
