"""A model with the loss and the head inside, sharded by both versions of FSDP. Sharded banks from the meta device."""

import copy
import warnings

import pytest
import torch
import trainer_loss
from processes import on_ranks
from torch import distributed as dist
from torch import nn
from trainer_loss import build

from dgcl_ops import ProjectionHead

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs gloo", allow_module_level=True)
pytestmark = pytest.mark.long

STEPS = 3
BFLOAT16 = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 1), ProjectionHead(8, 8, 8)
        self.contrast = build()

    def forward(self, images, labels):
        return self.contrast(self.head, labels, self.body(images))


def batch(rank: int, step: int):
    generator = torch.Generator().manual_seed(10 * rank + step)
    images = torch.randn(2, 3, 8, 8, generator=generator)
    return images, torch.randint(4, (2, 8, 8), generator=generator)


def first_version(student, buffer_dtype=None, ignore=False, **options):
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision

    precision = MixedPrecision(**BFLOAT16, buffer_dtype=buffer_dtype)
    ignored = [student.contrast] if ignore else None
    return FullyShardedDataParallel(
        student,
        device_id=torch.device("cpu"),
        mixed_precision=precision,
        ignored_modules=ignored,
        **options,
    )


def head_alone(student):
    from torch.distributed.fsdp import FullyShardedDataParallel

    student.head = FullyShardedDataParallel(student.head, device_id=torch.device("cpu"))
    return student


def second_version(student, **options):
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    for module in (student.head, student):
        fully_shard(module, mesh=mesh, **options)
    if student.body.weight.is_meta:
        student.to_empty(device="cpu")
        for module in student.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return student


WAYS = {
    "flat parameters": first_version,
    "original parameters": lambda student: first_version(student, use_orig_params=True),
    "bfloat16 buffers": lambda student: first_version(student, torch.bfloat16),
    "bfloat16 buffers, loss ignored": lambda student: first_version(student, torch.bfloat16, True),
    "head alone": head_alone,
    "second version": second_version,
    "second version, meta": second_version,
}


def train(rank: int, folder) -> dict:
    results = {}
    for name, shard in WAYS.items():
        torch.manual_seed(0)
        with torch.device("meta" if "meta" in name else "cpu"):
            student = Student()
        contrast = student.contrast
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = shard(student)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            for step in range(STEPS):
                optimizer.zero_grad()
                loss = model(*batch(rank, step))
                loss.backward()
                optimizer.step()
        contrast.bank.assert_synced()
        results[name] = {
            "loss": float(loss.detach()),
            "rows": contrast.bank.counts.tolist(),
            "dtype": str(contrast.bank.density.dtype),
            "included": contrast.included.tolist(),
            "warnings": [str(each.message) for each in caught if "MemoryBank" in str(each.message)],
        }
    return results


def sharded(rank: int, folder) -> dict:
    """A sharded bank from the meta device: emptied, then loaded in both ways. The losses of the next step."""

    def make():
        return build(placement="sharded", device="meta" if on_meta else None)

    on_meta, losses = False, {}
    expected = make()
    for step in range(STEPS):
        expected(*maps(rank, step))
    state = {
        name: copy.deepcopy(tensor) for name, tensor in expected.state_dict().items()
    }  # DTensors of this rank's shard
    on_meta = True
    for assign in (False, True):
        loss = make()
        loss = loss if assign else loss.to_empty(device="cpu")
        loss.load_state_dict(copy.deepcopy(state), assign=assign)
        losses[f"assign={assign}"] = float(loss(*maps(rank, STEPS)))
    fresh = make().to_empty(device="cpu")
    losses["new"] = [float(fresh(*maps(rank, step))) for step in range(STEPS)]
    on_meta = False
    new = make()
    losses["expected new"] = [float(new(*maps(rank, step))) for step in range(STEPS)]
    losses["expected"] = float(expected(*maps(rank, STEPS)))
    return losses


def maps(rank: int, step: int):
    return trainer_loss.batch(10 * rank + step)


def both(rank: int, folder) -> dict:
    return {"fsdp": train(rank, folder), "sharded": sharded(rank, folder)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_ranks(2, tmp_path_factory.mktemp("fsdp"), both)


def test_a_sharded_bank_from_the_meta_device(ranks):
    for result in ranks:
        losses = result["sharded"]
        assert losses["assign=False"] == losses["assign=True"] == losses["expected"] > 0
        assert losses["new"] == losses["expected new"]


def test_both_versions_train_and_keep_the_bank(ranks):
    for result in (each["fsdp"] for each in ranks):
        losses = {name: each["loss"] for name, each in result.items()}
        assert min(losses.values()) > 0
        assert len({losses[name] for name in WAYS if "buffers" in name or "param" in name}) == 1
        assert losses["head alone"] == pytest.approx(losses["second version"], rel=1e-2)
        for name, each in result.items():
            assert each["dtype"] == "torch.float32"
            assert each["included"] == [False, True, True, True]
            assert each["rows"][0] == 0 < min(each["rows"][1:])
            assert bool(each["warnings"]) == (name == "bfloat16 buffers"), name
