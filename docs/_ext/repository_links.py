"""Relative links that leave docs/ become addresses in the repository. A missing file or heading there is a warning."""

import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)


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


class RepositoryLinks(SphinxTransform):
    default_priority = 400  # after parsing, before Sphinx looks for the targets

    def apply(self):
        docs = Path(self.env.srcdir).resolve()
        for node in self.document.findall():
            if not isinstance(node, addnodes.pending_xref | addnodes.download_reference):
                continue
            if node.get("reftype") != "myst":
                continue
            target, _, anchor = node["reftarget"].partition("#")
            if node.get("refdomain") == "doc":  # MyST took it for a page and cut the suffix off
                target, anchor = f"{target}.md", node.get("reftargetid") or ""
            path = (Path(self.env.doc2path(self.env.docname)).parent / target).resolve()
            if not target or (path.is_relative_to(docs) and not path.is_dir()):
                continue  # a page
            root = docs.parent
            wrong = problem(path, anchor) if path.is_relative_to(root) else "outside the repository"
            if wrong:
                LOGGER.warning("link to %s: %s", target, wrong, location=node, type="repository")
            kind = "tree" if path.is_dir() else "blob"
            address = f"{self.config.repository_url}/{kind}/main"
            if path != root and path.is_relative_to(root):
                address += f"/{path.relative_to(root).as_posix()}"
            address += f"#{anchor}" if anchor else ""
            link = nodes.reference("", "", *node.children, refuri=address, internal=False)
            node.replace_self(link)


def setup(app):
    app.add_config_value("repository_url", "", "env")
    app.add_transform(RepositoryLinks)
    return {"parallel_read_safe": True}
