"""Builds dgcl_ops._C: one extension on PyTorch's stable ABI and Python's limited API.

Only PyTorch's headers and one library to link with are needed, never a particular build of it: a wheel made
beside the CPU build also runs beside a CUDA build, and beside later releases.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
MINIMUM_TORCH = (2, 13)
X86 = platform.machine() in ("x86_64", "AMD64")
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "dgcl_ops" / "__init__.py").read_text())[1]
LEVEL_FLAGS = {  # instruction sets beyond the baseline, one file each; the choice is made at run time
    "level_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "level_avx512.cpp": [
        *["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"],
        *["-mprefer-vector-width=512", "-Wno-maybe-uninitialized", "-Wno-uninitialized"],
    ],
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


class BuildExtension(build_ext):
    """Adds PyTorch's paths, compiles files side by side, and gives each instruction set its own flags."""

    def build_extension(self, ext):
        if os.environ.get("DGCL_OPS_CUDA") == "1":
            raise SystemExit(
                "dgcl_ops: DGCL_OPS_CUDA must be unset or 0 in this version, which has no CUDA kernels, got 1"
            )
        found = find_torch()
        if found is None:
            raise SystemExit(
                "dgcl_ops: building needs PyTorch 2.13 or later in the environment; install torch first"
            )
        torch, version = found
        ext.extra_compile_args += ["-isystem", str(torch / "include")]
        ext.library_dirs.append(str(torch / "lib"))
        ext.libraries.append("torch_cpu")
        compiler = " ".join(self.compiler.compiler_so[:1])
        info = f"stable ABI 2.13, limited API 3.10, headers of torch {version}, {compiler} {' '.join(FLAGS)}, cuda no"
        ext.define_macros.append(("DGCL_BUILD_INFO", f'"{info}"'))
        compile_one = self.compiler._compile

        def compile_with_flags(obj, src, suffix, cc_args, extra, pp_opts):
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


# Contraction and reordering would change scores: the canonical sums say where a product and a sum are fused.
FLAGS = ["-std=c++20", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]

setup(
    version=VERSION,
    setup_requires=[] if find_torch() else ["torch>=2.13"],
    ext_modules=[
        Extension(
            "dgcl_ops._C",
            sources=sorted(
                str(p.relative_to(ROOT))
                for p in (ROOT / "csrc").rglob("*.cpp")
                if p.parent.name != "cuda"
            ),
            depends=sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.h")),
            extra_compile_args=[*FLAGS],
            define_macros=[
                ("Py_LIMITED_API", "0x030A0000"),
                ("TORCH_TARGET_VERSION", "0x020d000000000000"),
            ],
            py_limited_api=True,
            language="c++",
        )
    ],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
