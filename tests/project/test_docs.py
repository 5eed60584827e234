"""The pages: their code runs and prints what they say, their commands and links lead somewhere.

The rules for blocks are in doc_pages.py.
"""

import ast
import contextlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from doc_pages import anchors, code_problems, command_problems, link_problems, markdown
from recorded import pretend_graphs

import dgcl_ops

pytestmark = pytest.mark.core
ROOT = Path(__file__).resolve().parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
NOTEBOOKS = (ROOT / "docs").glob("*.ipynb")
FOLDERS = ("benchmarks", "csrc", "examples", "tests")
OTHERS = {*ROOT.glob("*.md"), *(p for f in FOLDERS for p in (ROOT / f).glob("**/*.md"))}


def pages(*paths):
    return pytest.mark.parametrize("page", paths, ids=lambda p: str(p.relative_to(ROOT)))


def fail_if(problems):
    if problems:
        pytest.fail("\n\n".join(problems), pytrace=False)


@pages(*DOCS)
def test_code_prints_what_the_page_says(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # for the pictures that some pages save
    if not torch.cuda.is_available():
        pretend_graphs(monkeypatch)
    fail_if(code_problems(page.read_text(), {"__name__": "page"}))


@pages(*DOCS, *NOTEBOOKS, *sorted(OTHERS - set(DOCS)))
def test_commands_and_links_lead_somewhere(page):
    fail_if(command_problems(markdown(page), ROOT) + link_problems(page, ROOT))


def test_the_guide_names_the_defaults():
    """The rows of guide/loss.md whose default is a value."""
    text = (ROOT / "docs" / "guide" / "loss.md").read_text()
    signature = inspect.signature(dgcl_ops.DensityContrastLoss).parameters
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.+?) \|", text, re.MULTILINE)
    checked = []
    for names, default in rows:
        names = re.findall(r"\w+", names)
        with contextlib.suppress(SyntaxError, ValueError):
            value = ast.literal_eval(default.replace("`", "").replace(",0", "_0"))
            values = value if len(names) > 1 else (value,)
            assert values == tuple(signature[name].default for name in names), names
            checked += names
        assert set(names) <= signature.keys()
    assert len(checked) >= 9


# ---- the helpers find planted faults ----------------------------------------------------------------

PRINTS = "```python\nprint(1, 0.50)\n```\n\n```text\n1 0.505\n```\n"
RAISES = "```python\nint('x')\n```\n"
ERROR = "```text\nValueError: invalid literal for int() with base 10: 'x'\n```\n"
NOT_RUN = "<!-- not run: needs a GPU -->\n```py\nimport no_such_package\n```\n"


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        (PRINTS, None),
        (PRINTS.replace("0.505", "0.52"), "prints"),
        (PRINTS.replace("\n1 ", "\n2 "), "prints"),
        (PRINTS.replace("```text", "Words.\n\n```text"), "directly follow"),
        (PRINTS[: PRINTS.index("```text")], "prints"),
        (RAISES + ERROR, None),
        (RAISES, "ValueError"),
        ("```python\nx = 1\n```\n```python\nassert x == 1\n```\n", None),
        ("<!-- setup\nx = 1\n-->\n```python\nassert x == 1\n```\n", None),
        ("<!-- setup\nx = 1\n```python\nassert x == 1\n```\n", "closes"),
        ("```python\nx = 1\n", "closes"),
        ("```pyton\nx = 1\n```\n", "unknown fence 'pyton'"),
        ("~~~python\nx = 1\n~~~\n", "no rule knows"),
        ("    ```python\n    x = 1\n    ```\n", "no rule knows"),
        ("<!--setup\nx = 1\n-->\n", "no rule knows"),
        ("```\na drawing\n```\n```cpp\nint i;\n```\n```{toctree}\n:hidden:\n```\n", None),
        (NOT_RUN, None),
        (NOT_RUN.replace("needs a GPU", ""), "needs <!-- not run"),
        (NOT_RUN.partition("\n")[2], "needs <!-- not run"),
        (NOT_RUN.replace("import", "impart"), "invalid syntax"),
        (NOT_RUN.replace("```py\n", "```python\n"), "must stand before"),
    ],
)  # fmt: skip
def test_code_that_is_wrong_is_found(page, problem):
    try:
        found = "\n".join(code_problems(page, {}))
    except ValueError as error:
        found = str(error)
    assert problem in found if problem else not found


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("python examples/demo.py --out demo_out  # as README.md", None),
        ("python examples/dome.py", "no file examples/dome.py"),
        ("bash .ci/run", None),
        (".ci/runs dist/*.whl", "no file .ci/runs"),
        ("torchrun x.py --config=examples/configs/none.yaml", "none.yaml"),
        ("python examples/trainers/NAME.py", None),
        ("make clean demo TORCH=torch==2.14.1", None),
        ("make dome", "no target dome"),
        ("make -j2 test && .ci/run", None),
        ("DGCL_OPS_CUDA=1 make dome", "no target dome"),
        ("python -m dgcl_ops.doctor --device cuda", None),
        ("python -m dgcl_ops.docter", "no module"),
    ],
)
def test_commands_that_lead_nowhere_are_found(command, problem):
    for page in (f"Words.\n\n    {command}\n", f"```bash\n{command}\n```\n", f"Run `{command}`.\n"):
        found = "\n".join(command_problems(page, ROOT))
        assert problem in found if problem else not found
    assert not command_problems(f"```python\n{command}\n```\n", ROOT)


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("[a](#the-page)", None),
        ("[a\nb](sub/other.md#a-code-heading-yes)", None),
        ("![a](picture.png) [b](sub/)", None),
        ("[a](https://example.org/none.md#none)", None),
        ("`[a](none.md)`", None),
        ("[`a`](none.md)", "none.md: no such file"),
        ("[![a](none.png)](sub/other.md)", "none.png"),
        ("[a](#none)", "#none: no such heading"),
        ("[a](sub/other.md#hidden)", "no such heading"),
        ("[a](sub/other.md#twice-1)", None),
        ("[a](../none.md)", "out of the tree"),
    ],
)
def test_links_that_lead_nowhere_are_found(link, problem, tmp_path):
    page, other = tmp_path / "page.md", tmp_path / "sub" / "other.md"
    other.parent.mkdir()
    (tmp_path / "dgcl_ops").mkdir()  # a tree, not a copy without the package
    (tmp_path / "picture.png").touch()
    other.write_text(
        "# A `code` heading: [yes](x.md)?\n\n## Twice\n\n```bash\n# hidden\n```\n\n## Twice\n"
    )
    page.write_text(f"# The page\n\n{link}\n")
    assert anchors(page.read_text()) == {"the-page"}
    found = "\n".join(link_problems(page, tmp_path))
    assert problem in found if problem else not found
