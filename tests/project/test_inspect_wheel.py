"""The inspection of a wheel reports each fault that is planted in wheels built here."""

import functools
import subprocess
import sysconfig
import zipfile
from pathlib import Path

import pytest
from gpu_kit import CI, command_of

if not CI.exists():
    pytest.skip("the inspection needs .ci/, which is missing here", allow_module_level=True)
pytest.importorskip("abi3audit", reason="the inspection needs the dependency group wheel")

TAG = "cp310-abi3-manylinux_2_28_x86_64"
NAME = "dgcl_ops/_C.abi3.so"
SOURCE = """
#include <Python.h>
#include <string>
extern "C" int aoti_torch_get_dim(void*, long*);
PyMODINIT_FUNC PyInit__C() {
  std::string text(reinterpret_cast<const char*>(&aoti_torch_get_dim));
  return PyLong_FromLong(static_cast<long>(text.size()));
}
"""


@pytest.fixture(scope="module")
def inspection():
    return command_of("inspect_wheel")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiles an extension once per source."""

    @functools.cache
    def compiled(source: str, *flags: str) -> Path:
        folder = tmp_path_factory.mktemp("extension")
        (folder / "c.cpp").write_text(source)
        command = ["g++", "-shared", "-fPIC", "-I", sysconfig.get_path("include"), folder / "c.cpp"]
        subprocess.run([*command, *flags, "-o", folder / "c.so"], check=True)
        return folder / "c.so"

    return compiled


@pytest.fixture
def faults(inspection, compiled, tmp_path):
    """Returns the faults of a wheel with this extension."""

    def find(source=SOURCE, *flags, tag=TAG, inside=None, name=NAME, more=(), cuda="no"):
        wheel = tmp_path / f"dgcl_ops-0.1.0-{tag}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            told = f"Wheel-Version: 1.0\nTag: {inside or tag}\n"
            archive.writestr("dgcl_ops-0.1.0.dist-info/WHEEL", told)
            for path in (name, *more):
                archive.write(compiled(source, *flags), path)
        return inspection.faults_of(wheel, cuda)

    return find


def library(folder: Path, name: str) -> list[str]:
    """Returns flags that link an empty library of a name."""
    subprocess.run(["g++", "-shared", "-x", "c++", "/dev/null", "-o", folder / name], check=True)
    return ["-Wl,--no-as-needed", f"-L{folder}", f"-l:{name}"]


def only(faults: list[str], text: str) -> bool:
    return len(faults) == 1 and text in faults[0]


def test_a_good_wheel_has_no_faults(faults, tmp_path):
    assert faults(SOURCE, *library(tmp_path, "libtorch_cpu.so")) == []


@pytest.mark.parametrize(
    "tag",
    [
        "cp310-cp310-manylinux_2_28_x86_64",
        "cp311-abi3-manylinux_2_28_x86_64",
        "cp310-abi3-linux_x86_64",
    ],
)
def test_the_tag(faults, tag):
    assert only(faults(tag=tag), f"tag {tag}")


def test_the_tag_inside_is_that_of_the_name(faults):
    assert only(faults(inside="cp310-abi3-linux_x86_64"), "WHEEL has ['cp310-abi3-linux_x86_64']")


@pytest.mark.parametrize(
    "path",
    ["dgcl_ops.libs/libtorch_cpu-1a2b.so", "dgcl_ops/libcudart.so.13", "dgcl_ops/_D.abi3.so"],
)
def test_a_library_that_was_copied_in(faults, path):
    assert only(faults(more=[path]), f"{path}: libraries are not allowed")


def test_the_extension_is_named_for_the_limited_api(faults):
    name = "dgcl_ops/_C.cpython-311-x86_64-linux-gnu.so"
    assert faults(name=name) == [f"{name}: libraries are not allowed", f"no {NAME}"]


@pytest.mark.parametrize("name", ["libtorch.so", "libc10.so", "libcudart.so.13"])
def test_a_library_that_is_needed(faults, tmp_path, name):
    assert only(faults(SOURCE, *library(tmp_path, name)), f"needs {name}")


@pytest.mark.parametrize("kind", ["--disable-new-dtags", "--enable-new-dtags"])
def test_a_search_path(faults, kind):
    assert only(
        faults(SOURCE, "-Wl,-rpath,/build/torch/lib", f"-Wl,{kind}"), "PATH /build/torch/lib"
    )


@pytest.mark.parametrize(
    "declared",
    [
        "namespace c10 { void warn(int); } void f() { c10::warn(1); }",  # PyTorch's C++
        'extern "C" int cudaGetDevice(int*); int f() { return cudaGetDevice(nullptr); }',
    ],
)
def test_a_name_outside_the_stable_abi(faults, declared):
    (fault,) = faults(SOURCE + declared)
    assert fault.startswith("undefined ")
    assert "warn" in fault or "cudaGetDevice" in fault


@pytest.mark.parametrize(
    "called",
    [
        "PyUnicode_AsUTF8(nullptr)",  # never in the limited API before 3.13
        "PyType_GetName(nullptr)",  # since 3.11
        "_PyObject_GetDictPtr(nullptr)",  # private
    ],
)
def test_a_function_outside_the_limited_api(faults, called):
    found = faults(SOURCE + f"const void* f() {{ return {called}; }}")
    assert only(found, "abi3audit")
    assert called.split("(")[0] in found[0]


def test_cuda_kernels_must_be_as_required(faults):
    kernels = '__attribute__((section(".nv_fatbin"), used)) static const char code[64] = {1};'
    assert only(faults(SOURCE, cuda="yes"), "CUDA kernels must be: yes, got no")
    assert faults(SOURCE + kernels, cuda="yes") == []
    assert only(faults(SOURCE + kernels, cuda="no"), "CUDA kernels must be: no, got yes")
