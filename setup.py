"""Builds dgcl_ops: with the compiled extension dgcl_ops._C if possible, else as pure Python.

The extension needs a C++20 compiler, PyTorch's headers and one of its libraries to link with. It is not tied to one
build of PyTorch: a wheel built with a CPU build also runs with CUDA builds and with later releases. This also holds for
wheels with CUDA kernels. They link the CUDA runtime statically and load without a driver.

    DGCL_OPS_EXTENSION   1: a failed build is an error. 0: pure Python. Unset: pure Python if the build fails; the
                         reason is printed and kept in dgcl_ops/_build.py
    DGCL_OPS_CUDA        1: with CUDA kernels. 0: without. Unset: with, if PyTorch is a CUDA build and nvcc is found
    DGCL_OPS_CUDA_ARCHS  compute capabilities, by default "80 86 89 90", plus PTX of the last one for later devices
    CUDA_HOME            the CUDA toolkit. Default: the toolkit of nvcc in PATH, or the nvidia-cuda-nvcc package
    CXX, CXXFLAGS        the compiler and its flags, as setuptools reads them

Tested with g++ 12 and clang++ 14 on Linux. Apple's clang and MSVC are untested; their flags come from documentation.
MSVC's cl does not support the kernels' vector types, so a build with it should fall back to pure Python.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError, CCompilerError, CompileError, PlatformError

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "csrc" / "cuda"))
from toolkit import architectures, is_older, run, wanted_toolkit  # noqa: E402

MINIMUM_TORCH = (2, 10)
TORCH_NAME = ".".join(map(str, MINIMUM_TORCH))
TORCH_TARGET = f"0x{MINIMUM_TORCH[0]:02x}{MINIMUM_TORCH[1]:02x}000000000000"  # of the stable ABI
X86 = platform.machine() in ("x86_64", "AMD64")
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "dgcl_ops" / "__init__.py").read_text())[1]
# No contraction and no reordering: the canonical sums define where a product and a sum are fused.
FLAGS = ["-std=c++20", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]
CLANG_FLAGS = [
    "-Wno-unknown-pragmas",
    "-Wno-unknown-warning-option",
]  # pragmas and warnings that only GCC knows
MSVC_FLAGS = ["/std:c++20", "/O2", "/fp:precise", "/EHsc", "/permissive-", "/Zc:__cplusplus"]
AVX512_FLAGS = [
    *["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"],
    *["-mprefer-vector-width=512", "-Wno-maybe-uninitialized", "-Wno-uninitialized"],
]
LEVEL_FLAGS = {  # instruction sets beyond the baseline, one file each, chosen at run time
    "level_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "level_avx512.cpp": AVX512_FLAGS,
    "level_avx512_vnni.cpp": [*AVX512_FLAGS, "-mavx512vnni"],
    "level_avx512_amx.cpp": [*AVX512_FLAGS, "-mavx512vnni", "-mamx-tile", "-mamx-int8"],
}
NVCC_FLAGS = [
    *["-std=c++20", "-O3", "-fmad=false", "--expt-relaxed-constexpr"],
    "-Xcompiler=-fPIC,-fvisibility=hidden",
]
FIND_TORCH = (
    "import importlib.util, importlib.metadata as m; s = importlib.util.find_spec('torch');"
    "print(s.submodule_search_locations[0] if s else ''); print(m.version('torch') if s else '')"
)


def choice(name: str) -> str:
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"dgcl_ops: {name} must be 0, 1 or unset, got {value}")
    return value


EXTENSION, CUDA, ARCHS = choice("DGCL_OPS_EXTENSION"), choice("DGCL_OPS_CUDA"), architectures()
if EXTENSION == "0" and CUDA == "1":
    raise SystemExit("dgcl_ops: DGCL_OPS_CUDA=1 needs the extension, got DGCL_OPS_EXTENSION=0")
# If the extension or CUDA kernels were requested, a failed build is an error.
REQUIRED_BY = {EXTENSION: "DGCL_OPS_EXTENSION=1", CUDA: "DGCL_OPS_CUDA=1"}.get("1")


def find_torch():
    """Folder and version of PyTorch in the build's own environment, else in pip's environment, else None."""
    spec = importlib.util.find_spec("torch")
    if spec:
        folder, version = spec.submodule_search_locations[0], importlib.metadata.version("torch")
    else:  # pip's build isolation uses PYTHONPATH to hide the environment's packages
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        code, output = run(sys.executable, "-c", FIND_TORCH, env=env)
        # The last two lines: warnings may come first.
        folder, version = ["", "", *output.splitlines()][-2:] if code == 0 else ("", "")
    return (Path(folder), version) if folder else None


def known_obstacle() -> str | None:
    """Why the extension cannot be built, if that is known before anything is compiled."""
    if EXTENSION == "0":
        return "DGCL_OPS_EXTENSION=0"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "free-threaded Python has no limited API before 3.15, and the later one is untested"
    named = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    try:
        compiler = shlex.split(named)[0]
    except (ValueError, IndexError):
        return f"CXX must name a compiler, got {named!r}"
    if os.name == "posix" and not shutil.which(compiler):
        return f"no C++ compiler found ({compiler}: not found)"
    return None


OBSTACLE = known_obstacle()


def say(text: str) -> None:
    """Prints a tool's output even if the terminal's encoding lacks some characters."""
    code = sys.stdout.encoding or "utf-8"
    print(text.encode(code, "backslashreplace").decode(code), flush=True)


def first_error(output: str) -> str:
    """The line of a compiler's or linker's output that names the error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    marks = r"\berror\b|undefined reference|undefined symbol|cannot find"
    return next((line for line in lines if re.search(marks, line)), lines[-1] if lines else "")


