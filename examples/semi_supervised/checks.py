"""Reads every image once before training, so that a damaged file does not stop it hours later."""

import json
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from semi_supervised import distributed
from semi_supervised.images import check_image

CACHE = "checked_images"


def check_images(images: Sequence[Path], folder: Path) -> None:
    """Reads all images. Each rank reads a part.

    A file that was read before is skipped, unless its size or modification time has changed.

    Args:
        images: paths.
        folder: where to keep the list of files that were read. It is created.

    Raises:
        ValueError: If images cannot be read. It names them.
    """
    rank, ranks = distributed.rank_and_world_size()
    known = {}
    for path in folder.glob(f"{CACHE}*.json"):
        known |= read_cache(path)
    states = {str(image.resolve()): state_of(image) for image in images[rank::ranks]}
    unread = [path for path, state in states.items() if known.get(path) != state]
    hidden = None if rank == 0 else True  # None: hidden unless standard error is a terminal
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(problem_of, unread)
        bar = tqdm(results, "checking images", len(unread), unit="image", disable=hidden)
        problems = {path: problem for path, problem in zip(unread, bar, strict=True) if problem}
    if unread:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{CACHE}{rank or ''}.json"
        part = path.with_suffix(f".{uuid.uuid4().hex}")  # other runs may share the folder
        sound = {name: state for name, state in states.items() if name not in problems}
        part.write_text(json.dumps(read_cache(path) | sound))
        part.replace(path)
    if problems:
        first, *others = problems.values()
        more = f"; {len(others)} more images: " + "; ".join(others[:5]) if others else ""
        raise ValueError(first + more)


def state_of(path: Path) -> list[int]:
    """Returns size and modification time."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def problem_of(path: str) -> str | None:
    """Returns why an image cannot be read, or None."""
    try:
        check_image(Path(path))
    except (ValueError, OSError) as error:
        return str(error)
    return None


def read_cache(path: Path) -> dict[str, list[int]]:
    """Returns the states of the files that were read. A cache that cannot be read is empty."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
