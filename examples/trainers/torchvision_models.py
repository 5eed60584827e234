"""torchvision's DeepLabV3, FCN and LR-ASPP in a plain PyTorch loop. --amp uses float16 with a gradient scaler.

python examples/trainers/torchvision_models.py --model lraspp_mobilenet_v3_large --amp
"""

import argparse

import torch
import torch.nn.functional as F
from tiny_data import NUM_CLASSES, batches, progress
from torchvision.models import segmentation

from dgcl_ops import DensityContrastLoss, FeatureTap, ProjectionHead, resize_labels

MODELS = ("deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large")


def main(
    arguments: list[str] | None = None,
) -> tuple[torch.nn.Module, ProjectionHead, DensityContrastLoss]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--amp", action="store_true", help="float16; slow on most CPUs")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    device = torch.device(options.device)
    build = getattr(segmentation, options.model)
    model = build(weights=None, weights_backbone=None, num_classes=NUM_CLASSES).to(device)

    tap = FeatureTap(model)  # the input of the last classifier
    project = ProjectionHead(tap.channels).to(device)
    contrast = DensityContrastLoss(NUM_CLASSES, tap.channels, project.out_channels).to(device)

    parameters = [*model.parameters(), *project.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-2, momentum=0.9)
    scaler = torch.amp.GradScaler(device.type, enabled=options.amp)
    for step, (images, labels) in enumerate(batches(options.steps), start=1):
        images, labels = images.to(device), labels.to(device)
        with torch.autocast(device.type, torch.float16, enabled=options.amp):
            logits = model(images)["out"]
            features = tap.pop()  # [B, D, h, w]
            small = resize_labels(labels, features.shape[-2:])
            contrast_loss = contrast(project(features), small, features)
            loss = F.cross_entropy(logits, labels, ignore_index=255) + 0.5 * contrast_loss
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        progress(step, loss, contrast_loss, contrast)
    return model, project, contrast


if __name__ == "__main__":
    main()
