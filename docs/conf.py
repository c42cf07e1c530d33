"""How Sphinx builds the pages: `make docs`."""

import sys
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "lightning_reg"
author = "The lightning-reg authors"
copyright = author
release = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "families", "formulas"]
exclude_patterns = ["_build"]

# Pages
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"lightning_reg {release}"
html_copy_source = False

# Docstrings are the source of the reference.
autodoc_inherit_docstrings = False  # hooks of Lightning's have Lightning's words
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
default_role = "py:obj"
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 88
