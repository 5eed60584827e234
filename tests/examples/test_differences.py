"""The differences from the published program in docs/methods.md agree with the published configurations."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("scipy")
pytest.importorskip("sklearn")
pytest.importorskip("torchmetrics")
pytest.importorskip("yaml")
pytest.importorskip("PIL.Image")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES, PAGE = ROOT / "examples", ROOT / "docs" / "methods.md"
sys.path.insert(0, str(EXAMPLES))

from semi_supervised.config import Config  # noqa: E402

HEADING = "## Where we differ from the published program"
OWN = {  # keys of a machine or a run, without a published value
    *("dataset", "labelled", "data", "weights"),
    *("evaluate_every", "save_every", "workers"),
}


def section(text: str) -> str:
    _, _, rest = text.partition(f"{HEADING}\n")
    return rest.partition("\n## ")[0]


def rows(text: str, first: str) -> list[list[str]]:
    """Returns the cells of the table whose header starts with `first`."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {first} |"):
            next(lines)
            break
    cells = []
    for line in lines:
        if not line.startswith("|"):
            break
        cells.append([cell.strip() for cell in line.strip("|").split("|")])
    return cells


def written(value) -> str:
    """Formats a value as in a YAML file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ", ".join(f"{key}: {written(each)}" for key, each in value.items())
    return str(value)


def published(name: str) -> dict[str, str]:
    """Returns the keys that the files of all labelled fractions share."""
    files = [EXAMPLES / "configs" / f"{name}_1_{part}.yaml" for part in (16, 8, 4, 2)]
    first, *others = [
        {k: written(value) for k, value in Config(file, data="x").values.items() if k not in OWN}
        for file in files
    ]
    assert all(each == first for each in others)
    return first


def configured() -> list[list[str]]:
    """Returns key, value for VOC and value for Cityscapes. Empty if a file does not set the key."""
    voc, city = published("voc"), published("cityscapes")
    return [[f"`{key}`", voc.get(key, ""), city.get(key, "")] for key in (voc | city)]


def check(page: str) -> None:
    shown, expected = rows(section(page), "key"), configured()
    assert sorted(shown) == sorted(expected), "\n".join(
        f"| {' | '.join(row)} |" for row in expected
    )


def test_every_published_setting_is_on_the_page():
    check(PAGE.read_text())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("| `head_factor` | 10 | 1 |\n", ""),
        ("| `head_factor` | 10 | 1 |", "| `head_factor` | 10 | 10 |"),
    ],
)
def test_the_check_sees_a_row_that_is_missing_or_wrong(old, new):
    page = PAGE.read_text()
    assert old in page
    with pytest.raises(AssertionError):
        check(page.replace(old, new))


def test_every_difference_has_a_reason():
    differences = rows(section(PAGE.read_text()), "the program")
    assert len(differences) > 10
    for row in differences:
        assert len(row) == 3
        assert all(row), row
