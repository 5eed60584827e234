"""Runs quickstart.ipynb and stores its outputs in it: pip install nbclient ipykernel, then run this file.

Keeps the file free of timestamps and version numbers, so that a change of the outputs is a change of the results.
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
