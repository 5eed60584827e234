"""The published network: DeepLabV3+ on a ResNet with a deep stem, in plain PyTorch.

It differs from the network of the DeepLabV3+ paper in four points. The stem has three 3x3 convolutions. The last stage
has multi-grid dilations. A full 3x3 convolution follows the pyramid, and two more follow the fusion. Dropout2d acts on
the features for the classifier, the densities and the bank.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from semi_supervised.deeplab import read_weights, unfit
from semi_supervised.images import MEAN, STD
from semi_supervised.network import Perturbation, convolution, joined, resize

DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}  # blocks of each stage
MULTI_GRID = (1, 2, 4)  # dilations of the last stage's blocks, times 32 / output_stride
WIDTH, FINE_WIDTH = 256, 48  # channels of the head, and of the fine map that joins it
DROPOUT = 0.1


class PublishedDeepLab(nn.Module):
    """DeepLabV3+ with features of stride 4 and 256 channels. A 513 x 513 crop gives 129 x 129.

    Input: images [B, 3, H, W] in [0, 1]. Output: logits [B, C, H, W], and with `auxiliary=True` also the logits of the
    second head. With `perturb`, the logits of the perturbed maps are appended to the batch. Training needs at least two
    images: the batch norm after image pooling sees one value per image.

    Args:
        num_classes: C.
        encoder: "resnet50" or "resnet101".
        weights: file with the backbone's state_dict, with the names of the public deep-stem ImageNet weights
            (conv1.0.weight, ..., layer4.2.bn3.bias; fc is ignored). None: random weights.
        output_stride: stride of the backbone, 16 or 8.
        atrous_rates: dilations of the pyramid.
        auxiliary: whether a second head reads the backbone's third stage.
        align_corners: option of the bilinear upsampling, see torch.nn.functional.interpolate.
        zero_init: whether each residual branch starts at 0, since its last batch norm has weight 0.

    Raises:
        ValueError: If the encoder or stride is unknown, or the file does not fit this backbone.
    """

    min_batch = 2  # the batch norm after image pooling sees one value per image

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: str = "resnet101",
        weights: Path | None = None,
        output_stride: int = 16,
        atrous_rates: tuple[int, ...] = (6, 12, 18),
        auxiliary: bool = False,
        align_corners: bool = True,
        zero_init: bool = False,
    ):
        super().__init__()
        for name, value, choices in (
            ("encoder", encoder, tuple(DEPTHS)),
            ("output_stride", output_stride, (8, 16)),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {value!r}")
        self.align_corners = align_corners
        self.backbone = DeepStemResNet(DEPTHS[encoder], output_stride)
        fine, *_, third, last = self.backbone.widths
        self.pyramid = Pyramid(last, atrous_rates)
        self.coarse = nn.Sequential(*convolution(self.pyramid.width, WIDTH), nn.Dropout2d(DROPOUT))
        # A bias before a batch norm has no effect, but the published network has it.
        self.fine = convolution(fine, FINE_WIDTH, kernel_size=1, bias=True)
        self.fuse = nn.Sequential(
            *convolution(FINE_WIDTH + WIDTH, WIDTH, bias=True),
            nn.Dropout2d(DROPOUT),
            *convolution(WIDTH, WIDTH, bias=True),
            nn.Dropout2d(DROPOUT),  # its output is the features for classifier, densities and bank
        )
        self.classifier = nn.Conv2d(WIDTH, num_classes, kernel_size=1)
        self.auxiliary = None
        if auxiliary:
            self.auxiliary = nn.Sequential(
                *convolution(third, WIDTH, bias=True),
                nn.Dropout2d(DROPOUT),
                nn.Conv2d(WIDTH, num_classes, kernel_size=1),
            )
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.backbone.initialise(zero_init)
        if weights is not None:
            load_backbone(self.backbone, Path(weights))

    def forward(
        self, images: Tensor, auxiliary: bool = False, perturb: Perturbation | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        size = images.shape[-2:]
        maps = self.backbone((images - self.mean) / self.std)
        fine, coarse = joined([maps[0], maps[-1]], perturb)
        fine = self.fine(fine)
        coarse = self._enlarge(self.coarse(self.pyramid(coarse)), fine.shape[-2:])
        features = self.fuse(torch.cat((fine, coarse), 1))  # [B, 256, H / 4, W / 4]
        logits = self._enlarge(self.classifier(features), size)
        if not auxiliary:
            return logits
        return logits, self._enlarge(self.auxiliary(maps[-2]), size)

    def _enlarge(self, x: Tensor, size: torch.Size) -> Tensor:
        return resize(x, size, self.align_corners)

    @property
    def last_convolutions(self) -> nn.Module:
        """The convolutions before the classifier."""
        return self.fuse

    def extra_repr(self) -> str:  # checkpoints compare it
        return f"align_corners={self.align_corners}"


class Pyramid(nn.Module):
    """Image pooling, a 1x1 convolution and dilated 3x3 convolutions in parallel.

    Input: [B, inputs, h, w]. Output: [B, 256 (2 + len(rates)), h, w].

    Args:
        inputs: channels of the input.
        rates: dilations.
    """

    def __init__(self, inputs: int, rates: tuple[int, ...]):
        super().__init__()
        self.width = WIDTH * (2 + len(rates))
        self.pooled = convolution(inputs, WIDTH, kernel_size=1)
        self.branches = nn.ModuleList(
            [
                convolution(inputs, WIDTH, kernel_size=1),
                *(convolution(inputs, WIDTH, dilation=rate) for rate in rates),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        whole = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return torch.cat((whole, *(branch(x) for branch in self.branches)), 1)


class DeepStemResNet(nn.Module):
    """ResNet with stages of strides 4, 8, 16 and 16, or 4, 8, 8 and 8. Dilation replaces the other strides.

    Parameters have the names of the public deep-stem ImageNet weights. Input: images [B, 3, H, W]. Output: the maps of
    all stages, with 256, 512, 1024 and 2048 channels.

    Args:
        depths: blocks of each stage.
        output_stride: 16 or 8.
    """

    def __init__(self, depths: tuple[int, int, int, int], output_stride: int):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 128, kernel_size=3, padding=1, bias=False),
        )
        self.bn1 = nn.BatchNorm2d(128)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1, ceil_mode=True)
        # If dilation replaces the stride of the third stage, its first block still has dilation 1.
        third = (1, *(depths[2] - 1) * (16 // output_stride,))
        fourth = [32 // output_stride * grid for grid in MULTI_GRID]
        self.layer1 = stage(128, 64, [1] * depths[0])
        self.layer2 = stage(256, 128, [1] * depths[1], stride=2)
        self.layer3 = stage(512, 256, third, stride=output_stride // 8)
        self.layer4 = stage(1024, 512, fourth)
        self.widths = 256, 512, 1024, 2048

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))]
        for each in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps.append(each(maps[-1]))
        return maps[1:]

    def initialise(self, zero_init: bool) -> None:
        """Initialises convolutions with He normal, fan-out. Batch norms keep weight 1 and bias 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck) and zero_init:
                nn.init.zeros_(module.bn3.weight)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut. The 3x3 convolution has the stride.

    Input: [B, inputs, H, W]. Output: [B, 4 width, H / stride, W / stride].

    Args:
        inputs: channels of the input.
        width: channels of the first two convolutions.
        stride: stride of the 3x3 convolution.
        dilation: dilation of the 3x3 convolution.
    """

    def __init__(self, inputs: int, width: int, *, stride: int = 1, dilation: int = 1):
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(
            width,
            width,
            kernel_size=3,
            stride=stride,
            padding=dilation,
            dilation=dilation,
            bias=False,
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn3(self.conv3(y)) + shortcut, inplace=True)


def stage(inputs: int, width: int, dilations: Sequence[int], *, stride: int = 1) -> nn.Sequential:
    """Builds one block per dilation. The first has the stride."""
    first = Bottleneck(inputs, width, stride=stride, dilation=dilations[0])
    rest = (Bottleneck(4 * width, width, dilation=dilation) for dilation in dilations[1:])
    return nn.Sequential(first, *rest)


def load_backbone(backbone: DeepStemResNet, path: Path) -> None:
    """Loads the backbone's weights. The file may also hold a classifier (fc). Other files raise ValueError."""
    given = read_weights(path)
    if "conv1.weight" in given:
        raise unfit(
            path,
            "its stem is one 7x7 convolution (conv1.weight), as in torchvision; the stem of network deeplab_published "
            "has three 3x3 convolutions (conv1.0.weight, conv1.3.weight, conv1.6.weight)",
        )
    given = {name: tensor for name, tensor in given.items() if not name.startswith("fc.")}
    needed = backbone.state_dict()
    for name, tensor in needed.items():
        if name not in given and not name.endswith("num_batches_tracked"):  # older files have none
            raise unfit(path, f"it has no {name}")
        if name in given and given[name].shape != tensor.shape:
            raise unfit(path, f"{name} must be {list(tensor.shape)}, got {list(given[name].shape)}")
    for name in given:
        if name not in needed:
            raise unfit(path, f"the backbone has no {name}")
    backbone.load_state_dict(given)
