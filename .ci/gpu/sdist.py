"""Builds a wheel with CUDA kernels from an sdist."""

import os
import subprocess
import tarfile
from pathlib import Path


def wheel_of_sdist(python: str, sdist: Path, architecture: str, work: Path, *options: str) -> Path:
    """Builds a wheel with the PyTorch of a Python.

    Args:
        python: the Python, with PyTorch, setuptools and wheel.
        sdist: the sdist.
        architecture: compute capability without the dot.
        work: folder for the sources and the wheel.
        options: more options of `pip wheel`.

    Returns:
        The wheel.

    Raises:
        subprocess.CalledProcessError: If the build failed. Its output has been printed.
    """
    with tarfile.open(sdist) as archive:
        archive.extractall(work, filter="data")
    (source,) = (path for path in work.iterdir() if path.is_dir())
    settings = {
        "DGCL_OPS_CUDA": "1",
        "DGCL_OPS_CUDA_ARCHS": architecture,
        "DGCL_OPS_EXTENSION": "1",
    }
    command = [python, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", *options]
    subprocess.run([*command, "-w", work, source], env={**os.environ, **settings}, check=True)
    (wheel,) = work.glob("*.whl")
    return wheel
