"""Builds dgcl_ops._C: one extension on PyTorch's stable ABI and Python's limited API.

Only PyTorch's headers and one library to link with are needed, never a particular build of it: a wheel made
beside the CPU build also runs beside a CUDA build, and beside later releases. That holds with CUDA kernels in it
too: they link the CUDA runtime statically, and need no driver to be loaded.

    DGCL_OPS_CUDA        1: with CUDA kernels, 0: without; unset: with, if PyTorch is a CUDA build and nvcc is found
    DGCL_OPS_CUDA_ARCHS  compute capabilities, by default "80 86 89 90" (and PTX of the last one for later devices)
    CUDA_HOME            the CUDA toolkit, if not that of the nvcc in PATH or of the nvidia-cuda-nvcc package
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
MINIMUM_TORCH = (2, 10)
TORCH_NAME = ".".join(map(str, MINIMUM_TORCH))
TORCH_TARGET = f"0x{MINIMUM_TORCH[0]:02x}{MINIMUM_TORCH[1]:02x}000000000000"  # of the stable ABI
X86 = platform.machine() in ("x86_64", "AMD64")
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "dgcl_ops" / "__init__.py").read_text())[1]
AVX512_FLAGS = [
    *["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"],
    *["-mprefer-vector-width=512", "-Wno-maybe-uninitialized", "-Wno-uninitialized"],
]
LEVEL_FLAGS = {  # instruction sets beyond the baseline, one file each; the choice is made at run time
    "level_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "level_avx512.cpp": AVX512_FLAGS,
    "level_avx512_vnni.cpp": [*AVX512_FLAGS, "-mavx512vnni"],
}
FIND_TORCH = (
    "import importlib.util, importlib.metadata as m; s = importlib.util.find_spec('torch');"
    "print(s.submodule_search_locations[0] if s else ''); print(m.version('torch') if s else '')"
)


def find_torch():
    """Folder and version of PyTorch in the build's own environment, else in the one pip was called in, else None."""
    spec = importlib.util.find_spec("torch")
    if spec:
        folder, version = spec.submodule_search_locations[0], importlib.metadata.version("torch")
    else:  # pip's build isolation hides the packages of the environment by PYTHONPATH
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        found = subprocess.run(
            [sys.executable, "-c", FIND_TORCH], capture_output=True, text=True, env=env, check=False
        )
        folder, _, version = found.stdout.strip().partition("\n")
    if not folder or tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < MINIMUM_TORCH:
        return None
    return Path(folder), version


def is_cuda_build(torch: Path) -> bool:
    """Whether this PyTorch was built with CUDA, without importing it."""
    return bool(re.search(r"^cuda\b.*=\s*'", (torch / "version.py").read_text(), re.MULTILINE))


class Toolkit:
    """nvcc and what belongs to it."""

    def __init__(self, root: Path):
        self.root = root
        self.nvcc = root / "bin" / "nvcc"
        target = "x86_64-linux" if X86 else "sbsa-linux"
        folders = [root / "lib64", root / "lib", root / "targets" / target / "lib"]
        self.libraries = next((f for f in folders if (f / "libcudart_static.a").exists()), None)

    @classmethod
    def find(cls, torch: Path):
        """The toolkit of CUDA_HOME, of nvcc in PATH (which may be a script elsewhere), or of a package; or None."""
        named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        roots = [Path(named)] if named else []
        if not named and (nvcc := shutil.which("nvcc")):
            told = subprocess.run(
                [nvcc, "--dryrun", "x.cu"], capture_output=True, text=True, check=False
            ).stderr
            if top := re.search(r"^#\$ TOP=(.+)$", told, re.MULTILINE):
                roots.append(Path(top[1]).resolve())
        if not named:
            roots += [Path("/usr/local/cuda"), *sorted((torch.parent / "nvidia").glob("cu[0-9]*"))]
        toolkits = [cls(root) for root in roots]
        return next((t for t in toolkits if t.nvcc.exists() and t.libraries), None)

    def version(self) -> str:
        told = subprocess.run(
            [self.nvcc, "--version"], capture_output=True, text=True, check=True
        ).stdout
        return re.search(r"release ([\d.]+)", told)[1]

    def compile_command(self, archs) -> list[str]:
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
        codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
        return [str(self.nvcc), *NVCC_FLAGS, *codes]


