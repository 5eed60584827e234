"""Moves a return type up to what is returned."""

from docutils import nodes


def move_return_type(app, domain, objtype, contentnode):
    """Moves the return type from the end up to what is returned. Any and None say nothing and are dropped."""
    for fields in list(contentnode.findall(nodes.field_list)):
        named = {field[0].astext(): field for field in fields}
        if "rtype" not in named:
            continue
        fields.remove(named["rtype"])
        if "returns" in named and named["rtype"][1].astext() not in ("Any", "None"):
            fields.insert(fields.index(named["returns"]) + 1, named["rtype"])


def setup(app):
    app.connect("object-description-transform", move_return_type)
    return {"parallel_read_safe": True}
