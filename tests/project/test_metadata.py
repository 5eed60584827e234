"""The files that hosts and package indexes read: valid, complete, and consistent with the package."""

import re
from importlib.metadata import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "CITATION.cff").exists():
    pytest.skip("this needs the source tree", allow_module_level=True)
yaml = pytest.importorskip("yaml")
YAML = [ROOT / ".pre-commit-config.yaml", *sorted((ROOT / ".github").rglob("*.yml"))]


def urls() -> dict[str, str]:
    """[project.urls] of pyproject.toml, from the installed package."""
    return dict(each.split(", ") for each in metadata("dgcl-ops").get_all("Project-URL"))


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["repository-code"] == urls()["Repository"]


def test_urls_have_one_repository():
    found = urls()
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f'{name} = "{url}"' in project for name, url in found.items()), "installed: older"
    assert {"Homepage", "Repository", "Documentation", "Changelog", "Issues"} == found.keys()
    assert all(url.startswith(found["Repository"]) for url in found.values())
    files = [url.split("/blob/main/")[1] for url in found.values() if "/blob/main/" in url]
    assert all((ROOT / file).is_file() for file in files), files


@pytest.mark.parametrize("file", YAML, ids=lambda file: str(file.relative_to(ROOT)))
def test_yaml_is_valid(file):
    assert isinstance(yaml.safe_load(file.read_text()), dict)


def test_the_changelog_starts_with_unreleased():
    titles = re.findall(r"^##+ (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert titles[0] == "Unreleased"
    known = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    releases = [title for title in titles if title not in known]
    assert all(re.match(r"Unreleased$|\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d$", each) for each in releases)
