"""Which implementation runs, what a warning says about it, and what happens on devices without a compiled kernel.

The tests need no such device. A call that is redispatched with another device's key set takes that device's path, but
with CPU tensors.
"""

import importlib
import os
import warnings

import oracles
import pytest
import torch
from builds import needs_extension
from test_op_contract import OPERATORS, samples

from dgcl_ops import _extension, backend, reference
from dgcl_ops.ops import _registry

KEYS = torch._C.DispatchKey
pytestmark = needs_extension  # test_without_extension.py tests builds without it


def call_as(key: str, op: str, arguments):
    overload = getattr(torch.ops.dgcl_ops, op).default
    return overload.redispatch(torch._C.DispatchKeySet(getattr(KEYS, key)), *arguments)


@pytest.fixture
def unwarned(monkeypatch):
    """As in a fresh process without DGCL_OPS_REQUIRE_COMPILED."""
    monkeypatch.setattr(_registry, "_warned_devices", set())
    monkeypatch.delenv(_extension.REQUIRE_COMPILED, raising=False)


@pytest.mark.parametrize("op", OPERATORS)
def test_every_operator_is_compiled_for_the_cpu_and_falls_back_elsewhere(op):
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has(f"dgcl_ops::{op}", "CPU")
    assert has(f"dgcl_ops::{op}", "CompositeExplicitAutograd")
    assert not has(f"dgcl_ops::{op}", "XPU")


def flat(result):
    return [] if result is None else [result] if isinstance(result, torch.Tensor) else list(result)


@pytest.mark.parametrize("key", ["XPU", "MPS"])
@pytest.mark.parametrize("op", OPERATORS)
def test_the_fallback_computes_what_the_kernel_computes(unwarned, op, key):
    """Compares outputs and mutated arguments for every sample of the operator contract."""
    for compiled_arguments, fallback_arguments in zip(samples(op), samples(op), strict=True):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            want = getattr(torch.ops.dgcl_ops, op).default(*compiled_arguments)
            got = call_as(key, op, fallback_arguments)
        tensors = [t for t in compiled_arguments if isinstance(t, torch.Tensor)]
        others = [t for t in fallback_arguments if isinstance(t, torch.Tensor)]
        for mine, theirs in zip([*flat(got), *others], [*flat(want), *tensors], strict=True):
            assert mine.dtype == theirs.dtype
            torch.testing.assert_close(mine, theirs, rtol=3e-6, atol=3e-6)
        assert flat(want) or any(bool(t.any()) for t in tensors)


def test_the_fallback_really_is_the_reference(unwarned, monkeypatch):
    """A call with another device's key reaches `reference`. A call on the CPU does not."""
    seen = []
    monkeypatch.setattr(
        reference,
        "_select",
        lambda *a, _original=reference._select: seen.append(1) or _original(*a),
    )
    arguments = [t.detach() if isinstance(t, torch.Tensor) else t for t in samples("knn_topk")[0]]
    torch.ops.dgcl_ops.knn_topk(*arguments)
    assert not seen
    with pytest.warns(UserWarning, match="knn_topk has no compiled kernel"):
        call_as("XPU", "knn_topk", arguments)
    assert seen


def test_the_fallback_warns_once_per_device_type(unwarned):
    (arguments, *_) = samples("partition_keys")
    with pytest.warns(UserWarning, match="no compiled kernel") as caught:
        call_as("XPU", "partition_keys", arguments)
    (warning,) = caught
    text = str(warning.message)
    assert text.startswith("dgcl_ops: partition_keys has no compiled kernel for device type 'cpu'")
    assert "DGCL_OPS_REQUIRE_COMPILED=1" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call_as("XPU", "partition_keys", arguments)
        call_as("XPU", "memory_push", samples("memory_push")[0])
    _registry._warned_devices.clear()
    with pytest.warns(UserWarning, match="memory_push has no compiled kernel"):
        call_as("MPS", "memory_push", samples("memory_push")[0])


def test_each_device_type_has_its_own_warning(unwarned):
    for device in ("xpu", "mps"):
        with pytest.warns(UserWarning, match=f"device type '{device}'"):
            _registry._announce_fallback("knn_topk", device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _registry._announce_fallback("knn_density", "xpu")


@pytest.mark.parametrize("value", ["1", "yes"])
def test_require_compiled_turns_the_fallback_into_an_error(unwarned, monkeypatch, value):
    monkeypatch.setenv("DGCL_OPS_REQUIRE_COMPILED", value)
    arguments = samples("memory_push")[0]
    before = [t.clone() for t in arguments[:5]]
    with pytest.raises(RuntimeError) as caught:
        call_as("XPU", "memory_push", arguments)
    assert str(caught.value) == (
        "memory_push: no compiled kernel for device type 'cpu', and DGCL_OPS_REQUIRE_COMPILED is set"
    )
    assert all(torch.equal(t, old) for t, old in zip(arguments[:5], before, strict=True))
    torch.ops.dgcl_ops.memory_push(*arguments)  # the CPU has a kernel


@pytest.mark.parametrize("value", ["", "0"])
def test_require_compiled_can_be_switched_off(unwarned, monkeypatch, value):
    monkeypatch.setenv("DGCL_OPS_REQUIRE_COMPILED", value)
    with pytest.warns(UserWarning, match="partition_keys has no compiled kernel"):
        call_as("XPU", "partition_keys", samples("partition_keys")[0])


# ---- backend_info ---------------------------------------------------------------------------------


def test_backend_info(unwarned):
    info = backend.backend_info()
    package = importlib.import_module("dgcl_ops")
    assert info["version"] == package.__version__
    assert info["torch"] == torch.__version__
    assert os.path.samefile(info["extension"], _extension._C.__file__)
    assert info["cpu_capability"] in oracles.LEVELS
    assert isinstance(info["build"], str)
    assert info["build"]
    assert info["require_compiled"] is False
    assert info["devices"]["cpu"] == {
        "implementation": "compiled",
        "reason": "the extension was built with kernels for this device type",
    }
    assert set(info["devices"]) == {"cpu", "cuda", "mps", "xpu"}
    assert info["devices"]["xpu"] == {
        "implementation": "reference",
        "reason": "the extension has no kernel for any operator on this device type",
    }


def test_backend_info_under_require_compiled(unwarned, monkeypatch):
    monkeypatch.setenv("DGCL_OPS_REQUIRE_COMPILED", "1")
    info = backend.backend_info()
    assert info["require_compiled"] is True
    assert info["devices"]["cpu"]["implementation"] == "compiled"
    assert info["devices"]["mps"]["implementation"] == "error"
    assert "DGCL_OPS_REQUIRE_COMPILED is set" in info["devices"]["mps"]["reason"]


def test_backend_info_names_what_is_missing(monkeypatch):
    """An extension that has only some of a device type's kernels."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key

    def partly(op, key):
        return op != "dgcl_ops::knn_topk_backward" if key == "XPU" else has(op, key)

    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", partly)
    monkeypatch.delenv(_extension.REQUIRE_COMPILED, raising=False)
    xpu = backend.backend_info()["devices"]["xpu"]
    assert xpu["implementation"] == "mixed"
    assert "no kernel for knn_topk_backward on" in xpu["reason"]
