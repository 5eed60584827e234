"""A build without the compiled extension: every device uses plain PyTorch, with a warning.

`.ci/check_pure` builds such a wheel and runs the operators' tests with it. Here a child process hides the extension.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dgcl_ops
from dgcl_ops import _extension, reference
from dgcl_ops._checkout import submodule_folders
from dgcl_ops.ops import _checks, _registry
from dgcl_ops.reference import backward as reference_backward

HIDDEN = "import sys, warnings; sys.modules['dgcl_ops._C'] = None\n"
SEARCH = "import torch, dgcl_ops; dgcl_ops.knn_topk(torch.ones(2, 3), torch.ones(4, 3), 2)\n"


def child(code: str, **variables) -> str:
    """What a new process prints, errors last."""
    env = {"PATH": "", "PYTHONPATH": str(Path(dgcl_ops.__file__).parent.parent), **variables}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True)
    return done.stdout + done.stderr


def test_backend_info_says_why():
    info = eval(child(HIDDEN + "import dgcl_ops; print(dgcl_ops.backend_info())"))
    assert info["extension"] is None
    assert info["cpu_capability"] is None
    reason = info["build"].removeprefix("without the extension: ")
    assert reason != info["build"]
    for serving in info["devices"].values():
        assert serving["implementation"] == "reference"
        assert serving["reason"] == f"built without the extension: {reason}"


def test_the_reason_is_the_build_s():
    build = "sys.modules['dgcl_ops._build'] = type(sys)('_build')\n"
    build += "build = sys.modules['dgcl_ops._build']; build.WITHOUT_EXTENSION = 'no luck'\n"
    build += (
        "import importlib.machinery as m; build.__spec__ = m.ModuleSpec('dgcl_ops._build', None)\n"
    )
    output = child(HIDDEN + build + "import dgcl_ops; print(dgcl_ops.backend_info()['build'])")
    assert output == "without the extension: no luck\n"


def test_the_first_call_warns_once():
    output = child(HIDDEN + SEARCH + SEARCH)
    assert output.count("UserWarning") == 1
    assert "dgcl_ops: this build has no compiled extension (" in output
    assert "plain PyTorch runs on device type 'cpu'" in output
    assert "DGCL_OPS_EXTENSION=1" in output


LOSS = """import torch, dgcl_ops
loss = dgcl_ops.DensityContrastLoss(3, 4)
loss(torch.ones(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64))
"""


@pytest.mark.parametrize(("code", "line"), [(SEARCH, 2), (LOSS, 4)])
def test_the_warning_names_the_callers_line(code, line):
    """The warning names no line of dgcl_ops or PyTorch, even if the call goes through torch.nn.Module."""
    assert f"<string>:{line}: UserWarning: dgcl_ops: this build" in child(HIDDEN + code)


def test_compiled_kernels_can_be_required():
    output = child(HIDDEN + SEARCH, DGCL_OPS_REQUIRE_COMPILED="1")
    assert "RuntimeError: knn_topk: no compiled kernel for device type 'cpu', and" in output
    assert "is set (built without the extension: " in output


def test_another_tree_s_extension_is_not_taken(tmp_path):
    """As with a pure package in PYTHONPATH before an editable install that has an extension."""
    package = Path(dgcl_ops.__file__).parent
    copy_sources(tmp_path)
    (tmp_path / "dgcl_ops" / "_build.py").write_text("WITHOUT_EXTENSION = 'a test'")
    (extension,) = package.glob("_C.*")
    finder = f"""
import importlib.abc, importlib.util, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "dgcl_ops._C":
            return importlib.util.spec_from_file_location(name, {str(extension)!r})
