"""A trainer and a model without special support in the library: PyTorch-Ignite and a compiled MobileViT.

python examples/trainers/ignite_mobilevit.py
"""

import argparse

import torch
from ignite.engine import Engine, Events
from tiny_data import NUM_CLASSES, batches, progress
from transformers import MobileViTConfig, MobileViTForSemanticSegmentation

from dgcl_ops import DensityContrastLoss, FeatureTap, ProjectionHead, resize_labels


def main(
    arguments: list[str] | None = None,
) -> tuple[torch.nn.Module, ProjectionHead, DensityContrastLoss]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--backend", default="inductor", help="backend of torch.compile; minutes on a CPU"
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    config = MobileViTConfig(num_labels=NUM_CLASSES, output_stride=8)
    model = MobileViTForSemanticSegmentation(config).to(options.device)

    # FeatureTap(model) alone raises an error that lists this path. Create the tap before the first compiled call.
    tap = FeatureTap(model, "segmentation_head.classifier.convolution")
    compiled = torch.compile(model, backend=options.backend)
    project = ProjectionHead(tap.channels).to(options.device)
    contrast = DensityContrastLoss(NUM_CLASSES, tap.channels, project.out_channels).to(
        options.device
    )
    optimizer = torch.optim.AdamW([*model.parameters(), *project.parameters()], lr=1e-3)

    def train_step(
        engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = (tensor.to(options.device) for tensor in batch)
        output = compiled(pixel_values=images, labels=labels)
        features = tap.pop()  # [B, D, h, w]
        small = resize_labels(labels, features.shape[-2:])
        contrast_loss = contrast(project(features), small, features)
        loss = output.loss + 0.5 * contrast_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach(), contrast_loss.detach()

    trainer = Engine(train_step)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: progress(engine.state.iteration, *engine.state.output, contrast),
    )
    trainer.run(batches(options.steps))
    return compiled, project, contrast


if __name__ == "__main__":
    main()
