"""Where known models keep their last classifier, and how `FeatureTap` finds it."""

from __future__ import annotations

import difflib

from torch import nn

# Where models keep their last classifier, a convolution. "last" is the last child. The first match is taken.
CLASSIFIERS = {
    "decode_head.classifier": "Hugging Face: SegFormer, UperNet, BEiT",
    "decode_head.conv_seg": "mmsegmentation",
    "classifier.high_classifier": "torchvision: LRASPP",
    "classifier.last": "torchvision: DeepLabV3, FCN",
    "segmentation_head.0": "segmentation_models.pytorch; MONAI: FlexibleUNet",
    "segmentation_head.head.last": "segmentation_models.pytorch: DPT",
    "final_conv": "MONAI: BasicUNet",
    "final_conv_0_4": "MONAI: BasicUNet++",
    "conv_final.last.conv": "MONAI: SegResNet",
    "output_block.conv.conv": "MONAI: DynUNet",
    "out.conv.conv": "MONAI: UNETR, SwinUNETR",
    "out_tr.conv_block.conv": "MONAI: VNet",
    "model.last.conv": "MONAI: UNet without residual units, AttentionUnet",
    "model.last.0.conv": "MONAI: UNet",
}
CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
# The only child of DistributedDataParallel, of a compiled model, of FSDP's first version and of checkpoint_wrapper.
WRAPPERS = (
    ["module"],
    ["_orig_mod"],
    ["_fsdp_wrapped_module"],
    ["_checkpoint_wrapped_module"],
)


def classifier_path(model: nn.Module) -> str:
    """The path of the model's last classifier. The error lists the convolutions that it may be."""
    inner = model
    prefix: list[str] = []
    while list(inner._modules) in WRAPPERS:
        prefix += inner._modules
        inner = inner.get_submodule(prefix[-1])
    for path in CLASSIFIERS:
        module: nn.Module | None = inner
        names: list[str] = []
        for name in path.split("."):
            children = {} if module is None else module._modules
            names.append(next(reversed(children), "") if name == "last" else name)
            module = children.get(names[-1])
        if isinstance(module, CONVOLUTIONS):
            return ".".join(prefix + names)
    convolutions = [
        f"{name!r} ({module.in_channels} -> {module.out_channels} channels)"
        for name, module in model.named_modules()
        if isinstance(module, CONVOLUTIONS)
    ]
    listed = ", ".join(convolutions[:-6:-1]) or "none"
    raise ValueError(
        f"FeatureTap: cannot find the classifier of {type(inner).__name__} (unknown structure); pass module_path, the "
        f"name of the layer that outputs the class logits; the last convolutions are {listed}"
    )


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The module of that name inside model. The error lists similar names."""
    if not isinstance(path, str):
        raise TypeError(f"FeatureTap: module_path must be a string, got {type(path).__name__}")
    try:
        if path:
            return model.get_submodule(path)
    except AttributeError:
        pass
    names = [name for name, _ in model.named_modules() if name]
    # Names with the right end come first: a wrapper's prefix ("module.") or a parent may be missing.
    near = [name for name in names if path and name.endswith(f".{path}")]
    near += [n for n in difflib.get_close_matches(path, names, n=5, cutoff=0.5) if n not in near]
    near = near or [name for name, _ in model.named_children()]
    listed = ", ".join(repr(name) for name in near[:8]) or "none"
    raise ValueError(
        f"FeatureTap: module_path must name a module inside {type(model).__name__}, got {path!r}; "
        f"similar names: {listed}"
    )
