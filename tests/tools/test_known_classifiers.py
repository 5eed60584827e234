"""dgcl_ops.features: FeatureTap finds the classifier of known models, and needs a path for others."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dgcl_ops.features import CLASSIFIERS, FeatureTap

# Structures of the families with their other 1x1 convolutions. tests/trainers/ has the real ones.
STRUCTURES = {
    "decode_head.classifier": ("decode_head.linear_fuse", "auxiliary_head.classifier"),
    "decode_head.conv_seg": ("decode_head.bottleneck.conv", "auxiliary_head.conv_seg"),
    "classifier.high_classifier": ("classifier.cbr.0", "classifier.low_classifier"),
    "classifier.4": ("classifier.0", "aux_classifier.4"),
    "segmentation_head.0": ("decoder.0", "classification_head.3"),
    "segmentation_head.head.4": ("segmentation_head.head.0", "decoder.0"),
    "final_conv": ("upcat_1.convs.conv_1.conv", "aux_head"),
    "final_conv_0_4": ("final_conv_0_1", "final_conv_0_3"),
    "conv_final.4.conv": ("up_samples.2.0.conv", "vae_conv_final.2.conv"),
    "output_block.conv.conv": ("upsamples.1.conv_block.conv2.conv", "skip_layers.0.conv"),
    "out.conv.conv": ("decoder1.conv_block.conv3.conv", "aux_head"),
    "out_tr.conv_block.conv": ("up_tr32.ops.0.conv_block.conv", "out_tr.conv2"),
    "model.4.conv": ("model.1.submodule.conv", "aux_head"),
    "model.4.0.conv": ("model.0.conv", "model.4.1.conv.unit0.conv"),
}


class Structure(nn.Module):
    """A network with several convolutions that runs the one at `path`, on 7 channels."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        for place in (*STRUCTURES[path][:1], path, *STRUCTURES[path][1:]):
            *parents, last = place.split(".")
            module = self
            for name in parents:
                if name not in module._modules:
                    module.add_module(name, nn.Module())
                module = module.get_submodule(name)
            module.add_module(last, nn.Conv2d(7 if place == path else 5, 3, 1))

    def forward(self, x):
        return self.get_submodule(self.path)(x)


@pytest.fixture
def in_ddp():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield lambda model: DistributedDataParallel(model, find_unused_parameters=True)
    dist.destroy_process_group()


@pytest.mark.parametrize("path", STRUCTURES)
def test_tap_finds_the_classifier(path, in_ddp):
    compiled = lambda model: torch.compile(model, backend="eager")
    for wrappers, prefix in (
        ((), ""),
        ((in_ddp,), "module."),
        ((compiled,), "_orig_mod."),
        ((in_ddp, compiled), "_orig_mod.module."),
        ((compiled, in_ddp), "module._orig_mod."),
    ):
        model = Structure(path)
        for wrap in wrappers:
            model = wrap(model)
        x = torch.randn(2, 7, 3, 3)
        with FeatureTap(model) as tap:
            assert tap.module_path == prefix + path
            assert tap.channels == 7
            model(x)
            assert torch.equal(tap.pop(), x)


def test_every_known_place_is_tested():
    assert len(STRUCTURES) == len(CLASSIFIERS)
    for path, known in zip(STRUCTURES, CLASSIFIERS, strict=True):
        assert path == known.replace("last", "4")


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1)
        self.decoder = nn.ModuleDict({"norm": nn.ReLU(), "classifier": nn.Conv2d(4, 3, 1)})


def test_tap_asks_for_a_path_and_names_the_last_convolutions():
    model = Segmenter()
    message = (
        r"FeatureTap: cannot find the classifier of Segmenter \(unknown structure\); pass module_path, the name of the "
        r"layer that outputs the class logits; the last convolutions are 'decoder.classifier' "
        r"\(4 -> 3 channels\), 'backbone' \(3 -> 4 channels\)$"
    )
    with pytest.raises(ValueError, match=message):
        FeatureTap(model)
    with pytest.raises(ValueError, match=r"of Segmenter .*'_orig_mod\.decoder\.classifier'"):
        FeatureTap(torch.compile(model))
    with pytest.raises(ValueError, match=r"of Linear .* the last convolutions are none"):
        FeatureTap(nn.Linear(2, 2))
    many = nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(7)))
    with pytest.raises(ValueError, match=r"'6' .*'5' .*'4' .*'3' .*'2' \(2 -> 2 channels\)$"):
        FeatureTap(many)


def test_tap_takes_only_convolutions_for_classifiers():
    # torchvision's VGG has a `classifier` of linear layers, for image classification.
    model = nn.Module()
    model.classifier = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    model.segmentation_head = nn.Sequential()
    with pytest.raises(ValueError, match="unknown structure"):
        FeatureTap(model)


def test_channels_are_what_the_module_says():
    assert FeatureTap(Segmenter(), "decoder.classifier").channels == 4
    assert FeatureTap(Segmenter(), "decoder.norm").channels is None
