"""Runs quickstart.ipynb and stores its outputs in it. Needs the dependency group `docs`, for nbclient.

    python docs/execute_quickstart.py

It writes no timestamps and no version numbers, so a difference in the file is a difference in the results.
"""

import os
from pathlib import Path

import nbclient
import nbformat

PAGE = Path(__file__).with_name("quickstart.ipynb")


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # as in the test that compares the outputs
    notebook = nbformat.read(PAGE, as_version=4)
    nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(PAGE.parent)}},
    ).execute()
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.validate(notebook)
    nbformat.write(notebook, PAGE)


if __name__ == "__main__":
    main()
