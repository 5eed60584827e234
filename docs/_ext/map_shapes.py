"""Escapes the star of shapes such as [B, D, *S] in docstrings. reStructuredText would take it for emphasis."""

import re

STAR = re.compile(r"(?<=[\[ ])\*(?=[Ss]\b)")  # of [B, *S], [*S] and size *s]


def escape(app, what, name, obj, options, lines):
    lines[:] = [
        line if line.lstrip().startswith(">>>") else STAR.sub(r"\\*", line) for line in lines
    ]


def setup(app):
    app.connect("autodoc-process-docstring", escape, priority=600)  # after napoleon's 500
    return {"parallel_read_safe": True}
