"""Point clouds in a plain PyTorch loop: features [B, D, N], labels [B, N]. Clouds differ in length, so some are padded.

python examples/trainers/point_clouds.py
"""

import argparse

import torch
import torch.nn.functional as F
from tiny_data import NUM_CLASSES, progress
from torch import Tensor, nn

from dgcl_ops import DensityContrastLoss, FeatureTap, ProjectionHead

POINTS, PADDING = 512, 255


def cloud(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A floor with a box, a ball and a pole: points [3, N] and classes [N]. The last ones are padding."""
    classes = torch.arange(POINTS) % NUM_CLASSES
    flat = 2 * torch.rand(POINTS, 3, generator=generator) - 1
    side = torch.randn(POINTS, 3, generator=generator)
    on_box = side / side.abs().amax(1, keepdim=True)
    on_ball = F.normalize(side, dim=1)
    floor, pole = flat * torch.tensor([2, 2, 0]), flat * torch.tensor([0.1, 0.1, 1.0])
    forms = torch.stack([floor, 0.4 * on_box, 0.4 * on_ball, pole])
    centres = torch.rand(NUM_CLASSES, 3, generator=generator) * torch.tensor([2, 2, 1])
    points = forms[classes, torch.arange(POINTS)] + centres[classes]
    points += 0.02 * torch.randn(POINTS, 3, generator=generator)
    length = int(torch.randint(POINTS // 2, POINTS, (), generator=generator))
    points[length:], classes[length:] = 0, PADDING
    return points.T, classes


class PointNet(nn.Module):
    """A shared perceptron per point, with the maximum over the cloud as context."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.Conv1d(3, 64, 1), nn.BatchNorm1d(64), nn.ReLU())
        self.mixed = nn.Sequential(nn.Conv1d(128, 64, 1), nn.BatchNorm1d(64), nn.ReLU())
        self.classifier = nn.Conv1d(64, NUM_CLASSES, 1)

    def forward(self, points: Tensor) -> Tensor:
        local = self.local(points)  # [B, 64, N]
        context = local.amax(2, keepdim=True).expand_as(local)
        return self.classifier(self.mixed(torch.cat([local, context], 1)))


def main(
    arguments: list[str] | None = None,
) -> tuple[nn.Module, ProjectionHead, DensityContrastLoss]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    model = PointNet().to(options.device)
    tap = FeatureTap(model, "classifier")
    project = ProjectionHead(tap.channels).to(options.device)
    contrast = DensityContrastLoss(NUM_CLASSES, tap.channels, project.out_channels).to(
        options.device
    )
    optimizer = torch.optim.AdamW([*model.parameters(), *project.parameters()], lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, options.steps + 1):
        clouds = [cloud(generator) for _ in range(8)]
        points, labels = (
            torch.stack(each).to(options.device) for each in zip(*clouds, strict=True)
        )
        logits = model(points)  # [B, C, N]
        features = tap.pop()  # [B, D, N]
        contrast_loss = contrast(project(features), labels, features)
        loss = F.cross_entropy(logits, labels, ignore_index=PADDING) + 0.5 * contrast_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress(step, loss, contrast_loss, contrast)
    return model, project, contrast


if __name__ == "__main__":
    main()
