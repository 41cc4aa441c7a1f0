"""Read one Pascal VOC annotation, with the line of everything that is wrong in it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from cskd_train.errors import TrainError


@dataclass(frozen=True)
class VocObject:
    """One `<object>`: the four numbers as they stand in `<bndbox>`."""

    name: str
    xmin: float
    ymin: float
    xmax: float
    ymax: float
    difficult: bool


@dataclass(frozen=True)
class VocAnnotation:
    """One file of `Annotations/`. `width` and `height` are None where the file has no `<size>`, or zeros in it."""

    filename: str | None
    width: int | None
    height: int | None
    objects: tuple[VocObject, ...]


def read_voc(path: Path) -> VocAnnotation:
    """Read an XML file.

    Raises:
        TrainError: the file cannot be read, is not XML, or lacks what VOC annotations have; file and line are named.
    """
    root = _parse(path)
    if root.tag != "annotation":
        raise root.fault(f"is <{root.tag}>, expected a VOC <annotation>")
    filename, size = root.child("filename"), root.child("size")
    width = size.need("width").number() if size else 0
    height = size.need("height").number() if size else 0
    known = width > 0 and height > 0
    return VocAnnotation(
        filename=filename.text.strip() or None if filename else None,
        width=int(width) if known else None,
        height=int(height) if known else None,
        objects=tuple(_object(element) for element in root.children if element.tag == "object"),
    )


def _object(element: _Element) -> VocObject:
    name = element.need("name")
    if not name.text.strip():
        raise name.fault("is empty, expected a class name")
    box, difficult = element.need("bndbox"), element.child("difficult")
    xmin, ymin, xmax, ymax = (box.need(side).number() for side in ("xmin", "ymin", "xmax", "ymax"))
    is_difficult = difficult is not None and difficult.text.strip() == "1"
    return VocObject(name.text.strip(), xmin, ymin, xmax, ymax, is_difficult)


@dataclass
class _Element:
    path: Path
    tag: str
    line: int
    text: str = ""
    children: list[_Element] = field(default_factory=list)

    def fault(self, problem: str) -> TrainError:
        return TrainError(f"{self.path}, line {self.line}: <{self.tag}> {problem}")

    def child(self, tag: str) -> _Element | None:
        return next((child for child in self.children if child.tag == tag), None)

    def need(self, tag: str) -> _Element:
        child = self.child(tag)
        if child is None:
            raise self.fault(f"has no <{tag}>")
        return child

    def number(self) -> float:
        try:
            value = float(self.text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.fault(f"is {self.text.strip()!r}, expected a number")
        return value


def _parse(path: Path) -> _Element:
    """The tree of an XML file; ElementTree keeps no line numbers, expat knows them."""
    parser = expat.ParserCreate()
    top = _Element(path, "", 0)
    open_elements = [top]

    def start(tag: str, _: dict[str, Any]) -> None:
        element = _Element(path, tag, parser.CurrentLineNumber)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(_: str) -> None:
        open_elements.pop()

    def text(data: str) -> None:
        open_elements[-1].text += data

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    try:
        parser.Parse(path.read_bytes(), True)
    except OSError as error:
        raise TrainError(f"annotation {path} cannot be read: {error.strerror}") from error
    except expat.ExpatError as error:
        problem = expat.ErrorString(error.code)
        raise TrainError(f"{path}, line {error.lineno}, column {error.offset + 1}: not XML ({problem})") from error
    return top.children[0]