sys.meta_path.append(Finder())
import dgcl_ops
print(dgcl_ops.backend_info()["extension"])
"""
    assert child(finder, PYTHONPATH=str(tmp_path)) == "None\n"


def test_sources_that_were_not_built_give_way_to_the_installed_package(tmp_path):
    """As in a checkout after `pip install .`, where Python finds the source folder first."""
    copy_sources(tmp_path / "checkout")
    site = tmp_path / "site"
    site.mkdir()
    (site / "dgcl_ops").symlink_to(Path(dgcl_ops.__file__).parent)
    path = os.pathsep.join([str(tmp_path / "checkout"), str(site)])
    ask = "import dgcl_ops; print(dgcl_ops.backend_info()['extension'], dgcl_ops.ops.__file__)"
    output = child(ask, PYTHONPATH=path)
    installed = Path(dgcl_ops.__file__).parent
    assert f"{dgcl_ops.backend_info()['extension']} {installed}/ops/__init__.py" in output
    assert "checkout/dgcl_ops holds sources that were not built" in output
    assert "`pip install -e .` builds and uses them" in output


@pytest.mark.filterwarnings("error")
def test_built_or_lonely_sources_are_used(tmp_path, monkeypatch):
    installed = str(Path(dgcl_ops.__file__).parent)
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(Path(installed).parent)])
    (tmp_path / "dgcl_ops").mkdir()
    assert submodule_folders([installed]) == [installed]
    sources = [str(tmp_path / "dgcl_ops")]
    (tmp_path / "dgcl_ops" / "_build.py").touch()  # built without the extension
    assert submodule_folders(sources) == sources
    (tmp_path / "dgcl_ops" / "_build.py").unlink()
    with pytest.raises(UserWarning, match="the installed package is used"):
        submodule_folders(sources)
    monkeypatch.setattr(sys, "path", [str(tmp_path), "/nowhere"])  # nothing is installed
    assert submodule_folders(sources) == sources


def copy_sources(folder):
    leave = shutil.ignore_patterns("_C.*", "_build.py", "__pycache__")
    shutil.copytree(Path(dgcl_ops.__file__).parent, folder / "dgcl_ops", ignore=leave)


def test_an_extension_that_does_not_load_is_an_error(tmp_path):
    (tmp_path / "broken.so").write_bytes(b"no library")
    broken = f"""
import importlib.abc, importlib.util, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "dgcl_ops._C":
            return importlib.util.spec_from_file_location(name, {str(tmp_path / "broken.so")!r})