def record(package: Path, reason: str | None) -> None:
    """Records in the built package why it has no extension. Removes what earlier builds left there."""
    (package / "_build.py").unlink(missing_ok=True)
    if reason:
        for extension in package.glob("_C.*"):
            extension.unlink()
        text = f'"""Written by setup.py."""\n\nWITHOUT_EXTENSION = {reason!r}\n'
        (package / "_build.py").write_text(text, encoding="utf-8")
        say(f"dgcl_ops: built without the extension: {reason}")


class BuildPython(build_py):
    def built_package(self) -> Path:
        return Path("" if self.editable_mode else self.build_lib, "dgcl_ops")

    def run(self):
        found = find_torch()
        if EXTENSION != "0" and found and is_older(found[1], MINIMUM_TORCH):
            raise SystemExit(f"dgcl_ops needs PyTorch {TORCH_NAME} or later, found {found[1]}.")
        super().run()
        record(self.built_package(), None if REQUIRED_BY else OBSTACLE)


class BuildExtension(build_ext):
    """Adds PyTorch's paths, compiles files in parallel, and gives each instruction set its own flags."""

    def finalize_options(self):
        super().finalize_options()
        self.force = True  # objects of an earlier build may be for another PyTorch, or without CUDA

    def run(self):
        inplace = self.inplace  # setuptools clears it during the build
        try:
            if OBSTACLE:
                raise PlatformError(OBSTACLE)
            super().run()
        except (BaseError, CCompilerError, OSError) as error:
            if REQUIRED_BY:
                raise SystemExit(
                    f"dgcl_ops: the extension cannot be built, and {REQUIRED_BY} is set: {error}"
                ) from None
            self.extensions = self.distribution.ext_modules = []
            built = self.get_finalized_command("build_py").built_package()
            record(Path("dgcl_ops") if inplace else built, str(error))

    def run_tool(self, command, **_):
        """Runs a compiler or linker. Its first error line is the exception's text."""
        paths = {"PATH": self.compiler._paths} if hasattr(self.compiler, "_paths") else {}  # MSVC's
        say(" ".join(map(str, command)))
        code, output = run(*command, env=os.environ | paths)
        say(output.rstrip())
        if code:
            raise CompileError(first_error(output) or f"{command[0]} ended with exit code {code}")

    def family(self) -> str:
        if self.compiler.compiler_type == "msvc":
            return "msvc"
        output = run(*self.compiler.compiler_so_cxx, "--version")[1]
        return "clang" if "clang" in output else "gcc"

    def add_torch(self, ext, torch: Path, family: str) -> None:
        ext.library_dirs.append(str(torch / "lib"))
        ext.libraries.append("torch_cpu")
        if family == "msvc":
            ext.extra_compile_args += MSVC_FLAGS
            ext.include_dirs.append(str(torch / "include"))
            return
        ext.extra_compile_args += [*FLAGS, *(CLANG_FLAGS if family == "clang" else [])]
        ext.extra_compile_args += ["-isystem", str(torch / "include")]
        if sys.platform == "linux":
            # The system's C++ library comes first: libtorch_cpu has copies of its functions, outside any stable ABI.
            libcxx = "-stdlib=libc++" in " ".join(self.compiler.compiler_so_cxx)
            ext.libraries.insert(0, "c++" if libcxx else "stdc++")

    def build_extension(self, ext):
        found = find_torch()
        if found is None:
            raise PlatformError(f"PyTorch {TORCH_NAME} or later must be installed before the build")
        torch, version = found
        family, toolkit, nvcc = self.family(), wanted_toolkit(torch, CUDA), []
        self.add_torch(ext, torch, family)
        cuda = "no"
        if toolkit:
            cuda = f"{toolkit.version()} for {', '.join('sm_' + a for a in ARCHS)}"
            nvcc = [
                toolkit.nvcc,
                *NVCC_FLAGS,
                *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHS),
            ]
            nvcc.append(f"-gencode=arch=compute_{ARCHS[-1]},code=compute_{ARCHS[-1]}")
            ext.sources += sources("csrc/cuda/**/*.cpp", "csrc/cuda/**/*.cu")
            ext.extra_link_args += [f"-L{toolkit.libraries}", "-l:libcudart_static.a"]
            ext.extra_link_args += ["-ldl", "-lrt", "-lpthread"]
        compiler = "cl" if family == "msvc" else Path(self.compiler.compiler_so_cxx[0]).name
        flags = " ".join([compiler, *(MSVC_FLAGS if family == "msvc" else FLAGS)])
        info = f"stable ABI {TORCH_NAME}, limited API 3.10, headers of torch {version}, {flags}, cuda {cuda}"
        ext.define_macros.append(("DGCL_BUILD_INFO", f'"{info}"'))
        compile_one = self.compiler.compile

        def compile_source(source, output_dir, extra_postargs, options):
            if source.endswith(".cu"):
                target = Path(output_dir, f"{source}.o")
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self.run_tool([*nvcc, "-c", source, "-o", target])
                except CompileError as error:
                    hint = "DGCL_OPS_CUDA=0 builds without CUDA kernels"
                    raise CompileError(f"{error} ({hint})") from None
                return [str(target)]
            level = LEVEL_FLAGS.get(Path(source).name, []) if X86 and family != "msvc" else []
            extra = [*extra_postargs, *level]
            return compile_one([source], output_dir=output_dir, extra_postargs=extra, **options)

        def compile_parallel(sources, output_dir=None, extra_postargs=(), **options):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                job = lambda source: compile_source(source, output_dir, extra_postargs, options)
                return [obj for objects in pool.map(job, sources) for obj in objects]

        if hasattr(self.compiler, "initialize"):
            self.compiler.initialize()  # MSVC's, before the threads start
        self.compiler.call = self.compiler.spawn = self.run_tool
        self.compiler.compile = compile_parallel
        super().build_extension(ext)