def wanted_toolkit(torch: Path):
    """The toolkit to build CUDA kernels with, or None where none are wanted."""
    asked = os.environ.get("DGCL_OPS_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"dgcl_ops: DGCL_OPS_CUDA must be 0, 1 or unset, got {asked}")
    if asked == "0" or (asked == "" and not is_cuda_build(torch)):
        return None
    toolkit = Toolkit.find(torch)
    if toolkit is None and asked == "1":
        raise SystemExit(
            "dgcl_ops: DGCL_OPS_CUDA=1 needs nvcc and libcudart_static.a; set CUDA_HOME to the CUDA toolkit"
        )
    if toolkit is None:
        print(
            "dgcl_ops: this PyTorch is a CUDA build, but no nvcc was found: building without CUDA kernels"
        )
    return toolkit


class BuildExtension(build_ext):
    """Adds PyTorch's paths, compiles files side by side, and gives each instruction set its own flags."""

    def finalize_options(self):
        super().finalize_options()
        self.force = True  # what an earlier build left may be of another PyTorch, or without CUDA

    def build_extension(self, ext):
        found = find_torch()
        if found is None:
            raise SystemExit(
                f"dgcl_ops: building needs PyTorch {TORCH_NAME} or later in the environment; install torch first"
            )
        torch, version = found
        toolkit = wanted_toolkit(torch)
        cuda = "no"
        if toolkit:
            archs = os.environ.get("DGCL_OPS_CUDA_ARCHS", DEFAULT_ARCHS).split()
            cuda = f"{toolkit.version()} for {', '.join('sm_' + a for a in archs)}"
            nvcc = toolkit.compile_command(archs)
            ext.sources += sources("csrc/cuda/*.cpp") + sources("csrc/cuda/*.cu")
            ext.extra_link_args += [
                f"-L{toolkit.libraries}",
                "-l:libcudart_static.a",
                "-ldl",
                "-lrt",
                "-lpthread",
            ]
            self.compiler.src_extensions.append(".cu")
        ext.extra_compile_args += ["-isystem", str(torch / "include")]
        ext.library_dirs.append(str(torch / "lib"))
        # First the system's: libtorch_cpu has copies of some C++ library functions, which are no part of its ABI.
        ext.libraries += ["stdc++", "torch_cpu"]
        compiler = " ".join(self.compiler.compiler_so[:1])
        flags = f"{compiler} {' '.join(FLAGS)}"
        info = f"stable ABI {TORCH_NAME}, limited API 3.10, headers of torch {version}, {flags}, cuda {cuda}"
        ext.define_macros.append(("DGCL_BUILD_INFO", f'"{info}"'))
        compile_one = self.compiler._compile

        def compile_with_flags(obj, src, suffix, cc_args, extra, pp_opts):
            if suffix == ".cu":
                self.spawn([*nvcc, "-c", src, "-o", obj])
                return
            level = LEVEL_FLAGS.get(Path(src).name, []) if X86 else []
            compile_one(obj, src, suffix, cc_args, [*extra, *level], pp_opts)

        serial_compile = self.compiler.compile

        def compile_parallel(sources, **options):
            def one(source):
                return serial_compile([source], **options)

            self.compiler._compile = compile_with_flags
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [obj for objects in pool.map(one, sources) for obj in objects]

        self.compiler.compile = compile_parallel
        try:
            super().build_extension(ext)
        finally:
            self.compiler._compile, self.compiler.compile = compile_one, serial_compile


def sources(*patterns) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for p in patterns for path in ROOT.glob(p))


# Contraction and reordering would change scores: the canonical sums say where a product and a sum are fused.
DEFAULT_ARCHS = "80 86 89 90"
NVCC_FLAGS = [
    "-std=c++20",
    "-O3",
    "-fmad=false",
    "--expt-relaxed-constexpr",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
]
FLAGS = ["-std=c++20", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]

setup(
    version=VERSION,
    setup_requires=[] if find_torch() else [f"torch>={TORCH_NAME}"],
    ext_modules=[
        Extension(
            "dgcl_ops._C",
            sources=sources("csrc/*.cpp", "csrc/ops/*.cpp", "csrc/cpu/**/*.cpp"),
            depends=sources("csrc/**/*.h", "csrc/**/*.cuh", "csrc/**/*.cu"),
            extra_compile_args=[*FLAGS],
            define_macros=[
                ("Py_LIMITED_API", "0x030A0000"),
                ("TORCH_TARGET_VERSION", TORCH_TARGET),
            ],
            py_limited_api=True,
            language="c++",
        )
    ],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
