"""Read one Pascal VOC annotation, with the line of everything that is wrong in it."""

from __future__ import annotations

import codecs
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from cskd_data.boxes import number
from cskd_data.errors import DataError
from cskd_data.names import plain_name

MOST_BYTES = 1 << 22
"""Of an XML file: more than 10,000 objects."""

_DEEPEST = 64
_KEPT = ("filename", "size", "object", "name", "difficult", "score", "bndbox", "polygon", "pt")
_LEAVES = ("width", "height", "xmin", "ymin", "xmax", "ymax")
_DECLARED = re.compile(rb"<\?xml[^>]*?encoding\s*=\s*['\"]([A-Za-z0-9._-]{1,40})['\"]")
_POINT = re.compile(r"[xy]\d*")
_HEAD = 1 << 14  # bytes in which the first element begins
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_FIRST = re.compile(rb"<([A-Za-z_][\w.:-]*)")


@dataclass(frozen=True)
class VocObject:
    """One `<object>`: xmin, ymin, xmax and ymax as they stand in `<bndbox>`, or of its polygon's points.

    `box` is None where it has neither; `score` is what a detector wrote as `<score>`.
    """

    name: str
    box: tuple[float, float, float, float] | None
    difficult: bool
    of_polygon: bool = False
    score: float | None = None


@dataclass(frozen=True)
class VocAnnotation:
    """One XML file. `width` and `height` are None where it has no `<size>`, or zeros in it."""

    path: Path
    filename: str | None
    width: int | None
    height: int | None
    objects: tuple[VocObject, ...]


def is_another(path: Path) -> bool:
    """Whether an XML file is about something else: its root is seen, and is no `<annotation>`.

    Programs leave such files beside images (`a.tif.aux.xml`). What is broken, or cannot be read, is not told apart.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except (OSError, ValueError):
        return False
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        head = head.decode("utf-16", errors="replace").encode()
    first = _FIRST.search(_COMMENT.sub(b"", head))
    return first is not None and first[1] != b"annotation"


def read_xml(path: Path) -> VocAnnotation:
    """Read an XML file in any encoding that Python has; one that is not what it says is read as Windows-1252.

    Raises:
        DataError: the file cannot be read, is not XML, declares entities, or lacks what VOC annotations have; file and
            line are named.
    """
    root = _parse(path)
    if root.tag != "annotation":
        raise root.fault(f"is <{root.tag}>, expected a VOC <annotation>")
    filename, size = root.child("filename"), root.child("size")
    width = size.need("width").number() if size else 0
    height = size.need("height").number() if size else 0
    sized = 0 < width < 1 << 31 and 0 < height < 1 << 31
    return VocAnnotation(
        path=path,
        filename=filename.text.strip() or None if filename else None,
        width=round(width) if sized else None,
        height=round(height) if sized else None,
        objects=tuple(_object(element) for element in root.children if element.tag == "object"),
    )


def _object(element: _Element) -> VocObject:
    name = element.need("name")
    plain = plain_name(name.text)
    if not plain:
        raise name.fault("is empty, expected a class name")
    bndbox, polygon, difficult = element.child("bndbox"), element.child("polygon"), element.child("difficult")
    box = None
    if bndbox is not None:
        xmin, ymin, xmax, ymax = (bndbox.need(side).number() for side in ("xmin", "ymin", "xmax", "ymax"))
        box = xmin, ymin, xmax, ymax
    elif polygon is not None:
        box = _around(polygon)
    is_difficult = difficult is not None and difficult.text.strip() in ("1", "true", "True")
    score = element.child("score")
    of_polygon = bndbox is None and box is not None
    return VocObject(plain, box, is_difficult, of_polygon, None if score is None else number(score.text.strip()))


def _around(polygon: _Element) -> tuple[float, float, float, float] | None:
    """Of points written as `<x1>`, `<y1>`, `<x2>` ... or as `<pt><x>`, `<y>`."""
    elements = [one for child in polygon.children for one in (child.children if child.tag == "pt" else [child])]
    xs = [one.number() for one in elements if one.tag[0] == "x"]
    ys = [one.number() for one in elements if one.tag[0] == "y"]
    return (min(xs), min(ys), max(xs), max(ys)) if xs and ys else None


@dataclass(slots=True)
class _Element:
    path: Path
    tag: str
    line: int
    pieces: list[str] = field(default_factory=list)
    children: list[_Element] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def fault(self, problem: str) -> DataError:
        return DataError(f"{self.path}, line {self.line}: <{self.tag}> {problem}")

    def child(self, tag: str) -> _Element | None:
        return next((child for child in self.children if child.tag == tag), None)

    def need(self, tag: str) -> _Element:
        child = self.child(tag)
        if child is None:
            raise self.fault(f"has no <{tag}>")
        return child

    def number(self) -> float:
        text = self.text.strip()
        try:
            value = float(text if "," not in text or "." in text else text.replace(",", ".", 1))
        except ValueError:
            value = math.nan
        if not abs(value) < 1e9:
            raise self.fault(f"is {text[:40]!r}, expected a number")
        return value


def _parse(path: Path) -> _Element:
    """The tree of what is read of an XML file; ElementTree keeps no line numbers, expat has them."""
    content = _content(path)
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    top = _Element(path, "", 0)
    open_elements: list[_Element | None] = [top]

    def start(tag: str, _: dict[str, Any]) -> None:
        parent = open_elements[-1]
        if len(open_elements) > _DEEPEST:
            raise DataError(f"{path}, line {parser.CurrentLineNumber}: nested more than {_DEEPEST} deep")
        if parent is None or (parent is not top and tag not in _KEPT + _LEAVES and not _POINT.fullmatch(tag)):
            open_elements.append(None)  # a part, an attribute or what else is not read, with all in it
            return
        element = _Element(path, tag, parser.CurrentLineNumber)
        parent.children.append(element)
        open_elements.append(element)

    def end(_: str) -> None:
        open_elements.pop()

    def text(data: str) -> None:
        element = open_elements[-1]
        if element is not None:
            element.pieces.append(data)

    def entity(*_: Any) -> None:
        raise DataError(f"{path}, line {parser.CurrentLineNumber}: declares an entity, which is not read")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.EntityDeclHandler = entity
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        problem = expat.ErrorString(error.code)
        raise DataError(f"{path}, line {error.lineno}, column {error.offset + 1}: not XML ({problem})") from error
    return top.children[0]


def _content(path: Path) -> bytes:
    """The file in UTF-8, whatever its own encoding."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"annotation {path} cannot be read: {reason}") from error
    if len(content) > MOST_BYTES:
        raise DataError(f"annotation {path} is larger than {MOST_BYTES >> 20} MiB, expected one image's objects")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace").encode()
    content = content.removeprefix(codecs.BOM_UTF8)
    declared = _DECLARED.match(content.lstrip())
    name = declared[1].decode() if declared else "utf-8"
    names = ["gb18030" if name.lower() in ("gb2312", "gbk") else name, "cp1252", "latin-1"]
    for encoding in names:
        try:
            return content.decode(encoding).encode()
        except (LookupError, UnicodeError):
            continue
    return content
