"""Accelerate with SegFormer in your own loop. Checkpoints include the memory bank and continue bit for bit.

python examples/trainers/hf_accelerate.py --steps 10 --save-at 5 --out accelerate_out
python examples/trainers/hf_accelerate.py --steps 10 --resume accelerate_out
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from tiny_data import NUM_CLASSES, batches, progress
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from dgcl_ops import DensityContrastLoss, FeatureTap, ProjectionHead, resize_labels


def main(
    arguments: list[str] | None = None,
) -> tuple[torch.nn.Module, ProjectionHead, DensityContrastLoss]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--save-at", type=int, default=5, help="write a checkpoint after this step")
    parser.add_argument("--out", type=Path, default=Path("accelerate_out"))
    parser.add_argument("--resume", type=Path, help="a checkpoint folder to continue from")
    options = parser.parse_args(arguments)

    set_seed(0)
    accelerator = Accelerator(
        # otherwise rank 0's buffers overwrite those of the other ranks
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)]
    )
    config = SegformerConfig(num_labels=NUM_CLASSES, depths=[1, 1, 1, 1])
    model = SegformerForSemanticSegmentation(config)

    tap = FeatureTap(model)  # the input of the last classifier
    project = ProjectionHead(tap.channels)
    contrast = DensityContrastLoss(
        NUM_CLASSES, tap.channels, project.out_channels, bank_capacity=1000
    ).to(accelerator.device)

    optimizer = torch.optim.AdamW([*model.parameters(), *project.parameters()], lr=1e-3)
    loader = batches(options.steps)
    model, project, optimizer, loader = accelerator.prepare(model, project, optimizer, loader)
    accelerator.register_for_checkpointing(contrast)  # saved, but not prepared

    done = 0
    if options.resume:
        accelerator.load_state(options.resume)
        done = int(contrast.bank.num_pushes)  # one push per step
    for step, (images, labels) in enumerate(
        accelerator.skip_first_batches(loader, done), start=done + 1
    ):
        output = model(pixel_values=images, labels=labels)
        features = tap.pop()  # [B, D, h, w]
        small = resize_labels(labels, features.shape[-2:])
        contrast_loss = contrast(project(features), small, features)
        loss = output.loss + 0.5 * contrast_loss
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        progress(step, loss, contrast_loss, contrast)
        if step == options.save_at:
            accelerator.save_state(options.out)
    return model, project, contrast


if __name__ == "__main__":
    main()
