"""The documentation site: every public name is on one page, and faults in pages are found."""

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "docs" / "conf.py").exists():
    pytest.skip("this needs the source tree", allow_module_level=True)

API = ROOT / "docs" / "api"
DIRECTIVE = re.compile(r"^\.\. (?:auto(?:class|function)|py:data):: (\S+)", re.MULTILINE)
MODULES = ("dgcl_ops", "dgcl_ops.ops", "dgcl_ops.viz")
# Each page, what is wrong with it, and what the build says.
FAULTS = {
    "page.md": ("[a](no_such_page.md)", "target not found: 'no_such_page.md'"),
    "anchor.md": ("[a](index.md#no-such-heading)", "local id not found in doc 'index'"),
    "own_anchor.md": ("[a](#no-such-heading)", "target not found: 'no-such-heading'"),
    "formula.md": (r"$\no_such_symbol$", "formula: Unknown LaTeX command"),
    "name.md": ("autofunction:: planted.bad_name", "target not found: dgcl_ops.no_such_name"),
    "type.md": ("autofunction:: planted.bad_type", "target not found: NoSuchType"),
}
PLANTED = '''
def bad_name():
    """See `dgcl_ops.no_such_name`."""


def bad_type(value: "NoSuchType"):
    """Does nothing.

    Args:
        value: nothing.
    """
'''


def resolve(name: str) -> object:
    """The object that a dotted name means."""
    parts = name.split(".")
    value: object = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 2):
        if not hasattr(value, part):
            importlib.import_module(".".join(parts[:i]))
        value = getattr(value, part)
    return value


def documented() -> dict[str, str]:
    """The names that the API pages document, and their pages."""
    pairs = [
        (name, page.name)
        for page in API.glob("*.md")
        for name in DIRECTIVE.findall(page.read_text())
    ]
    assert len(dict(pairs)) == len(pairs), sorted(name for name, _ in pairs)
    return dict(pairs)


def test_every_public_name_is_documented_once():
    entries = [id(resolve(name)) for name in documented()]
    for module in MODULES:
        for name in importlib.import_module(module).__all__:
            count = entries.count(id(resolve(f"{module}.{name}")))
            assert count == 1, f"{module}.{name} is on {count} API pages"


@pytest.mark.parametrize("module", ["labels", "metrics", "schedules"])
def test_every_function_of_a_public_module_is_documented(module):
    entries = {id(resolve(name)) for name in documented()}
    whole = importlib.import_module(f"dgcl_ops.{module}")
    public = {
        name: value
        for name, value in vars(whole).items()
        if inspect.isfunction(value) and value.__module__ == whole.__name__ and name[0] != "_"
    }
    assert public
    assert [name for name, value in public.items() if id(value) not in entries] == []


def test_the_table_lists_what_the_pages_document():
    rows, page = {}, ""
    for line in (API / "index.md").read_text().splitlines():
        if section := re.match(r"\| \*\*\[.*\]\((.*)\)\*\*", line):
            page = section[1]
        elif row := re.match(r"\| `(.*?)` \| \S", line):
            assert row[1] not in rows, row[1]
            rows[row[1]] = page
    found = {id(resolve(f"dgcl_ops.{name}")): page for name, page in rows.items()}
    expected = {id(resolve(name)): page for name, page in documented().items()}
    modules = {id(resolve(f"dgcl_ops.{name}")) for name in ("reference", "doctor")}
    assert modules <= found.keys()
    of_modules = {key: page for key, page in expected.items() if page == "reference.md"}
    assert {k: v for k, v in found.items() if k not in modules} == {
        k: v for k, v in expected.items() if k not in of_modules
    }


def build(folder: Path) -> tuple[int, str]:
    """Builds the site of folder/docs. Returns the exit code and the warnings."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", "out"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


@pytest.fixture
def tree(tmp_path) -> Path:
    """A small repository with the site's settings and one page."""
    pytest.importorskip("sphinx", reason="needs `make docs`")
    docs = tmp_path / "docs"
    for name in ("_ext", "_static", "inventory"):
        shutil.copytree(ROOT / "docs" / name, docs / name)
    shutil.copy(ROOT / "docs" / "conf.py", docs)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "README.md").write_text("# A title\n\n## With a `name`\n")
    (docs / "index.md").write_text(
        "# Index\n\n[a](../README.md#with-a-name) [b](../pyproject.toml) [c](../docs/) [d](#index)\n"
    )
    return tmp_path


def test_the_build_finds_planted_faults(tree):
    """And links that leave docs/ lead to the repository."""
    (tree / "planted.py").write_text(PLANTED)
    for name, (text, _) in FAULTS.items():
        directive = f"```{{eval-rst}}\n.. {text}\n```" if text.startswith("auto") else text
        (tree / "docs" / name).write_text(f"---\norphan: true\n---\n\n# Title\n\n{directive}\n")
    code, output = build(tree)
    assert code == 1
    for name, (_, message) in FAULTS.items():
        assert any(message in line for line in output.splitlines()), (name, message, output)
    page = (tree / "out" / "index.html").read_text()
    (url,) = re.findall(
        r'^Repository = "(.*)"', (tree / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert f'href="{url}/blob/main/README.md#with-a-name"' in page
    assert f'href="{url}/tree/main/docs"' in page
