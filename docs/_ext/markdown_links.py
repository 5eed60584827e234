"""What is wrong with a link to a file of the repository. The site's build and the tests use it."""

import re
from pathlib import Path


def headings(text: str) -> set[str]:
    """The anchors of a Markdown file's headings, as the repository's page makes them."""
    text = re.sub(r"^ *(```|~~~).*?^ *\1", "", text, flags=re.MULTILINE | re.DOTALL)
    slugs: set[str] = set()
    for title in re.findall(r"^#{1,6} +(.+?)[ #]*$", text, flags=re.MULTILINE):
        title = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        numbered = (slug, *(f"{slug}-{i}" for i in range(1, 99)))
        slugs.add(next(name for name in numbered if name not in slugs))
    return slugs


def problem(path: Path, anchor: str) -> str | None:
    """What is wrong with a link to that file or folder."""
    if not path.exists():
        return "no such file"
    if anchor and path.suffix == ".md" and anchor not in headings(path.read_text()):
        return f"no heading for #{anchor}"
    return None
