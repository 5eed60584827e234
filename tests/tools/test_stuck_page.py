"""The page for those who are stuck: every block of it is run, and prints what the page says."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch
from recorded import pretend_graphs

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "guide" / "troubleshooting.md"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FRACTION = re.compile(r"-?\d+\.\d+")


def blocks(text: str) -> list[tuple[str, str]]:
    """(code, what it prints) in order; nothing printed where no text follows."""
    found = []
    for kind, body in FENCED.findall(text):
        assert kind in ("python", "text"), kind
        if kind == "python":
            found.append((body, ""))
        else:
            assert found, "output before any code"
            assert not found[-1][1], "two outputs of one block"
            found[-1] = (found[-1][0], body)
    return found


def printed(code: str, names: dict) -> str:
    """What the code prints; the last line of the traceback, if it raises."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            exec(compile(code, str(PAGE), "exec"), names)
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
    return out.getvalue()


def test_every_block_prints_what_the_page_says(monkeypatch):
    if not torch.cuda.is_available():
        pretend_graphs(monkeypatch)
    names = {}
    for code, expected in blocks(PAGE.read_text()):
        got = printed(code, names)
        # Another processor rounds differently: fractions may differ a little, all else may not.
        assert FRACTION.sub("#", got) == FRACTION.sub("#", expected), code
        numbers = [[float(n) for n in FRACTION.findall(text)] for text in (got, expected)]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.02), code


def test_links_lead_somewhere():
    text = PAGE.read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) == anchors
    assert "(../docs/guide/troubleshooting.md)" in (ROOT / "examples" / "README.md").read_text()
    if not (ROOT / "README.md").exists():
        pytest.skip("README.md is not in this checkout")
    readme = (ROOT / "README.md").read_text()
    assert "(docs/guide/troubleshooting.md)" in readme
    for link in re.findall(r"\.\./README\.md#([\w-]+)", text):
        assert re.search(rf"^#+ {link}$", readme, re.MULTILINE | re.IGNORECASE), link
