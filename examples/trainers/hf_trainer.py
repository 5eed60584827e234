"""Hugging Face's Trainer, unmodified, with SegFormer, gradient accumulation over two batches, and exact resume.

python examples/trainers/hf_trainer.py --steps 10 --save-at 5 --out hf_out
python examples/trainers/hf_trainer.py --steps 10 --resume hf_out/checkpoint-5
"""

import argparse
from pathlib import Path

from tiny_data import NUM_CLASSES, TinyShapes, progress
from torch import Tensor, nn
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Trainer,
    TrainingArguments,
    set_seed,
)

from dgcl_ops import DensityContrastLoss, FeatureTap, ProjectionHead, resize_labels


class WithContrast(nn.Module):
    """A Hugging Face model with the density loss. The Trainer optimizes, saves and resumes both."""

    def __init__(self, model: SegformerForSemanticSegmentation):
        super().__init__()
        self.model = model
        self.tap = FeatureTap(model)  # the input of the last classifier
        self.project = ProjectionHead(self.tap.channels)
        self.contrast = DensityContrastLoss(
            model.config.num_labels,
            self.tap.channels,
            self.project.out_channels,
            ignore_index=model.config.semantic_loss_ignore_index,
            bank_capacity=1000,
        )

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        output = self.model(pixel_values=pixel_values, labels=labels)
        features = self.tap.pop()  # [B, D, h, w]
        small = resize_labels(labels, features.shape[-2:])
        contrast_loss = self.contrast(self.project(features), small, features)
        loss = output.loss + 0.5 * contrast_loss
        progress(int(self.contrast.bank.num_pushes), loss, contrast_loss, self.contrast)
        return {"loss": loss, "logits": output.logits}


class Samples(TinyShapes):
    """Samples with the argument names of the model."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image, label = super().__getitem__(index)
        return {"pixel_values": image, "labels": label}


def make_trainer(options: argparse.Namespace) -> Trainer:
    set_seed(0)
    config = SegformerConfig(num_labels=NUM_CLASSES, depths=[1, 1, 1, 1])
    return Trainer(
        WithContrast(SegformerForSemanticSegmentation(config)),
        train_dataset=Samples(2 * 4 * options.steps),
        args=TrainingArguments(
            output_dir=options.out,
            max_steps=options.steps,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=1e-3,
            save_steps=options.save_at,
            report_to="none",
            ddp_broadcast_buffers=False,  # otherwise rank 0 sends its bank in every step
        ),
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps, two batches each")
    parser.add_argument("--save-at", type=int, default=5, help="steps between checkpoints")
    parser.add_argument("--out", type=Path, default=Path("hf_out"))
    parser.add_argument("--resume", help="a checkpoint folder to continue from")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> Trainer:
    options = parse(arguments)
    trainer = make_trainer(options)
    trainer.train(resume_from_checkpoint=options.resume)
    return trainer


if __name__ == "__main__":
    main()
