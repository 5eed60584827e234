"""mmsegmentation: a decode head with the density loss for any config. Here DeepLabV3+ with MMEngine's Runner.

python examples/trainers/mmseg_head.py --out mmseg_out
"""

import argparse
from pathlib import Path

from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.models.decode_heads import DepthwiseSeparableASPPHead
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from tiny_data import NUM_CLASSES, TinyShapes
from torch import Tensor

from dgcl_ops import DensityContrastLoss, FeatureTap, ProjectionHead, resize_labels


@MODELS.register_module()
class DensityContrastHead(DepthwiseSeparableASPPHead):
    """A head with the density loss. Any head of mmsegmentation can be the base: the tap is on its `conv_seg`."""

    def __init__(
        self, contrast_weight: float = 0.5, contrast: dict | None = None, **settings: object
    ):
        super().__init__(**settings)
        self.contrast_weight = contrast_weight
        self.tap = FeatureTap(self, "conv_seg")
        self.project = ProjectionHead(self.tap.channels)
        self.contrast = DensityContrastLoss(
            self.num_classes,
            self.tap.channels,
            self.project.out_channels,
            ignore_index=self.ignore_index,
            **(contrast or {}),
        )

    def loss_by_feat(
        self, seg_logits: Tensor, batch_data_samples: list[SegDataSample]
    ) -> dict[str, Tensor]:
        losses = super().loss_by_feat(seg_logits, batch_data_samples)
        features = self.tap.pop()  # [B, D, h, w]
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)
        small = resize_labels(labels, features.shape[-2:])
        contrast_loss = self.contrast(self.project(features), small, features)
        losses["loss_contrast"] = self.contrast_weight * contrast_loss
        losses["ready_classes"] = self.contrast.diagnostics()["ready"].float().sum()
        return losses  # MMEngine logs all, and sums those whose name contains "loss"


NORM = {"type": "BN"}  # SyncBN on several GPUs
MODEL = {
    "type": "EncoderDecoder",
    "data_preprocessor": {"type": "SegDataPreProcessor", "size": (64, 64), "seg_pad_val": 255},
    "backbone": {
        "type": "ResNetV1c",
        "depth": 18,
        "strides": (1, 2, 1, 1),
        "dilations": (1, 1, 2, 4),
        "norm_cfg": NORM,
    },
    "decode_head": {
        "type": "DensityContrastHead",
        "contrast": {"bank_capacity": 1000},
        "in_channels": 512,
        "in_index": 3,
        "channels": 64,
        "dilations": (1, 2, 4),
        "c1_in_channels": 64,
        "c1_channels": 16,
        "num_classes": NUM_CLASSES,
        "norm_cfg": NORM,
    },
}


class Samples(TinyShapes):
    """Samples in the format of PackSegInputs."""

    def __getitem__(self, index: int) -> dict[str, object]:
        image, label = super().__getitem__(index)
        sample = SegDataSample(gt_sem_seg=PixelData(data=label[None]))
        return {"inputs": image, "data_samples": sample}


def main(arguments: list[str] | None = None) -> Runner:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("mmseg_out"))
    options = parser.parse_args(arguments)
    runner = Runner(
        model=MODEL,
        work_dir=str(options.out),
        train_dataloader={
            "dataset": Samples(4 * options.steps),
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "batch_size": 4,
            "collate_fn": {"type": "pseudo_collate"},
        },
        train_cfg={"by_epoch": False, "max_iters": options.steps},
        optim_wrapper={"optimizer": {"type": "AdamW", "lr": 1e-3}},
        default_hooks={"logger": {"type": "LoggerHook", "interval": 1}},
        default_scope="mmseg",
        randomness={"seed": 0},
    )
    runner.train()
    return runner


if __name__ == "__main__":
    main()
