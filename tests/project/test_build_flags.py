"""The flags for compilers that are not installed here, unusual environments, and which CUDA toolkits are accepted."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "dgcl_ops").exists():
    pytest.skip("needs the source tree, which is missing here", allow_module_level=True)

from distutils.ccompiler import CCompiler  # setuptools has it  # noqa: E402

from setuptools.errors import PlatformError  # noqa: E402
from test_build import COMPILED, Tree, plant_leftovers, script  # noqa: E402


class Compiler(CCompiler):
    """Records the calls of setuptools."""

    executables: ClassVar = {}

    def __init__(self, kind: str, command: str = "false"):
        super().__init__()
        self.compiler_type, self.compiler_so_cxx = kind, [command]
        self.compiled, self.linked = {}, {}

    def initialize(self):
        self.ready = True

    def compile(self, sources, output_dir=None, extra_postargs=(), **options):
        (source,) = sources
        self.compiled[source] = {"flags": list(extra_postargs), **options}
        return [f"{source}.o"]

    def detect_language(self, sources):
        return "c++"

    def link_shared_object(self, objects, path, **options):
        self.linked = {"objects": objects, **options}


@pytest.fixture
def build(monkeypatch):
    """Builds the extension with a Compiler, as setup.py's own command does."""
    monkeypatch.chdir(ROOT)
    for name in ("DGCL_OPS_EXTENSION", "DGCL_OPS_CUDA", "CXX", "ARCHFLAGS"):
        monkeypatch.delenv(name, raising=False)
    asked = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: asked.update(options))
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(compiler: Compiler) -> Compiler:
        values = runpy.run_path(str(ROOT / "setup.py"))
        run.torch = values["find_torch"]()[0]
        command = asked["cmdclass"]["build_ext"](setuptools.Distribution(asked | {"cmdclass": {}}))
        command.finalize_options()
        command.compiler = compiler
        (extension,) = asked["ext_modules"]
        command.build_extension(extension)
        return compiler

    return run


def test_msvc(build):
    compiler = build(Compiler("msvc"))
    assert compiler.ready
    options = compiler.compiled["csrc/cpu/simd/level_avx2.cpp"]
    assert options["flags"] == [
        *("/std:c++20", "/O2", "/fp:precise", "/EHsc", "/permissive-", "/Zc:__cplusplus")
    ]
    assert str(build.torch / "include") in options["include_dirs"]
    assert ("Py_LIMITED_API", "0x030A0000") in options["macros"]
    flags = [flag for each in compiler.compiled.values() for flag in each["flags"]]
    assert not [flag for flag in flags if flag.startswith("-") or "fast" in flag]
    assert compiler.linked["libraries"] == ["torch_cpu"]
    assert str(build.torch / "lib") in compiler.linked["library_dirs"]
    assert not [each for each in compiler.linked["extra_postargs"] if each.startswith("-")]


def test_apple_s_clang(build, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "darwin")
    clang = script(tmp_path / "clang++", "#!/bin/sh\necho Apple clang version 17.0.0\n")
    compiler = build(Compiler("unix", str(clang)))
    options = compiler.compiled["csrc/cpu/rows.cpp"]
    assert "-ffp-contract=off" in options["flags"]
    assert "-Wno-unknown-pragmas" in options["flags"]
    # No further flags: Python's own linker flags allow undefined symbols.
    assert compiler.linked["libraries"] == ["torch_cpu"]
    assert not compiler.linked["extra_postargs"]


def test_arm_has_no_flags_of_x86(build, monkeypatch, tmp_path):
    import platform

    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    compiler = build(Compiler("unix", "true"))
    flags = [flag for each in compiler.compiled.values() for flag in each["flags"]]
    assert not [flag for flag in flags if flag.startswith("-m")]


# ---- environments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", ["/nowhere/g++", None])
def test_a_build_in_place_leaves_no_older_extension(tmp_path, compiler):
    tree = Tree(tmp_path)
    plant_leftovers(tree)
    shutil.rmtree(tree.folder / "build")
    fake = {"CXX": compiler or str(tree.compiler), "FAKE_LOG": str(tree.log), "FAKE_VERSION": "g++"}
    fake |= {"FAKE_FAULT": "rows.cpp", "FAKE_ERROR": "a.cpp:1: error: no"}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=tree.folder, env=os.environ | fake, check=True)
    assert not list((tree.folder / "dgcl_ops").glob("_C.*"))
    assert "WITHOUT_EXTENSION" in (tree.folder / "dgcl_ops" / "_build.py").read_text()


def test_a_warning_does_not_hide_pytorch(tmp_path):
    """pip's build isolation: another process looks for PyTorch."""
    tree = Tree(tmp_path)
    talking = script(
        tmp_path / "python", f'#!/bin/sh\necho Warning >&2\nexec {sys.executable} "$@"\n'
    )
    isolated = "import importlib.util as u, sys; find = u.find_spec\n"
    isolated += "u.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a)\n"
    isolated += f"sys.executable = {str(talking)!r}\n"
    assert COMPILED in tree.build(before=isolated).name


# ---- CUDA -------------------------------------------------------------------------------------------


