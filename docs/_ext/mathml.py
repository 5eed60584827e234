"""Formulas as MathML, which browsers draw themselves, without a script from another site."""

from docutils.nodes import SkipNode, math_block
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
# docutils marks no bar as a closing one, and browsers then put space around it.
BARS = {
    '<mo class="mathopen">|</mo>': '<mo form="prefix">|</mo>',
    "<mo>|</mo>": '<mo form="postfix">|</mo>',
}


def visit(translator, node):
    """Raises SkipNode after writing the formula. A formula that cannot be read is a warning."""
    block = isinstance(node, math_block)
    try:
        markup = tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        LOGGER.warning("formula: %s", error, location=node, type="math")
        markup = translator.encode(node.astext())
    for old, new in BARS.items():
        markup = markup.replace(old, new)
    translator.body.append(f'<div class="math">{markup}</div>' if block else markup)
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit, None), (visit, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
