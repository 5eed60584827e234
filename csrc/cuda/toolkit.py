"""For setup.py: finds the CUDA toolkit, and decides whether the build uses it."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from setuptools.errors import PlatformError

MINIMUM_NVCC = (12, 4)
DEFAULT_ARCHS = "80 86 89 90"


def run(*command, **options) -> tuple[int, str]:
    """Runs a command and returns its exit code and output."""
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
    done = subprocess.run([*map(str, command)], **both, **options, check=False)
    return done.returncode, done.stdout


def is_older(version: str, oldest: tuple[int, int]) -> bool:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < oldest


def architectures() -> list[str]:
    """Returns the architectures in increasing order; PTX of the last one runs on later devices."""
    value = os.environ.get("DGCL_OPS_CUDA_ARCHS", "")
    archs = value.split() or DEFAULT_ARCHS.split()
    if not all(re.fullmatch(r"\d{2,3}", arch) for arch in archs):
        raise SystemExit(
            f'dgcl_ops: DGCL_OPS_CUDA_ARCHS must be numbers as in "{DEFAULT_ARCHS}", got {value}'
        )
    return sorted(set(archs), key=int)


def is_cuda_build(torch: Path) -> bool:
    """Whether this PyTorch was built with CUDA, without importing it."""
    return bool(re.search(r"^cuda\b.*=\s*'", (torch / "version.py").read_text(), re.MULTILINE))


class Toolkit:
    """nvcc and its libraries."""

    def __init__(self, root: Path):
        self.root = root
        self.nvcc = root / "bin" / "nvcc"
        target = "x86_64-linux" if platform.machine() == "x86_64" else "sbsa-linux"
        folders = [root / "lib64", root / "lib", root / "targets" / target / "lib"]
        self.libraries = next((f for f in folders if (f / "libcudart_static.a").exists()), None)

    @classmethod
    def find(cls, torch: Path):
        """The toolkit in CUDA_HOME, of nvcc in PATH (which may be a script elsewhere), or in a package; else None."""
        named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        roots = [Path(named)] if named else []
        if not named and (nvcc := shutil.which("nvcc")):
            output = run(nvcc, "--dryrun", "x.cu")[1]
            if top := re.search(r"^#\$ TOP=(.+)$", output, re.MULTILINE):
                roots.append(Path(top[1]).resolve())
        if not named:
            roots += [Path("/usr/local/cuda"), *sorted((torch.parent / "nvidia").glob("cu[0-9]*"))]
        toolkits = [cls(root) for root in roots]
        return next((t for t in toolkits if t.nvcc.exists() and t.libraries), None)

    def version(self) -> str:
        release = re.search(r"release ([\d.]+)", run(self.nvcc, "--version")[1])
        return release[1] if release else "unknown"


def wanted_toolkit(torch: Path, setting: str):
    """The toolkit to build CUDA kernels with, or None for a build without them. `setting`: DGCL_OPS_CUDA."""
    if setting == "0" or (setting == "" and not is_cuda_build(torch)):
        return None
    toolkit = Toolkit.find(torch)
    if toolkit is None:
        fault = "CUDA kernels need nvcc and libcudart_static.a; set CUDA_HOME to the CUDA toolkit"
    elif is_older(toolkit.version(), MINIMUM_NVCC):
        oldest = ".".join(map(str, MINIMUM_NVCC))
        fault = f"nvcc must be {oldest} or later, got {toolkit.version()} ({toolkit.nvcc})"
    else:
        return toolkit
    if setting == "1":
        raise PlatformError(fault)
    print(f"dgcl_ops: building without CUDA kernels, though this PyTorch is a CUDA build: {fault}")
    return None
