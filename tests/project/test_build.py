"""What setup.py decides: extension or pure Python, flags, tags, errors.

A stand-in replaces the compiler. It records its arguments, and fails on request.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "dgcl_ops").exists():
    pytest.skip("needs the source tree, which is missing here", allow_module_level=True)

COMPILER = """#!/bin/sh
echo "$@" >>"$FAKE_LOG"
case "$*" in *--version*) echo "$FAKE_VERSION"; exit 0;; esac
case "$*" in *"${FAKE_FAULT:-no fault}"*)
  printf "In file included from a.cpp\\n%s\\nand more\\n" "$FAKE_ERROR"; exit 1;; esac
while [ $# -gt 0 ]; do if [ "$1" = -o ]; then : >"$2"; fi; shift; done
"""
BUILD = "import sys; from setuptools import build_meta; print(build_meta.{}({}))"
FREE_THREADED = "import sysconfig; sysconfig.get_config_vars()['Py_GIL_DISABLED'] = 1\n"
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; sys.executable = '/bin/true'\n"
COMPILED, PURE = "cp310-abi3-linux_", "py3-none-any"


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Tree:
    """A copy of what a build needs, with a stand-in for the compiler."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder / "tree", folder / "log"
        self.folder.mkdir()
        for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md"):
            shutil.copy(ROOT / name, self.folder)
        shutil.copy(ROOT / "LICENSE", self.folder)
        left_out = shutil.ignore_patterns("*.so", "_build.py", "__pycache__")
        for name in ("dgcl_ops", "csrc"):
            shutil.copytree(ROOT / name, self.folder / name, ignore=left_out)
        self.compiler = script(folder / "bin" / "g++", COMPILER)

    def run(self, hook="build_wheel", before="", **variables) -> subprocess.CompletedProcess:
        """Calls a hook of the build backend. A variable with value None is not set."""
        fake = {"CXX": str(self.compiler), "FAKE_LOG": str(self.log), "FAKE_VERSION": "g++ 12"}
        given = {k: v for k, v in os.environ.items() if not k.startswith(("DGCL_OPS", "CXX", "CC"))}
        given |= fake | variables
        command = [
            sys.executable,
            "-c",
            before + BUILD.format(hook, "" if "requires" in hook else "'out'"),
        ]
        env = {k: v for k, v in given.items() if v is not None}
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True)

    def build(self, hook="build_wheel", before="", **variables) -> "Wheel":
        done = self.run(hook, before, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return Wheel(self.folder / "out" / done.stdout.splitlines()[-1], done.stdout)

    def error(self, **variables) -> str:
        done = self.run(**variables)
        assert done.returncode != 0, done.stdout
        return done.stderr.splitlines()[-1]

    def calls(self, word: str) -> list[str]:
        """Command lines of the stand-in that contain the word."""
        return [line for line in self.log.read_text().splitlines() if word in line]


class Wheel:
    def __init__(self, file: Path, output: str):
        self.name, self.output = file.name, output
        with zipfile.ZipFile(file) as archive:
            self.files = {name: archive.read(name) for name in archive.namelist()}

    def why_pure(self) -> str:
        """The reason kept in a wheel that is checked to be pure Python."""
        assert PURE in self.name
        (about,) = (text for name, text in self.files.items() if name.endswith("/WHEEL"))
        assert b"Root-Is-Purelib: true" in about
        assert f"Tag: {PURE}".encode() in about
        assert not [name for name in self.files if "/_C." in name]
        values: dict = {}
        exec(self.files["dgcl_ops/_build.py"], values)
        assert f"built without the extension: {values['WITHOUT_EXTENSION']}" in self.output
        return values["WITHOUT_EXTENSION"]


@pytest.fixture
def tree(tmp_path) -> Tree:
    return Tree(tmp_path)


def plant_leftovers(tree: Tree) -> None:
    """What earlier builds left: an extension, and the reason why there was none."""
    machine = os.uname().machine
    version = f"{sys.implementation.cache_tag}"
    for folder in ("lib", f"lib.linux-{machine}-{version}"):
        for name in ("_C.abi3.so", "_build.py"):
            script(tree.folder / "build" / folder / "dgcl_ops" / name, "OLD = 1\n")
    script(tree.folder / "dgcl_ops" / "_build.py", "OLD = 1\n")
    script(tree.folder / "dgcl_ops" / "_C.abi3.so", "OLD")


# ---- with the extension -----------------------------------------------------------------------------


def test_a_build_with_the_extension(tree):
    plant_leftovers(tree)
    wheel = tree.build(DGCL_OPS_EXTENSION="1")
    assert COMPILED in wheel.name
    assert wheel.files["dgcl_ops/_C.abi3.so"] == b""  # the stand-in's
    assert "dgcl_ops/_build.py" not in wheel.files
    compiled = tree.calls(" -c ")
    assert len(compiled) == len(
        list(ROOT.glob("csrc/*.cpp")) + list(ROOT.glob("csrc/[oc]p*/**/*.cpp"))
    )
    macros = ("-DPy_LIMITED_API=0x030A0000", "-DTORCH_TARGET_VERSION=0x020a000000000000")
    for flag in ("-std=c++20", "-ffp-contract=off", "-fvisibility=hidden", *macros, "-isystem"):
        assert all(flag in call for call in compiled)
    assert not [call for call in compiled if "-ffast-math" in call or "-march" in call]
    (wide,) = (call for call in compiled if "level_avx2.cpp" in call)
    assert ("-mavx2" in wide) == (os.uname().machine == "x86_64")
    (widest,) = (call for call in compiled if "level_avx512_vnni.cpp" in call)
    assert ("-mavx512vnni" in widest) == (os.uname().machine == "x86_64")
    assert not [call for call in compiled if "-mavx" in call and "level_avx" not in call]
    (linked,) = tree.calls("-shared")
    assert re.search(r"-lstdc\+\+ -ltorch_cpu", linked)
    assert "-Wno-unknown-pragmas" not in linked + wide


def test_clang_has_its_own_flags(tree):
    tree.build(FAKE_VERSION="Debian clang version 14.0.6", DGCL_OPS_EXTENSION="1")
    assert all("-Wno-unknown-pragmas" in call for call in tree.calls(" -c "))
    assert "-lstdc++ -ltorch_cpu" in tree.calls("-shared")[0]


def test_libcxx_comes_before_pytorch(tree):
    version = "clang version 14"
    tree.build(FAKE_VERSION=version, CXX=f"{tree.compiler} -stdlib=libc++", DGCL_OPS_EXTENSION="1")
    assert "-lc++ -ltorch_cpu" in tree.calls("-shared")[0]


# ---- without ----------------------------------------------------------------------------------------


def test_no_compiler(tree):
    plant_leftovers(tree)
    why = tree.build(CXX=None, PATH=str(tree.folder)).why_pure()
    assert re.fullmatch(r"no C\+\+ compiler found \(\S+: not found\)", why)


def test_not_wanted(tree):
    plant_leftovers(tree)
    assert tree.build(DGCL_OPS_EXTENSION="0").why_pure() == "DGCL_OPS_EXTENSION=0"
    assert not tree.log.exists()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("rows.cpp", "csrc/cpu/rows.h:3:10: fatal error: nothing.h: No such file or directory"),
        ("-shared", "/usr/bin/ld: x.o: undefined reference to `dgcl::nothing()'"),
    ],
)
def test_a_compile_error(tree, fault, error):
    """The build falls back to pure Python, or fails if the extension was requested."""
    plant_leftovers(tree)
    variables = {"FAKE_FAULT": fault, "FAKE_ERROR": error}
    assert tree.build(**variables).why_pure() == error
    assert tree.error(**variables, DGCL_OPS_EXTENSION="1") == (
        f"dgcl_ops: the extension cannot be built, and DGCL_OPS_EXTENSION=1 is set: {error}"
    )