class BuildWheel(bdist_wheel):
    def finalize_options(self):
        super().finalize_options()
        if "editable_wheel" in self.distribution.commands:
            self.root_is_pure = True  # it holds the path of the source tree, not the extension

    def run(self):
        self.run_command(
            "build"
        )  # first, because the tag depends on whether the extension was built
        self.skip_build, self.root_is_pure = True, not self.distribution.has_ext_modules()
        super().run()


def sources(*patterns) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for p in patterns for path in ROOT.glob(p))


if sys.platform == "darwin":  # PyTorch is built for one architecture, Python often for two
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")

compiled = Extension(
    "dgcl_ops._C",
    sources=sources("csrc/*.cpp", "csrc/ops/*.cpp", "csrc/cpu/**/*.cpp"),
    depends=sources("csrc/**/*.h", "csrc/**/*.cuh", "csrc/**/*.cu"),
    define_macros=[("Py_LIMITED_API", "0x030A0000"), ("TORCH_TARGET_VERSION", TORCH_TARGET)],
    py_limited_api=True,
    language="c++",
)
setup(
    version=VERSION,
    setup_requires=[] if OBSTACLE or find_torch() else [f"torch>={TORCH_NAME}"],
    ext_modules=[compiled] if REQUIRED_BY or not OBSTACLE else [],
    cmdclass={"bdist_wheel": BuildWheel, "build_ext": BuildExtension, "build_py": BuildPython},
    options={} if OBSTACLE else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
