"""The examples for trainers, with the real packages. If a package is missing, all these tests are skipped."""

import importlib
import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest
import torch

from dgcl_ops import ProjectionHead

PACKAGES = (
    "accelerate",
    "ignite",
    "lightning",
    "mmseg",
    "monai",
    "segmentation_models_pytorch",
    "torchvision",
    "transformers",
)
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "trainers"


@pytest.fixture(scope="session", autouse=True)
def packages():
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (.ci/check_trainers installs and runs these)")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")


@pytest.fixture
def example(monkeypatch):
    """Imports an example by name, as `python examples/trainers/NAME.py` does."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


@pytest.fixture
def printed(capsys):
    """Returns what the steps have printed: [(step, loss, contrast, ready classes)]."""
    pattern = r"step (\d+): loss (\S+), contrast (\S+), (\d+) of 4 classes ready"

    def read():
        lines = re.findall(pattern, capsys.readouterr().out)
        return [(int(s), float(loss), float(contrast), int(n)) for s, loss, contrast, n in lines]

    return read


@pytest.fixture
def reached(monkeypatch):
    """Records for each backward pass the features' dtype and the size of the contrast's gradient."""
    seen = []
    forward = ProjectionHead.forward

    def watched(self, features):
        branch = features.view_as(features)
        branch.register_hook(lambda gradient: seen.append((branch.dtype, gradient.abs().max())))
        return forward(self, branch)

    monkeypatch.setattr(ProjectionHead, "forward", watched)
    return seen


@pytest.fixture
def trains(printed, reached):
    """Checks that a run printed, filled the bank, and trained head and model by the contrast."""

    def check(project, contrast, *, steps, lines=None):
        lines = printed() if lines is None else lines
        assert [line[0] for line in lines] == list(range(1, steps + 1))
        assert all(torch.isfinite(torch.tensor(line)).all() for line in lines)
        assert lines[0][2] == 0  # no class is ready before the first push
        assert lines[-1][3] == 4
        assert lines[-1][2] > 0
        bank = contrast.bank
        assert bank.num_pushes == steps
        assert bank.ready().all()
        assert bank.features[bank.valid_slots()].float().norm(dim=-1).gt(0).all()
        gradients = [size for _, size in reached]
        assert len(gradients) == steps
        assert gradients[0] == 0
        assert gradients[-1] > 0
        for parameter in project.parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all()

    return check


@pytest.fixture
def compiled_ops_of_mmcv(monkeypatch):
    """Replaces mmcv's compiled operators. mmcv-lite lacks them, and mmseg imports them for other heads."""
    if importlib.util.find_spec("mmcv._ext"):
        return

    def absent(*arguments, **options):
        raise NotImplementedError("a compiled operator of mmcv was called")

    ops = types.ModuleType("mmcv.ops")
    for name in ("CrissCrossAttention", "PSAMask", "point_sample", "sigmoid_focal_loss"):
        setattr(ops, name, absent)
    monkeypatch.setitem(sys.modules, "mmcv.ops", ops)
