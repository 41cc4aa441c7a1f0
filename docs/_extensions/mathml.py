"""Formulas as MathML, written when the site is built: browsers show it without a script, so without a network."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.math import get_node_equation_number


def _mathml(formula: str, block: bool) -> str:
    r"""The formula; `\Big` is LaTeX's, but not the converter's, and `&` aligns only inside an environment."""
    formula = re.sub(r"\\Big(?![a-z])", "", formula)
    if block and "&" in formula and r"\begin" not in formula:
        formula = rf"\begin{{aligned}}{formula}\end{{aligned}}"
    # Browsers stretch the first of two bars alone.
    return re.sub(r"<mo>([|‖∥])</mo>", r'<mo stretchy="false">\1</mo>', tex2mathml(formula, as_block=block))


def _visit_inline(self: Any, node: nodes.math) -> None:
    self.body.append(_mathml(node.astext(), False))
    raise nodes.SkipNode


def _visit_block(self: Any, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})</span>')
    self.body.append(f"{_mathml(node.astext(), True)}</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer as `html_math_renderer = "mathml"`."""
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
