"""DeepLabV3+ from segmentation_models.pytorch. The published network is in `deeplab_published.py`.

pip install segmentation-models-pytorch
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from semi_supervised.images import MEAN, STD
from semi_supervised.network import Perturbation, joined, resize


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ with features of stride 4 and 256 channels. A 513 x 513 crop gives 129 x 129.

    The forward of segmentation_models.pytorch needs sides that are multiples of its stride; 513 is not. This one
    resizes the coarse map to the size of the fine map.

    Input: images [B, 3, H, W] in [0, 1]. Output: logits [B, C, H, W], and with `auxiliary=True` also the logits of the
    second head. With `perturb`, the logits of the perturbed maps are appended to the batch.

    Args:
        num_classes: C.
        encoder: name of a ResNet in segmentation_models.pytorch.
        weights: file with the backbone's state_dict (torchvision's resnet101-*.pth). None: random weights.
        output_stride: stride of the backbone, 16 or 8.
        atrous_rates: dilations of the pyramid.
        auxiliary: whether a second head reads the backbone's third stage.
        align_corners: option of the bilinear upsampling, see torch.nn.functional.interpolate.

    Raises:
        ImportError: If segmentation_models.pytorch is missing.
        ValueError: If the file does not hold weights of this backbone.
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
        align_corners: bool = False,
    ):
        super().__init__()
        self.align_corners = align_corners
        try:
            import segmentation_models_pytorch as smp
        except ImportError as error:
            raise ImportError(
                "network deeplabv3plus needs segmentation-models-pytorch and a torchvision for your torch: "
                "pip install segmentation-models-pytorch torchvision torch==YOURS"
            ) from error
        parts = smp.DeepLabV3Plus(
            encoder,
            encoder_weights=None,
            encoder_output_stride=output_stride,
            decoder_atrous_rates=tuple(atrous_rates),
            decoder_aspp_separable=False,
            classes=num_classes,
        )
        self.backbone, self.decoder = parts.encoder, parts.decoder
        self.classifier = parts.segmentation_head[0]
        self.auxiliary = (
            auxiliary_head(self.backbone.out_channels[-2], num_classes) if auxiliary else None
        )
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        if weights is not None:
            load_weights(self.backbone, Path(weights))

    def forward(
        self, images: Tensor, auxiliary: bool = False, perturb: Perturbation | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        size = images.shape[-2:]
        maps = self.backbone((images - self.mean) / self.std)
        fine, coarse = joined([maps[2], maps[-1]], perturb)
        fine = self.decoder.block1(fine)
        coarse = resize(self.decoder.aspp(coarse), fine.shape[-2:], self.align_corners)
        features = self.decoder.block2(torch.cat((coarse, fine), 1))  # [B, 256, H / 4, W / 4]
        logits = resize(self.classifier(features), size, self.align_corners)
        if not auxiliary:
            return logits
        return logits, resize(self.auxiliary(maps[-2]), size, self.align_corners)

    @property
    def last_convolutions(self) -> nn.Module:
        """The convolutions before the classifier."""
        return self.decoder.block2

    def extra_repr(self) -> str:  # checkpoints compare it
        return f"align_corners={self.align_corners}"


def auxiliary_head(inputs: int, num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, 256, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(256),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.1),
        nn.Conv2d(256, num_classes, kernel_size=1),
    )


def load_weights(backbone: nn.Module, path: Path) -> None:
    """Loads the backbone's weights. A file that does not fit raises ValueError."""
    weights = read_weights(path)
    if "conv1.0.weight" in weights:
        raise unfit(
            path,
            "its stem has three 3x3 convolutions (conv1.0.weight, ...), as in network deeplab_published; the stem of "
            "deeplabv3plus is one 7x7 convolution (conv1.weight)",
        )
    try:
        backbone.load_state_dict(weights)
    except (RuntimeError, AttributeError) as error:
        raise unfit(path, str(error).splitlines()[0]) from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a state_dict of finite floats. Anything else raises ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"weights: there is no file {path}")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # its type depends on the file's content
        raise unfit(path, f"{type(error).__name__} {error}".splitlines()[0]) from None
    if not isinstance(weights, dict):
        raise unfit(path, f"got {type(weights).__name__}")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise unfit(path, f"got a {type(tensor).__name__} named {name!r}")
        counter = name.endswith("num_batches_tracked")
        if not counter and not (tensor.is_floating_point() and tensor.isfinite().all()):
            raise unfit(path, f"{name} must hold finite floats")
    return weights


def unfit(path: Path, reason: str) -> ValueError:
    return ValueError(f"weights: {path} must hold the backbone's state_dict: {reason}")
