"""The command line of train_segmentation.py."""

import argparse
from pathlib import Path

import torch

from semi_supervised.config import Config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def build_parser(description: str) -> argparse.ArgumentParser:
    """Returns the parser of train_segmentation.py."""
    parser = argparse.ArgumentParser(
        prog="train_segmentation.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("overrides", nargs="*", metavar="key=value", help="changes a key of the configuration")
    add("--config", type=Path, default=CONFIGS / "folder.yaml", help="default: folder.yaml")
    add("--data", help="same as data=DIR: the folder of the data set")
    add("--labelled", help="same as labelled=...: a number, a fraction (1/8) or a list of images")
    add("--unlabelled", help="same as unlabelled=DIR: more images without labels")
    add("--contrast-weight", type=float, nargs="+", help="one run each; 0: plain self-training")
    add(
        "--seeds",
        "--seed",
        type=int,
        nargs="+",
        help="one run per seed of labelled images, weights and batches",
    )
    add("--out", type=Path, default=Path("runs"), help="folder for the results (default: runs)")
    add(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1"
    )
    add(
        "--resume",
        type=Path,
        help="checkpoint of a run with the same options; auto: the run's own checkpoint under --out, if any",
    )
    add("--stop-at", type=int, help="stop after this step, to --resume later")
    return parser


def names_of(config: Config, weight: float) -> tuple[str, str]:
    """Returns the names of a run in tables, and of its folder without the seed."""
    if "contrast_weight" not in config.method.keys:
        return (config.method_name,) * 2
    method = "self-training" if weight == 0 else f"contrast weight {weight:g}"
    return method, f"weight-{weight:g}"
