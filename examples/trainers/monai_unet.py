"""MONAI's 3-D U-Net on volumes. The batches are MetaTensors, and labels have a channel: [B, 1, depth, H, W].

python examples/trainers/monai_unet.py
"""

import argparse

import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import RandFlipd
from tiny_data import NUM_CLASSES, progress

from dgcl_ops import DensityContrastLoss, FeatureTap, ProjectionHead, resize_labels


def volumes(number: int, size: int = 24) -> Dataset:
    """Cubes, balls and rods on a noisy background, as MONAI's dictionaries. Flipped at random."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 3, indexing="ij")
    items = []
    for _ in range(number):
        label = torch.zeros(size, size, size, dtype=torch.int64)
        for shape in (1, 2, 3):
            centre = torch.empty(3).uniform_(-0.5, 0.5, generator=generator)
            z, y, x = ((axis - middle).abs() for axis, middle in zip(axes, centre, strict=True))
            cube, ball = torch.stack([z, y, x]).amax(0) < 0.4, z**2 + y**2 + x**2 < 0.25
            label[(cube, ball, torch.maximum(y, x) < 0.2)[shape - 1]] = shape
        image = label / 3 + 0.2 * torch.randn(label.shape, generator=generator)
        items.append({"image": MetaTensor(image[None]), "label": MetaTensor(label[None])})
    return Dataset(items, RandFlipd(["image", "label"], prob=0.5, spatial_axis=0))


def main(
    arguments: list[str] | None = None,
) -> tuple[torch.nn.Module, ProjectionHead, DensityContrastLoss]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    model = UNet(3, 1, NUM_CLASSES, channels=(16, 32, 64), strides=(2, 2), num_res_units=1)
    model = model.to(options.device)

    tap = FeatureTap(model)  # the input of the last upsampling, at half the size of the volume
    project = ProjectionHead(tap.channels).to(options.device)
    contrast = DensityContrastLoss(NUM_CLASSES, tap.channels, project.out_channels).to(
        options.device
    )
    segmentation_loss = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW([*model.parameters(), *project.parameters()], lr=1e-3)
    for step, batch in enumerate(DataLoader(volumes(2 * options.steps), batch_size=2), start=1):
        images, labels = batch["image"].to(options.device), batch["label"].to(options.device)
        logits = model(images)
        features = tap.pop()  # [B, D, depth, h, w], a plain tensor
        small = resize_labels(labels, features.shape[2:])  # [B, depth, h, w]
        contrast_loss = contrast(project(features), small, features)
        loss = segmentation_loss(logits, labels) + 0.5 * contrast_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress(step, loss, contrast_loss, contrast)
    return model, project, contrast


if __name__ == "__main__":
    main()
