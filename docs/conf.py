"""How the site is built: `make docs`. Pages are read without a network: no font, script or formula is fetched."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE / "_extensions"), *map(str, sorted(ROOT.glob("packages/*/src")))]

project = "CSKD"
author = "The CSKD contributors"
version = release = (ROOT / "VERSION").read_text().strip()
html_title = f"CSKD {release}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "mathml",
    "other_pages",
    "plain_text",
    "settings_tables",
]
exclude_patterns = ["_build", "_extensions", "notebooks", "**/.ipynb_checkpoints"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
nitpicky = True
# Types in signatures that have no page: those of other packages, and those that a user meets and does not make.
nitpick_ignore_regex = [("py:class", ".*")]

myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

default_role = "code"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_preprocess_types = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