def test_an_error_that_cannot_be_printed(tree):
    """A compiler prints quotes that the terminal cannot encode."""
    error = "a.cpp:1: error: \u2018x\u2019 was not declared"
    fault = {"FAKE_FAULT": "rows.cpp", "FAKE_ERROR": error, "PYTHONIOENCODING": "ascii"}
    assert "built without the extension: a.cpp:1: error: " in tree.build(**fault).output


@pytest.mark.parametrize("named", ["  ", '"g++'])
def test_cxx_that_names_no_compiler(tree, named):
    assert tree.build(CXX=named).why_pure() == f"CXX must name a compiler, got {named!r}"


def test_free_threaded_python(tree):
    why = tree.build(before=FREE_THREADED).why_pure()
    assert why.startswith("free-threaded Python has no limited API")
    error = tree.error(before=FREE_THREADED, DGCL_OPS_EXTENSION="1")
    assert error.startswith("dgcl_ops: the extension cannot be built, and DGCL_OPS_EXTENSION=1 is")


def test_no_pytorch(tree):
    why = tree.build(before=WITHOUT_TORCH).why_pure()
    assert why == "PyTorch 2.10 or later must be installed before the build"


def test_pip_is_asked_for_pytorch_only_where_a_compiler_can_use_it(tree):
    hook = "get_requires_for_build_wheel"
    asked = lambda **more: tree.run(hook, WITHOUT_TORCH, **more).stdout.splitlines()[-1]
    assert asked() == "['torch>=2.10']"
    assert asked(CXX="/nowhere/g++") == "[]"
    assert asked(DGCL_OPS_EXTENSION="0") == "[]"
    assert tree.run(hook).stdout.splitlines()[-1] == "[]"


