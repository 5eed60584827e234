"""Finds the installed package if Python imports the sources of a checkout, which hold no compiled extension.

`python -m` and interactive sessions look into the current folder first. In a checkout that is this folder.
"""

import sys
import warnings
from pathlib import Path


def _is_built(package: Path) -> bool:
    """Whether a build left the compiled extension there, or the reason why there is none."""
    return any(package.glob("_C.*")) or (package / "_build.py").is_file()


def submodule_folders(folders: list[str]) -> list[str]:
    """Returns the folders to import submodules from: `folders`, or the folder of the installed package.

    Args:
        folders: the package's `__path__`.
    """
    sources = Path(folders[0]).resolve()
    if _is_built(sources):
        return folders
    for entry in sys.path:
        installed = Path(entry, sources.name).resolve()
        if installed != sources and (installed / "__init__.py").is_file() and _is_built(installed):
            warnings.warn(
                f"dgcl_ops: {sources} holds sources that were not built, so the installed package is used: "
                f"{installed}. Changes to the sources have no effect; `pip install -e .` builds and uses them.",
                UserWarning,
                stacklevel=3,
            )
            return [str(installed)]
    return folders
