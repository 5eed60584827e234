"""FeatureTap finds the last classifier of real models: with zero weights there, every logit is 0."""

import pytest
import torch

from dgcl_ops import FeatureTap

CLASSES = 4


def check(model, logits_of, size=64):
    model.eval()
    tap = FeatureTap(model)
    classifier = model.get_submodule(tap.module_path)
    assert classifier.out_channels == CLASSES
    torch.nn.init.zeros_(classifier.weight)
    if classifier.bias is not None:
        torch.nn.init.zeros_(classifier.bias)
    with torch.no_grad():
        logits = logits_of(model, torch.randn(2, 3, size, size))
    assert logits.shape[:2] == (2, CLASSES)
    assert not logits.any()
    features = tap.pop()
    assert features.shape[:2] == (2, tap.channels)
    assert features.std() > 0


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "fcn_resnet50"])
def test_torchvision(name):
    from torchvision.models import segmentation

    build = getattr(segmentation, name)
    model = build(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True)
    check(model, lambda model, images: model(images)["out"])


def test_torchvision_lraspp():
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
    low = model.classifier.low_classifier  # the logits are the sum of two classifiers'
    torch.nn.init.zeros_(low.weight)
    torch.nn.init.zeros_(low.bias)
    check(model, lambda model, images: model(images)["out"])


SMP = ["Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN"]
SMP += ["DeepLabV3", "DeepLabV3Plus", "UPerNet", "Segformer", "DPT"]


@pytest.mark.parametrize("name", SMP)
def test_smp(name):
    import segmentation_models_pytorch as smp

    encoder = {"encoder_name": "resnet18"}
    if name == "DPT":
        encoder = {"encoder_name": "tu-vit_tiny_patch16_224", "dynamic_img_size": True}
    model = smp.create_model(name, encoder_weights=None, classes=CLASSES, **encoder)
    check(model, lambda model, images: model(images), size=128)  # PAN needs this size


def hf_configs(transformers):
    small = {"num_labels": CLASSES, "hidden_size": 32, "intermediate_size": 32}
    small |= {"num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 64}
    small |= {"out_indices": [1, 2, 3, 4], "auxiliary_channels": 16}
    backbone = transformers.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 32, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return {
        "Segformer": transformers.SegformerConfig(num_labels=CLASSES, depths=[1, 1, 1, 1]),
        "Beit": transformers.BeitConfig(**small),
        "Data2VecVision": transformers.Data2VecVisionConfig(**small),
        "UperNet": transformers.UperNetConfig(
            backbone_config=backbone, num_labels=CLASSES, hidden_size=32, auxiliary_in_channels=32
        ),
    }


@pytest.mark.parametrize("name", ["Segformer", "Beit", "Data2VecVision", "UperNet"])
def test_hugging_face(name):
    import transformers

    build = getattr(transformers, f"{name}ForSemanticSegmentation")
    model = build(hf_configs(transformers)[name])
    check(model, lambda model, images: model(pixel_values=images).logits)


def test_another_family_is_asked_for_its_path():
    import transformers

    model = transformers.MobileViTForSemanticSegmentation(
        transformers.MobileViTConfig(num_labels=CLASSES)
    )
    message = (
        r"of MobileViTForSemanticSegmentation \(unknown structure\); .*; the last convolutions are "
        r"'segmentation_head\.classifier\.convolution' \(256 -> 4 channels\)"
    )
    with pytest.raises(ValueError, match=message):
        FeatureTap(model)


@pytest.mark.parametrize("name", ["FCNHead", "PSPHead", "ASPPHead"])
def test_mmseg(name, compiled_ops_of_mmcv):
    from mmseg.models.segmentors import EncoderDecoder

    norm = {"type": "BN"}
    head = {"in_channels": 512, "in_index": 3, "channels": 16, "num_classes": CLASSES}
    model = EncoderDecoder(
        backbone={"type": "ResNetV1c", "depth": 18, "norm_cfg": norm},
        decode_head={"type": name, **head, "norm_cfg": norm},
        auxiliary_head={"type": "FCNHead", **head, "norm_cfg": norm},
    )
    check(model, lambda model, images: model(images, mode="tensor"))


MONAI = {
    "UNet": {"channels": (8, 16, 32), "strides": (2, 2), "num_res_units": 2},
    "UNet without residual units": {"channels": (8, 16, 32), "strides": (2, 2)},
    "AttentionUnet": {"channels": (8, 16, 32), "strides": (2, 2)},
    "BasicUNet": {"features": (8, 8, 8, 8, 8, 8)},
    "BasicUNetPlusPlus": {"features": (8, 8, 8, 8, 8, 8)},
    "SegResNet": {"init_filters": 8},
    "DynUNet": {
        "kernel_size": (3, 3, 3),
        "strides": (1, 2, 2),
        "upsample_kernel_size": (2, 2),
    },
    "UNETR": {"img_size": 32, "feature_size": 8, "hidden_size": 24, "mlp_dim": 32, "num_heads": 2},
    "SwinUNETR": {"feature_size": 12},
    "VNet": {},
    "FlexibleUNet": {"backbone": "efficientnet-b0"},
}


@pytest.mark.parametrize("name", MONAI)
def test_monai(name):
    from monai.networks import nets

    dims = 2 if name in ("FlexibleUNet", "SwinUNETR") else 3
    build = getattr(nets, name.split(" ", maxsplit=1)[0])
    model = build(in_channels=1, out_channels=CLASSES, spatial_dims=dims, **MONAI[name]).eval()
    tap = FeatureTap(model)
    classifier = model.get_submodule(tap.module_path)
    assert classifier.out_channels == CLASSES
    for parameter in classifier.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        logits = model(torch.randn(1, 1, *(dims * [64 if dims == 2 else 32])))
    logits = logits[-1] if isinstance(logits, list) else logits
    assert logits.shape[:2] == (1, CLASSES)
    # UNet and VNet have more layers with a bias. Then all pixels have the same logits.
    assert torch.equal(logits, logits[(..., *[slice(1)] * dims)].expand_as(logits))
    features = tap.pop()
    assert features.shape[:2] == (1, tap.channels)
    assert features.dim() == 2 + dims
    assert features.std() > 0