def test_an_older_pytorch_is_refused(tree, tmp_path):
    script(tmp_path / "site" / "torch" / "__init__.py", "")
    script(
        tmp_path / "site" / "torch-2.9.1.dist-info" / "METADATA", "Name: torch\nVersion: 2.9.1\n"
    )
    path = {"PYTHONPATH": str(tmp_path / "site")}
    assert tree.error(**path) == "dgcl_ops needs PyTorch 2.10 or later, found 2.9.1."
    assert tree.build(**path, DGCL_OPS_EXTENSION="0").why_pure()


def test_an_editable_install(tree):
    plant_leftovers(tree)
    package = tree.folder / "dgcl_ops"
    wheel = tree.build("build_editable", CXX="/nowhere/g++")
    assert PURE in wheel.name
    assert "/nowhere/g++: not found" in (package / "_build.py").read_text()
    assert not (package / "_C.abi3.so").exists()
    wheel = tree.build("build_editable")
    assert (package / "_C.abi3.so").exists()
    assert not (package / "_build.py").exists()
    fault = {"FAKE_FAULT": "rows.cpp", "FAKE_ERROR": "a.cpp:1: error: no"}
    wheel = tree.build("build_editable", **fault)
    assert PURE in wheel.name
    assert "a.cpp:1: error: no" in (package / "_build.py").read_text()
    assert not (package / "_C.abi3.so").exists()


def test_an_sdist_builds_both_ways(tree, tmp_path):
    plant_leftovers(tree)
    done = tree.run("build_sdist", CXX="/nowhere/g++")
    shutil.unpack_archive(tree.folder / "out" / done.stdout.splitlines()[-1], tmp_path / "unpacked")
    (tree.folder,) = (tmp_path / "unpacked").iterdir()
    assert not list(tree.folder.rglob("_build.py"))
    assert tree.build(DGCL_OPS_EXTENSION="0").why_pure()
    assert COMPILED in tree.build(DGCL_OPS_EXTENSION="1").name


# ---- wrong requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        (
            {"DGCL_OPS_EXTENSION": "yes"},
            "dgcl_ops: DGCL_OPS_EXTENSION must be 0, 1 or unset, got yes",
        ),
        (
            {"DGCL_OPS_CUDA_ARCHS": "80;sm_90"},
            'dgcl_ops: DGCL_OPS_CUDA_ARCHS must be numbers as in "80 86 89 90", got 80;sm_90',
        ),
        ({"DGCL_OPS_CUDA": "2"}, "dgcl_ops: DGCL_OPS_CUDA must be 0, 1 or unset, got 2"),
        (
            {"DGCL_OPS_EXTENSION": "0", "DGCL_OPS_CUDA": "1"},
            "dgcl_ops: DGCL_OPS_CUDA=1 needs the extension, got DGCL_OPS_EXTENSION=0",
        ),
        (
            {"DGCL_OPS_CUDA": "1", "CXX": "/nowhere/g++"},
            "dgcl_ops: the extension cannot be built, and DGCL_OPS_CUDA=1 is set: "
            "no C++ compiler found (/nowhere/g++: not found)",
        ),
        (
            {"DGCL_OPS_EXTENSION": "1", "CXX": "/nowhere/g++"},
            "dgcl_ops: the extension cannot be built, and DGCL_OPS_EXTENSION=1 is set: "
            "no C++ compiler found (/nowhere/g++: not found)",
        ),
    ],
)
def test_a_request_that_cannot_be_met_is_an_error(tree, variables, error):
    assert tree.error(**variables) == error
