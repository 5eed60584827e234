"""The whole step as one graph: forward, backward and push, equal to eager, never compiled again."""

import copy

import pytest
import torch
from loss_oracle import B, C, D, E, assert_same_state, batch_of, loss_of, run, snapshot
from oracles import random_rows
from torch._dynamo.testing import CompileCounterWithBackend

from dgcl_ops.losses import PseudoLabelLoss

CONTENTS = [
    (8, 8, 8, 8, 8),
    (20, 0, 9, 1, 30),
    (0, 0, 0, 0, 0),
    (14, 14, 14, 14, 14),
    (70, 0, 0, 0, 0),
    (13, 12, 11, 10, 9),
]


@pytest.fixture(autouse=True)
def strict():
    """A second compilation of the same code is an error."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def assert_compiles_like_eager(setting, backend, dtype=torch.float32):
    eager = loss_of(**setting)
    module = copy.deepcopy(eager)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    total = 0.0
    for seed, counts in enumerate(CONTENTS):
        batch = batch_of(seed=seed, counts=counts, dtype=dtype)
        value, gradient = run(compiled, batch)
        expected, expected_gradient = run(eager, batch)
        # Fused arithmetic may round once where eager rounds twice.
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)
        assert_same_state(module, snapshot(eager))
        total += float(value)
    assert total > 0
    told, wanted = module.diagnostics(), eager.diagnostics()
    for name in ("active", "candidates", "non_finite_rows", "rows"):
        assert torch.equal(told[name], wanted[name]), name


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"anchors": "random", "keys": "average", "normalize_keys": True, "grad_scale": 0.5},
        {
            "anchors": "low_confidence",
            "keys": "high_confidence",
            "disjoint": True,
            "refresh_every": 2,
        },
        {
            "start": "all_full",
            "bank_capacity": 12,
            "backfill": False,
            "eps": 1e-6,
            "exclude_classes": (0, 3),
        },
    ],
    ids=str,
)
def test_training_step(setting):
    assert_compiles_like_eager(setting, "aot_eager")


def test_sizes_may_be_dynamic():
    loss = torch.compile(loss_of(), fullgraph=True, dynamic=True, backend="aot_eager")
    for seed in range(3):
        value, gradient = run(loss, batch_of(seed=seed))
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


def test_training_step_with_inductor():
    # Inductor may put off reads: this saw values of the bank read after the push that changed them.
    with torch._inductor.config.patch({"cpp.simdlen": 1}):  # half the time to compile
        assert_compiles_like_eager({}, "inductor")


def test_evaluation_and_autocast():
    module = loss_of()
    for seed in range(3):
        run(module, batch_of(seed=seed))
    module.eval()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for seed in range(3, 5):
        batch = batch_of(seed=seed, dtype=torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            value, gradient = run(compiled, batch)
        expected, expected_gradient = run(module, batch)
        assert torch.equal(value, expected)
        assert torch.equal(gradient, expected_gradient)


def test_a_push_by_itself():
    eager = loss_of().bank
    bank = copy.deepcopy(eager)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def push(features, projections, labels):
        bank.push(features, projections, labels)
        return bank.checksum(), bank.ready()

    for seed, counts in enumerate(CONTENTS):
        batch = batch_of(seed=seed, counts=counts)
        arguments = batch["features"], batch["projections"], batch["labels"]
        checksum, ready = push(*arguments)
        eager.push(*arguments)
        assert checksum == eager.checksum()
        assert torch.equal(ready, eager.ready())
        assert_same_state(bank, snapshot(eager))


def test_a_training_step_with_both_losses_is_one_graph():
    contrast, pseudo = loss_of(), PseudoLabelLoss()
    head = torch.nn.Conv2d(6, 4, 1)
    classifier = torch.nn.Conv2d(6, 5, 1)
    twin = copy.deepcopy(contrast)

    def step(contrast, features, labels):
        logits = classifier(features)
        return pseudo(logits, labels) + 0.5 * contrast(head(features), labels, features)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        batch = batch_of(seed=seed)
        features, labels = batch["features"], batch["labels"]
        value = compiled(contrast, features, labels)
        torch.testing.assert_close(value, step(twin, features, labels), rtol=1e-6, atol=0)
        value.backward()
    assert_same_state(contrast, snapshot(twin))


def test_all_map_sizes_share_two_graphs():
    eager = loss_of()
    module = copy.deepcopy(eager)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    with torch._dynamo.config.patch(error_on_recompile=False):
        for seed, (height, width) in enumerate([(5, 7), (6, 9), (9, 4), (12, 12)]):
            batch = {
                "projections": random_rows(B, E, height, width, seed=seed),
                "labels": torch.arange(B * height * width).view(B, height, width) % C,
                "features": random_rows(B, D, height, width, seed=seed + 100),
            }
            value, gradient = run(compiled, batch)
            expected, expected_gradient = run(eager, batch)
            assert torch.equal(value, expected)
            assert torch.equal(gradient, expected_gradient)
            assert (value > 0) == (seed > 0)
    assert counter.frame_count == 2  # one for the first size, one for any size
    assert_same_state(module, snapshot(eager))
