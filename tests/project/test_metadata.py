"""The files that hosts and package indexes read: valid, complete, and consistent with the package."""

import re
from pathlib import Path

import pytest

import dgcl_ops

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "CITATION.cff").exists():
    pytest.skip("this needs the source tree", allow_module_level=True)
yaml = pytest.importorskip("yaml")
YAML = [ROOT / ".pre-commit-config.yaml", *sorted((ROOT / ".github").rglob("*.yml"))]


def load(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def urls() -> dict[str, str]:
    """[project.urls] of pyproject.toml. Python 3.10 has no TOML reader."""
    table = (ROOT / "pyproject.toml").read_text().split("[project.urls]")[1].split("\n[")[0]
    return dict(re.findall(r'^(\w+) = "(.*)"', table, flags=re.MULTILINE))


def test_citation():
    citation = load("CITATION.cff")
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == dgcl_ops.__version__
    assert citation["repository-code"] == urls()["Repository"]
    paper = citation["preferred-citation"]
    assert (paper["year"], paper["type"]) == (2023, "conference-paper")
    assert [author["family-names"] for author in paper["authors"]] == [
        "Wang",
        "Zhang",
        "Yu",
        "Xiao",
    ]


def test_urls_have_one_repository():
    found = urls()
    assert {"Homepage", "Repository", "Documentation", "Changelog", "Issues"} == found.keys()
    assert all(url.startswith(found["Repository"]) for url in found.values())
    files = [url.split("/blob/main/")[1] for url in found.values() if "/blob/main/" in url]
    assert all((ROOT / file).is_file() for file in files), files


@pytest.mark.parametrize("file", YAML, ids=lambda file: str(file.relative_to(ROOT)))
def test_yaml(file):
    content = yaml.safe_load(file.read_text())
    if file.parent.name == "workflows":
        assert {
            "name",
            True,
            "permissions",
            "jobs",
        } == content.keys()  # YAML 1.1 reads "on" as True
    elif file.parent.name == "ISSUE_TEMPLATE":
        assert {"name", "description", "labels", "body"} == content.keys()
        fields = [each for each in content["body"] if each["type"] != "markdown"]
        assert all({"type", "id", "attributes"} <= each.keys() for each in fields)
        assert any(each.get("validations", {}).get("required") for each in fields)


def test_a_bug_report_asks_for_the_doctor():
    fields = {each.get("id"): each for each in load(".github/ISSUE_TEMPLATE/bug.yml")["body"]}
    assert "python -m dgcl_ops.doctor" in fields["doctor"]["attributes"]["description"]
    assert fields["doctor"]["validations"]["required"]


def test_pre_commit_calls_the_linters_of_make_lint():
    hooks = [hook for repo in load(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert [hook["entry"] for hook in hooks] == ["make lint"]
    assert "lint:" in (ROOT / "Makefile").read_text()


def test_the_changelog_starts_with_unreleased():
    titles = re.findall(r"^##+ (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert titles[0] == "Unreleased"
    known = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    releases = [title for title in titles if title not in known]
    assert all(re.match(r"Unreleased$|\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d$", each) for each in releases)
