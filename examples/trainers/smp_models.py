"""segmentation_models.pytorch with a teacher that labels unlabelled images and skips uncertain pixels.

python examples/trainers/smp_models.py --model Unet
"""

import argparse

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from tiny_data import NUM_CLASSES, batches, progress
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dgcl_ops import (
    DensityContrastLoss,
    FeatureTap,
    ProjectionHead,
    PseudoLabelLoss,
    entropy_filter,
    resize_labels,
)
from dgcl_ops.schedules import classification_drop_fraction, contrast_drop_fraction

MODELS = ("Unet", "DeepLabV3Plus", "FPN")


def main(
    arguments: list[str] | None = None,
) -> tuple[torch.nn.Module, ProjectionHead, DensityContrastLoss]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    device = torch.device(options.device)
    model = smp.create_model(
        options.model, encoder_name="resnet18", encoder_weights=None, classes=NUM_CLASSES
    ).to(device)
    teacher = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))

    # U-Net classifies at full image size. Pooling its features to stride 4 leaves a sixteenth of the pixels.
    tap = FeatureTap(model, feature_stride=4 if options.model == "Unet" else None)
    project = ProjectionHead(tap.channels).to(device)
    contrast = DensityContrastLoss(NUM_CLASSES, tap.channels, project.out_channels).to(device)
    pseudo_label_loss = PseudoLabelLoss()

    optimizer = torch.optim.AdamW([*model.parameters(), *project.parameters()], lr=1e-3)
    labelled, unlabelled = batches(options.steps), batches(options.steps, first=10_000)
    for step, ((images, labels), (others, _)) in enumerate(
        zip(labelled, unlabelled, strict=True), start=1
    ):
        images, labels, others = images.to(device), labels.to(device), others.to(device)
        with torch.no_grad():
            teacher_logits = teacher(others)
        done = step / options.steps
        pseudo = entropy_filter(teacher_logits, 1 - classification_drop_fraction(done))
        reliable = entropy_filter(teacher_logits, 1 - contrast_drop_fraction(done))

        logits = model(torch.cat((images, others)))
        features = tap.pop()  # [B, D, h, w]
        small = resize_labels(torch.cat((labels, reliable)), features.shape[-2:])
        contrast_loss = contrast(project(features), small, features)
        supervised, unsupervised = logits.split(len(images))
        loss = F.cross_entropy(supervised, labels, ignore_index=255)
        loss = loss + 0.5 * pseudo_label_loss(unsupervised, pseudo) + 0.5 * contrast_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        teacher.update_parameters(model)
        progress(step, loss, contrast_loss, contrast)
    return model, project, contrast


if __name__ == "__main__":
    main()