def toolkit(folder: Path, version: str) -> Path:
    text = f"""#!/bin/sh
echo "$@" >>"$0.log"
case "$*" in *--version*) echo "Cuda compilation tools, release {version}, V{version}.1";; esac
case "$*" in *"${{NVCC_FAULT:-no fault}}"*) echo "error: unsupported GNU version"; exit 1;; esac
while [ $# -gt 0 ]; do if [ "$1" = -o ]; then : >"$2"; fi; shift; done
"""
    script(folder / "bin" / "nvcc", text)
    script(folder / "lib64" / "libcudart_static.a", "")
    return folder


@pytest.fixture
def wanted_toolkit(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "csrc" / "cuda"), *sys.path])
    from toolkit import wanted_toolkit

    return wanted_toolkit


def torch_folder(folder: Path, cuda: str) -> Path:
    script(folder / "torch" / "version.py", f"cuda: Optional[str] = {cuda}\n")
    return folder / "torch"


@pytest.mark.parametrize("version", ["12.4", "12.8", "13.0"])
def test_nvcc_from_12_4_on(wanted_toolkit, monkeypatch, tmp_path, version):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "cuda", version)))
    for asked, cuda in (("1", "None"), ("", "'12.8'")):
        assert wanted_toolkit(torch_folder(tmp_path, cuda), asked).version() == version
    assert wanted_toolkit(torch_folder(tmp_path, "'12.8'"), "0") is None
    assert wanted_toolkit(torch_folder(tmp_path, "None"), "") is None


@pytest.mark.parametrize("version", ["12.3", "11.8"])
def test_an_older_nvcc(wanted_toolkit, monkeypatch, tmp_path, capsys, version):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "cuda", version)))
    rule = f"nvcc must be 12.4 or later, got {version} ({tmp_path}/cuda/bin/nvcc)"
    with pytest.raises(PlatformError) as caught:
        wanted_toolkit(torch_folder(tmp_path, "None"), "1")
    assert str(caught.value) == rule
    assert wanted_toolkit(torch_folder(tmp_path, "'12.8'"), "") is None
    assert capsys.readouterr().out == (
        f"dgcl_ops: building without CUDA kernels, though this PyTorch is a CUDA build: {rule}\n"
    )


def test_a_program_that_is_no_nvcc(wanted_toolkit, monkeypatch, tmp_path):
    script(toolkit(tmp_path / "cuda", "13.0") / "bin" / "nvcc", "#!/bin/sh\necho hello\n")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    with pytest.raises(PlatformError, match=r"nvcc must be 12\.4 or later, got unknown"):
        wanted_toolkit(torch_folder(tmp_path, "None"), "1")


def test_no_nvcc(wanted_toolkit, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(PlatformError, match=r"need nvcc and libcudart_static\.a; set CUDA_HOME"):
        wanted_toolkit(torch_folder(tmp_path, "None"), "1")
    assert wanted_toolkit(torch_folder(tmp_path, "'12.8'"), "") is None
    assert "building without CUDA kernels" in capsys.readouterr().out


def test_a_build_with_cuda_kernels(tmp_path):
    tree, cuda = Tree(tmp_path), toolkit(tmp_path / "cuda", "12.8")
    variables = {"DGCL_OPS_CUDA": "1", "CUDA_HOME": str(cuda), "DGCL_OPS_CUDA_ARCHS": "90 80"}
    assert "cp310-abi3-linux_" in tree.build(**variables).name
    calls = [
        line for line in (cuda / "bin" / "nvcc.log").read_text().splitlines() if " -c " in line
    ]
    assert len(calls) == len(list(ROOT.glob("csrc/cuda/**/*.cu")))
    assert all("-fmad=false" in line and "code=sm_90" in line for line in calls)
    assert "-gencode=arch=compute_90,code=compute_90" in calls[0]
    (linked,) = tree.calls("-shared")
    assert "-l:libcudart_static.a" in linked
    assert "gather_rows_kernel.cu.o" in linked
    assert "cuda 12.8 for sm_80, sm_90" in tree.calls(" -c ")[0]


def test_nvcc_that_fails(tmp_path):
    """If CUDA kernels were not requested, the CPU kernels are lost, too. The reason says how to build those alone."""
    tree, cuda = Tree(tmp_path), toolkit(tmp_path / "cuda", "12.8")
    torch = "import toolkit; toolkit.is_cuda_build = lambda torch: True\n"
    before = f"import sys; sys.path.insert(0, {str(tree.folder / 'csrc' / 'cuda')!r}); {torch}"
    variables = {"CUDA_HOME": str(cuda), "NVCC_FAULT": "gather_rows"}
    why = tree.build(before=before, **variables).why_pure()
    hint = "DGCL_OPS_CUDA=0 builds without CUDA kernels"
    assert why == f"error: unsupported GNU version ({hint})"
    assert "cp310-abi3" in tree.build(before=before, **variables, DGCL_OPS_CUDA="0").name


def test_requested_cuda_kernels_that_cannot_be_built_are_an_error(tmp_path):
    tree, cuda = Tree(tmp_path), toolkit(tmp_path / "cuda", "12.3")
    error = tree.error(DGCL_OPS_CUDA="1", CUDA_HOME=str(cuda))
    assert error == (
        "dgcl_ops: the extension cannot be built, and DGCL_OPS_CUDA=1 is set: "
        f"nvcc must be 12.4 or later, got 12.3 ({cuda}/bin/nvcc)"
    )
