"""Relative links that leave docs/ become addresses in the repository. tests/project/test_docs.py checks them."""

from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform


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
            kind = "tree" if path.is_dir() else "blob"
            inside = path.relative_to(docs.parent).as_posix()
            address = f"{self.config.repository_url}/{kind}/main/{inside}"
            address += f"#{anchor}" if anchor else ""
            link = nodes.reference("", "", *node.children, refuri=address, internal=False)
            node.replace_self(link)


def setup(app):
    app.add_config_value("repository_url", "", "env")
    app.add_transform(RepositoryLinks)
    return {"parallel_read_safe": True}
