"""Single backticks in docstrings: a public name becomes a link to its entry, anything else is code.

A name that starts with `dgcl_ops.` must exist, so a renamed function fails the build.
"""

import importlib
import re

from docutils import nodes
from sphinx.roles import XRefRole

# Where the reference documents each name: the first module that lists it.
MODULES = ("ops", "viz", "")


def documented_names() -> dict[str, str]:
    names: dict[str, str] = {}
    for part in MODULES:
        module = f"dgcl_ops.{part}".rstrip(".")
        for name in importlib.import_module(module).__all__:
            names.setdefault(name, f"{module}.{name}")
    return names


class NameRole(XRefRole):
    names = documented_names()

    def run(self):
        name = self.text.removeprefix("dgcl_ops.")
        target = self.names.get(name)
        if target is None and re.fullmatch(r"dgcl_ops(\.\w+)+", self.text):
            target = self.text
        if target is None:
            return [nodes.literal(self.rawtext, self.text)], []
        self.name, self.refdomain, self.reftype = "py:obj", "py", "obj"
        self.has_explicit_title, self.title, self.target = True, self.text, target
        self.classes = ["xref", "py", "py-obj"]
        return self.create_xref_node()


def move_return_type(app, domain, objtype, contentnode):
    """Moves the return type from the end up to what is returned. Any and None say nothing and are dropped."""
    for fields in list(contentnode.findall(nodes.field_list)):
        named = {field[0].astext(): field for field in fields}
        if "rtype" not in named:
            continue
        fields.remove(named["rtype"])
        if "returns" in named and named["rtype"][1].astext() not in ("Any", "None"):
            fields.insert(fields.index(named["returns"]) + 1, named["rtype"])


def drop_docstring_of_type(app, what, name, value, options, lines):
    """A constant has no docstring. autodoc shows that of its type, such as str."""
    if isinstance(value, str | int | float):
        lines.clear()


def setup(app):
    app.connect("autodoc-process-docstring", drop_docstring_of_type)
    app.connect("object-description-transform", move_return_type)
    app.add_role("name", NameRole())
    app.config.default_role = "name"
    return {"parallel_read_safe": True}
