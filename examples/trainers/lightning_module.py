"""A LightningModule in bfloat16. Lightning's checkpoints include the memory bank, and its state is logged.

python examples/trainers/lightning_module.py --out lightning_out
"""

import argparse
from pathlib import Path

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from tiny_data import NUM_CLASSES, batches, progress
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from dgcl_ops import DensityContrastLoss, FeatureTap, ProjectionHead, resize_labels


class Segmenter(lightning.LightningModule):
    """LR-ASPP with the density loss."""

    def __init__(self):
        super().__init__()
        self.model = lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=NUM_CLASSES
        )
        self.tap = FeatureTap(self.model)  # the input of the last classifier
        self.project = ProjectionHead(self.tap.channels)
        self.contrast = DensityContrastLoss(
            NUM_CLASSES, self.tap.channels, self.project.out_channels, bank_capacity=1000
        )

    def training_step(
        self, batch: tuple[torch.Tensor, torch.Tensor], batch_index: int
    ) -> torch.Tensor:
        images, labels = batch
        logits = self.model(images)["out"]
        features = self.tap.pop()  # [B, D, h, w]
        small = resize_labels(labels, features.shape[-2:])
        contrast_loss = self.contrast(self.project(features), small, features)
        loss = F.cross_entropy(logits, labels, ignore_index=255) + 0.5 * contrast_loss

        ready = self.contrast.diagnostics()["ready"].float().sum()
        self.log_dict({"loss": loss, "contrast": contrast_loss, "ready_classes": ready})
        progress(self.global_step + 1, loss, contrast_loss, self.contrast)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(arguments: list[str] | None = None) -> tuple[lightning.Trainer, Segmenter]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("lightning_out"))
    parser.add_argument("--resume", type=Path, help="a checkpoint to continue from")
    options = parser.parse_args(arguments)

    lightning.seed_everything(0, verbose=False)
    module = Segmenter()
    trainer = lightning.Trainer(
        max_steps=options.steps,
        precision="bf16-mixed",
        # On several GPUs use strategy=DDPStrategy(broadcast_buffers=False). Otherwise rank 0 sends its bank in every
        # step.
        logger=CSVLogger(options.out),
        log_every_n_steps=1,
        default_root_dir=options.out,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches(options.steps), ckpt_path=options.resume)
    trainer.save_checkpoint(options.out / "last.ckpt")
    return trainer, module


if __name__ == "__main__":
    main()
