"""Builds the documentation site: `make docs`. All pages also read well as plain files."""

import sys
from pathlib import Path

import tomllib

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))

import numpy  # noqa: E402  after the path
import torch  # noqa: E402

import dgcl_ops  # noqa: E402
import dgcl_ops.viz._images  # noqa: E402

# The package imports numpy for type checkers only. autodoc evaluates the annotations.
dgcl_ops.viz._images.np = numpy
torch.nn.Module.__module__ = "torch.nn"  # the name that PyTorch documents it by

metadata = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
repository_url = metadata["urls"]["Repository"]

project = "dgcl_ops"
author = copyright = "the dgcl_ops authors"
version = release = dgcl_ops.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "myst_nb",  # includes myst_parser
    "mathml",
    "repository_links",
    "map_shapes",
    "return_types",
]
exclude_patterns = ["**/.ipynb_checkpoints"]

# Markdown: anchors are slugs of headings, as on the repository's page. The notebook is committed with its outputs.
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
smartquotes_action = "D"  # dashes only: "cosine" is an argument, to be copied
nb_execution_mode = "off"

# Docstrings: types come from the annotations. Single backticks link to the entry of a name. Other text in them is code,
# unless it begins with "dgcl_ops.": then it must be a name.
default_role = "py:obj"
nitpick_ignore_regex = [("py:obj", r"(?!dgcl_ops\.).*")]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

# The few names of PyTorch, NumPy and Python that the annotations use. Files instead of downloads: the build needs no
# network and gives the same result everywhere. `make docs-links` checks the addresses.
intersphinx_mapping = {
    "torch": ("https://docs.pytorch.org/docs/stable/", "inventory/torch.txt"),
    "numpy": ("https://numpy.org/doc/stable/", "inventory/numpy.txt"),
    "python": ("https://docs.python.org/3/", "inventory/python.txt"),
}
nitpicky = True
# FeatureTap's annotation as it is written: autodoc does not evaluate the annotations of a class's own signature.
nitpick_ignore = [("py:class", "nn.Module")]

highlight_language = "none"  # of formulas in docstrings; other blocks name their language
html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"dgcl_ops {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_theme_options = {
    "source_repository": repository_url,
    "source_branch": "main",
    "source_directory": "docs/",
}
copybutton_exclude = ".linenos, .gp, .go"

linkcheck_timeout = 20
linkcheck_retries = 2
# Pages that exist only after the first upload, and addresses of commits that are not there yet.
linkcheck_ignore = [repository_url + ".*"]