sys.meta_path.insert(0, Finder())
import dgcl_ops
"""
    output = child(broken)
    assert (
        "ImportError: dgcl_ops: the compiled extension dgcl_ops._C is installed but failed"
        in output
    )
    assert "pip install --no-build-isolation -e ." in output


@pytest.mark.parametrize("version", ["2.9.1", "2.9.1+cu128", "1.13.0", "2.9.0a0+git1234"])
def test_an_older_pytorch_is_refused(version):
    with pytest.raises(ImportError) as caught:
        _extension._refuse_old_torch(version)
    assert str(caught.value) == f"dgcl_ops needs PyTorch 2.10 or later, found {version}."


def test_the_import_is_refused_with_an_older_pytorch():
    output = child("import torch; torch.__version__ = '2.9.1'; import dgcl_ops")
    assert (
        output.splitlines()[-1] == "ImportError: dgcl_ops needs PyTorch 2.10 or later, found 2.9.1."
    )


@pytest.mark.parametrize("version", ["2.10.0", "2.10.0a0+git1234", "2.15.1+cpu", "3.0.0"])
def test_a_later_pytorch_is_not(version):
    _extension._refuse_old_torch(version)


def test_rows_without_numbers_are_zero_rows():
    """As in the compiled kernels: all logits are 0."""
    given = torch.ones(2, 3, 0), torch.ones(2, 0), torch.ones(2, 4, 0)
    loss, lse = reference.density_contrast_with_lse(*given)
    torch.testing.assert_close(lse, torch.full((2, 3), 5.0).log())
    gradients = reference_backward.density_contrast_backward(loss, *given, lse, 0.5)
    assert [g.shape for g in gradients] == [part.shape for part in given]
    ring = torch.zeros(2, 4, 0), torch.zeros(2, 4, 3), torch.zeros(2, 4)
    counts = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    arriving = torch.ones(2, 2, 0), torch.ones(2, 2, 3), torch.ones(2, 2), torch.tensor([1, 2])
    reference.memory_push(*ring, *counts, *arriving, normalize=True)
    assert counts[0].tolist() == [1, 2]


def test_numbers_in_errors_are_the_kernels_own():
    anchors, keys, negatives = torch.ones(2, 3, 4), torch.ones(2, 4), torch.ones(2, 5, 4)
    names = _registry.argument_names("density_contrast")
    for temperature, eps in ((-1.0, 0.0), (0.5, -1.0), (0.5, -1e-30)):
        call = (anchors, keys, negatives, temperature, None, None, eps)
        with pytest.raises(RuntimeError) as plain:
            _checks.check("density_contrast", dict(zip(names, call, strict=True)))
        with pytest.raises(RuntimeError) as served:
            torch.ops.dgcl_ops.density_contrast(*call)
        assert str(plain.value) == str(served.value).splitlines()[0]


# ---- memory -----------------------------------------------------------------------------------------


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the most numbers that a new tensor holds."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        outputs = function(*arguments, **(options or {}))
        for tensor in torch.utils._pytree.tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor):
                held = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.numbers = max(self.numbers, held)
        return outputs


def rows(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def contrast(groups, anchors, negatives, needs_key_grad=True):
    given = rows(groups, anchors, 4), rows(groups, 4), rows(groups, negatives, 4)
    loss, lse = reference.density_contrast_with_lse(*given)
    return (
        loss,
        lse,
        *reference_backward.density_contrast_backward(
            torch.ones_like(loss), *given, lse, 0.5, needs_key_grad=needs_key_grad
        ),
    )


def grouped():
    return {"query_offsets": torch.tensor([0, 150, 300]), "bank_counts": torch.tensor([190, 7])}


def topk_and_gradients(metric="cosine"):
    queries, bank = rows(300, 4), rows(2, 200, 4)
    values, indices = reference.knn_topk(queries, bank, 5, metric, **grouped(), exclude_self=True)
    offsets = grouped()["query_offsets"]
    return (
        values,
        indices,
        *reference_backward.knn_topk_backward(
            torch.ones_like(values), queries, bank, values, indices, metric, offsets
        ),
    )


CALLS = {
    "search, cosine": topk_and_gradients,
    "search, l2": lambda: topk_and_gradients("l2"),
    "density": lambda: (reference.knn_density(rows(300, 4), rows(200, 4), (3, 5)),),
    "contrast, many groups": lambda: contrast(300, 10, 20),
    "contrast, one large group": lambda: contrast(1, 300, 200),
    "silhouette": lambda: (reference.silhouette_sums(rows(300, 4), torch.tensor([0, 100, 300])),),
}


@pytest.mark.parametrize("name", CALLS)
def test_plain_pytorch_takes_blocks(monkeypatch, name):
    """60,000 scores in blocks of at most 4,096. Nothing is larger, and results are the same as with one block."""
    with Largest() as whole:
        want = CALLS[name]()
    assert whole.numbers > 28_000
    largest_given = 24_000 if name == "contrast, many groups" else 2_000
    monkeypatch.setattr(reference, "CHUNK_ELEMENTS", 4096)
    with Largest() as blocks:
        got = CALLS[name]()
    assert blocks.numbers <= max(4096 + 300, largest_given)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_block_has_at_most_64_mib():
    assert reference.CHUNK_ELEMENTS * torch.float64.itemsize <= 64 * 2**20


def test_a_row_may_be_longer_than_a_block(monkeypatch):
    monkeypatch.setattr(reference, "CHUNK_ELEMENTS", 7)
    for call in CALLS.values():
        if call is not CALLS["contrast, many groups"]:
            call()
