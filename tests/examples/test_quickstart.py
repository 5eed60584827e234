"""docs/quickstart.ipynb runs, and prints what its stored outputs say."""

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest
from doc_pages import agree

pytest.importorskip("sklearn")
matplotlib = pytest.importorskip("matplotlib")

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "quickstart.ipynb"
if not PAGE.exists():  # in the kit for a GPU
    pytest.skip("docs/ is not in this checkout", allow_module_level=True)


def cells(kind: str) -> list[dict]:
    notebook = json.loads(PAGE.read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def stored_text(cell: dict) -> str:
    return "".join(
        "".join(out["text"]) for out in cell["outputs"] if out["output_type"] == "stream"
    )


def run(code: list[str]) -> list[str]:
    """Runs cells in order, in one namespace. Returns what each prints."""
    printed, names = [], {}
    for number, source in enumerate(code, start=1):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(source, f"{PAGE.name}, code cell {number}", "exec"), names)
        printed.append(out.getvalue())
    return printed


def test_the_notebook_prints_its_stored_outputs(monkeypatch):
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    monkeypatch.chdir(DOCS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    plt.close("all")
    with matplotlib.rc_context():
        printed = run(["".join(cell["source"]) for cell in cells("code")])
        figures = [plt.figure(number) for number in plt.get_fignums()]
        assert len(figures) == 2
        for figure in figures:
            figure.canvas.draw()
            assert figure.axes
        plt.close("all")
    # Training amplifies the rounding of other processors. Noise of 1e-6 on the initial weights changed these numbers by
    # up to 2.5 %.
    for got, cell in zip(printed, cells("code"), strict=True):
        assert agree(got, stored_text(cell), tolerance=0.05), (got, stored_text(cell))


def test_the_stored_outputs_are_clean():
    text = PAGE.read_text()
    assert len(text) < 400_000
    code = cells("code")
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = [out for cell in code for out in cell["outputs"]]
    assert {out["output_type"] for out in outputs} == {"stream", "display_data"}
    assert sum("image/png" in out.get("data", {}) for out in outputs) == 2
    assert all(out.get("name") != "stderr" for out in outputs)
    assert all(cell["metadata"] == {} for cell in code)  # timestamps would stand here
    printed = "".join(map(stored_text, code))
    assert "/" not in printed  # no path


def test_the_notebook_names_the_right_folder_if_it_starts_elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="run this notebook in docs/ or in the root"):
        run(["".join(cells("code")[0]["source"])])
