"""HTML and SVG as text, in which whatever is no markup is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any


class Html(str):
    """Markup: it goes into other markup as it is."""


_VOID = ("br", "hr", "img", "meta")


def element(tag: str, /, *content: Any, **attributes: Any) -> Html:
    """An element. Content that is no `Html` is text; a list is each of its items; None is nothing.

    Args:
        attributes: `class_` for `class`, `stroke_width` for `stroke-width`; those that are None or False are left out.

    Example:
        >>> element("p", "a < b ", element("b", "c"), class_="note")
        '<p class="note">a &lt; b <b>c</b></p>'
    """
    given = [
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_printable(str(value)))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    ]
    opening = f"<{tag}{''.join(given)}>"
    return Html(opening if tag in _VOID else f"{opening}{joined(content)}</{tag}>")


def joined(content: Iterable[Any]) -> Html:
    """Pieces of markup and text, one after the other."""
    return Html("".join(_text(one) for one in content))


def _text(one: Any) -> str:
    if one is None:
        return ""
    if isinstance(one, Html):
        return one
    if isinstance(one, (list, tuple)):
        return joined(one)
    return html.escape(_printable(str(one)))


def _printable(text: str) -> str:
    """`text` without what HTML has no sign for: names of files may hold bytes that are no text."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], *, text_columns: int = 1, caption: str = "") -> Html:
    """A table that scrolls where the page is narrower; the columns after `text_columns` are numbers."""
    kinds = [None if place < text_columns else "number" for place in range(len(head))]
    cells = [[element("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True)] for row in rows]
    titles = [element("th", one, class_=kind, scope="col") for one, kind in zip(head, kinds, strict=True)]
    body = element("tbody", [element("tr", row) for row in cells])
    whole = element("table", element("thead", element("tr", titles)), body, aria_label=caption or None)
    above = element("p", caption, class_="pale") if caption else Html()
    return joined([above, element("div", whole, class_="scroll")])


def folded(summary: str, *content: Any) -> Html:
    """Content behind a line that opens it."""
    return element("details", element("summary", summary), *content)


def note(text: Any) -> Html:
    """A sentence on what is missing, or on how to read what follows."""
    return element("p", text, class_="note")


def figure(*content: Any, caption: Any = "") -> Html:
    """A picture or a chart with what it shows."""
    return element("figure", *content, element("figcaption", caption) if caption else None)
