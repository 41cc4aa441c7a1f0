"""The tables of contents of index.md take what there is: a page that none names, or one that is gone, is no error.

Pages that no table names stand in one of their own at the end; a pattern that no page fits is left out.
"""

from __future__ import annotations

import re

from sphinx.application import Sphinx
from sphinx.util.matching import patfilter

TABLE = re.compile(r"(?<=```\{toctree\}\n).*?(?=```)", re.DOTALL)
PLACE = "<!-- other pages -->"


def _complete(app: Sphinx, name: str, source: list[str]) -> None:
    if name != "index":
        return
    app.env.note_reread()  # with every build: pages come and go
    others = app.env.found_docs - {"index"}

    def without_empty_patterns(table: re.Match[str]) -> str:
        entries = table.group().splitlines(keepends=True)
        for entry in entries:
            others.difference_update(patfilter(others, entry.strip()))
        return "".join(one for one in entries if "*" not in one or patfilter(app.env.found_docs, one.strip()))

    text = TABLE.sub(without_empty_patterns, source[0])
    table = "\n".join(["```{toctree}", ":caption: More", ":hidden:", "", *sorted(others), "```"]) if others else ""
    source[0] = text.replace(PLACE, table)


def setup(app: Sphinx) -> dict[str, bool]:
    """Look at index.md as it is read."""
    app.connect("source-read", _complete)
    return {"parallel_read_safe": True}
