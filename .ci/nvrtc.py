"""NVRTC, CUDA's run-time compiler, through ctypes: device code to a cubin, without nvcc, a driver or a GPU.

NVRTC does not compile host code. It defines __CUDACC_RTC__, under which the sources leave host code out.
"""

import ctypes
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# NVRTC has no standard library and none of nvcc's own headers. Limits and integers come from libcu++, and mathematical
# functions are CUDA's own, as with nvcc. (libcu++'s differ between releases of CUDA 12.)
STANDARD = (
    "#pragma once\n#include <cuda/std/{name}>\nnamespace std {{ using namespace cuda::std; }}\n"
)
ONE_ARGUMENT = ("exp", "log", "sqrt", "fabs")
MATHEMATICS = "".join(
    f"template <typename T> __device__ T {name}(T x) {{ return ::{name}(x); }}\n"
    for name in ONE_ARGUMENT
)
MATHEMATICS += """
template <typename T> __device__ T fma(T a, T b, T c) { return ::fma(a, b, c); }
template <typename T> __device__ int ilogb(T x) { return ::ilogb(x); }
template <typename T> __device__ T scalbn(T x, int n) { return ::scalbn(x, n); }
"""
HEADERS = {
    "cuda_runtime.h": "",
    "stdint.h": "#include <cuda/std/cstdint>\n",
    "climits": "#include <cuda/std/climits>\n",
    "cstdint": STANDARD.format(name="cstdint"),
    "limits": STANDARD.format(name="limits"),
    "cmath": f"#pragma once\nnamespace std {{\n{MATHEMATICS}}}\n",
}
# Flags for host code, or without effect: NVRTC always optimises, and -default-device makes every function device code.
NVCC_ONLY = re.compile(r"-O\d|--expt-relaxed-constexpr|-Xcompiler=.*")


class Failed(Exception):
    """A fault that the check looks for."""


@dataclass
class Compiled:
    log: str  # of the compiler, and of ptxas -v
    ptx: str
    cubin_bytes: int


def device_flags(nvcc_flags: list[str]) -> list[str]:
    """Returns those of setup.py's flags that apply to device code."""
    kept = [flag for flag in nvcc_flags if not NVCC_ONLY.fullmatch(flag)]
    return [*kept, "-default-device", "--ptxas-options=-v"]


def install(folder: Path, requirements: Path) -> None:
    """Installs the packages of a requirements file into their own folder. A no-op if they are there."""
    done = folder / requirements.name
    if done.exists() and done.read_text() == requirements.read_text():
        return
    command = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--upgrade", "--target"]
    subprocess.run([*command, folder, "-r", requirements], check=True)
    done.write_text(requirements.read_text())


class Nvrtc:
    """The library in a folder of packages, and their headers."""

    def __init__(self, packages: Path):
        nvidia = packages / "nvidia"
        self.includes = [nvidia / "cuda_runtime" / "include", nvidia / "cuda_cccl" / "include"]
        (library,) = (nvidia / "cuda_nvrtc" / "lib").glob("libnvrtc.so.*")
        self.library = ctypes.CDLL(str(library))
        self.library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def _call(self, function: str, *arguments) -> None:
        if error := getattr(self.library, function)(*arguments):
            raise Failed(f"{function}: {self.library.nvrtcGetErrorString(error).decode()}")

    def _text(self, what: str, program) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, text)
        return text.raw

    def version(self) -> str:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    def compile(self, file: Path, kernels: list[str], arch: str, options: list[str]) -> Compiled:
        """A file's kernels, named with their template arguments, as machine code for the architecture."""
        program = ctypes.c_void_p()
        texts = strings(HEADERS.values())
        source, name = f'#include "{file.name}"\n'.encode(), b"program.cu"
        self._call(
            "nvrtcCreateProgram",
            *(ctypes.byref(program), source, name, len(HEADERS), texts, strings(HEADERS)),
        )
        try:
            for kernel in kernels:
                self._call("nvrtcAddNameExpression", program, f"dgcl::{kernel}".encode())
            paths = [f"-I{path}" for path in (*self.includes, file.parent)]
            given = [f"--gpu-architecture=sm_{arch}", *options, *paths]
            try:
                self._call("nvrtcCompileProgram", program, len(given), strings(given))
            except Failed as error:
                log = self._text("ProgramLog", program).rstrip(b"\0").decode().strip()
                raise Failed(f"{file.name}, sm_{arch}: {error}\n{log}") from None
            log = self._text("ProgramLog", program).rstrip(b"\0").decode()
            ptx = self._text("PTX", program).rstrip(b"\0").decode()
            return Compiled(log, ptx, len(self._text("CUBIN", program)))
        finally:
            self.library.nvrtcDestroyProgram(ctypes.byref(program))


def strings(values) -> ctypes.Array:
    values = [value.encode() for value in values]
    return (ctypes.c_char_p * len(values))(*values)
