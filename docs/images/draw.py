"""Draw the pictures of docs/how_it_works.md: `python docs/images/draw.py` writes the SVG files beside this one.

Numbers in them are computed by cskd_core, on the worked example of docs/algorithm.md, appendix B.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

import torch

from cskd_core import RegionOptions, Regions

INK, STUDENT, TEACHER, TERM, PALE = "#222222", "#1f6fb4", "#b4561f", "#3f7d3f", "#f4f4f1"
Box = tuple[float, float, float, float]


def text(x: float, y: float, words: str, size: int = 14, fill: str = INK, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="{anchor}">{escape(words)}</text>'


def rect(box: Box, fill: str = "none", stroke: str = INK, more: str = "") -> str:
    x, y, width, height = box
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" stroke="{stroke}" {more}/>'


def block(box: Box, words: str, stroke: str) -> str:
    x, y, width, height = box
    return rect(box, "#ffffff", stroke, 'stroke-width="2" rx="5"') + text(x + width / 2, y + height / 2 + 5, words)


def arrow(x1: float, y1: float, x2: float, y2: float, stroke: str = INK, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{stroke}" stroke-width="1.6"{dash} '
        'marker-end="url(#tip)"/>'
    )


def picture(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """A whole SVG file on a pale ground, so that it is legible on dark pages too."""
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>'
    )
    body = "\n".join([tip, rect((0, 0, width, height), PALE, "none", 'rx="8"'), *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="Helvetica, Arial, sans-serif">\n<title>{escape(title)}</title>\n{body}\n</svg>\n'
    )


def overview() -> str:
    """Student and teacher side by side, and which parts of them each term compares."""
    rows = {"student": (60, STUDENT), "teacher": (250, TEACHER)}
    columns = {"image": 20, "backbone": 130, "pyramid": 260, "head towers": 400, "predictions": 560}
    terms = {"pyramid": "pyramid terms", "head towers": "tower terms", "predictions": "prediction terms"}
    parts = []
    for name, (y, colour) in rows.items():
        parts.append(text(20, y - 14, name + (", frozen" if name == "teacher" else ""), 15, colour, "start"))
        for words, x in columns.items():
            wide = 90 if words == "image" else 110
            parts.append(block((x, y, wide, 50), words, colour if words != "image" else INK))
            if words != "predictions":
                nearest = min(one for one in columns.values() if one > x)
                parts.append(arrow(x + wide, y + 25, nearest - 2, y + 25, dashed=name == "teacher"))
    for words, term in terms.items():
        x = columns[words]
        parts.append(block((x - 8, 158, 126, 44), term, TERM))
        parts += [arrow(x + 55, 110, x + 55, 156), arrow(x + 55, 250, x + 55, 204, dashed=True)]
    parts.append(block((730, 60, 130, 50), "own losses", TERM))
    parts += [arrow(670, 85, 728, 85), block((730, 158, 130, 44), "assistant terms", TERM)]
    parts += [arrow(670, 100, 728, 160), arrow(670, 262, 728, 202, dashed=True)]
    parts.append(
        text(
            440,
            335,
            "solid: gradients flow back along the arrow; dashed: values only, none flows back into the teacher",
            13,
        )
    )
    return picture(880, 350, "What is compared of student and teacher", parts)


def features() -> tuple[torch.Tensor, torch.Tensor]:
    """The student and the teacher of appendix B: (2, 3, 4, 5), double precision."""
    b, c, y, x = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in (2, 3, 4, 5)), indexing="ij")
    student = torch.sin(0.7 * b + 0.3 * c + 0.11 * y + 0.05 * x + 0.2) + 0.1 * c
    return student, torch.cos(0.5 * b + 0.21 * c - 0.07 * y + 0.13 * x) + 0.05 * c


def shade(value: float, most: float) -> str:
    level = 255 - round(205 * value / most)
    return f"#{level:02x}{level:02x}ff"


def guidance() -> str:
    """The guidance of the first image: an outer product of two distances."""
    student, teacher = (one[0].flatten(1) for one in features())
    channel = 1 - torch.cosine_similarity(student, teacher, dim=1)
    position = 1 - torch.cosine_similarity(student, teacher, dim=0)
    product = torch.outer(channel, position)
    cell, left, top = 30, 150, 100
    parts = [text(left + 300, 30, "1 - cos over the 3 channels, at each of the 20 positions", 14, TERM)]
    for p in range(20):
        parts.append(
            rect((left + p * cell, 45, cell, cell), shade(position[p].item(), position.max().item()), "#999999")
        )
        parts.append(
            text(left + p * cell + cell / 2, 65, f"{100 * position[p].item():.0f}", 10, "#ffffff" if p < 5 else INK)
        )
    for c in range(3):
        y = top + c * cell
        parts.append(rect((left - 50, y, cell, cell), shade(channel[c].item(), channel.max().item()), "#999999"))
        parts.append(text(left - 35, y + 20, f"{100 * channel[c].item():.1f}", 10, "#ffffff" if c == 0 else INK))
        for p in range(20):
            value = product[c, p].item()
            parts.append(rect((left + p * cell, y, cell, cell), shade(value, product.max().item()), "#999999"))
            fill = "#ffffff" if value > 0.6 * product.max().item() else INK
            parts.append(text(left + p * cell + cell / 2, y + 20, f"{1e4 * value:.0f}", 9, fill))
    parts.append(text(15, top + 38, "1 - cos over", 12, TERM, "start"))
    parts.append(text(15, top + 54, "positions,", 12, TERM, "start"))
    parts.append(text(15, top + 70, "by channel", 12, TERM, "start"))
    parts.append(text(left + 300, top + 120, "their product weighs the squared difference of each element", 14))
    parts.append(
        text(
            left + 300,
            top + 140,
            "(distances in hundredths, products in ten-thousandths; worked example, first image)",
            12,
        )
    )
    return picture(780, 255, "The guidance: channel distance times position distance", parts)


def regions() -> str:
    """Two boxes of the first image of appendix B on a level of 4 x 5 cells, as published and by stride."""
    boxes = [torch.tensor([[10, 5, 29.9, 20], [0, 0, 50, 8]])]
    size, strides, shape = (4, 5), [12], (40, 50)
    parts, cell = [], 56
    for place, (title, options) in enumerate(
        {
            "as published: x / image width · W, end included": RegionOptions(),
            "cskd-fixed: x / stride, end excluded": RegionOptions(coord_base="stride", inclusive_end=False),
        }.items()
    ):
        left, top = 30 + place * 390, 60
        found = Regions(boxes, [shape], [size], strides, options)
        mask = found.foreground(0)[0]
        parts.append(text(left + 140, 40, title, 14))
        for row in range(4):
            for column in range(5):
                fill = "#bcd8bc" if mask[row, column] else "#ffffff"
                parts.append(rect((left + column * cell, top + row * cell, cell, cell), fill, "#999999"))
        for box in found.rois(0)[:, 1:] if place == 0 else boxes[0] / strides[0]:
            x1, y1, x2, y2 = (cell * one for one in box.tolist())
            parts.append(rect((left + x1, top + y1, x2 - x1, y2 - y1), "none", TEACHER, 'stroke-width="2.5"'))
        limit = 50 / (12 if place else 10) * cell
        parts.append(
            f'<line x1="{left + limit:g}" y1="52" x2="{left + limit:g}" y2="292" stroke="{STUDENT}" '
            'stroke-dasharray="6 4"/>'
        )
    parts.append(
        text(
            400,
            318,
            "brown: boxes on the level; green: foreground cells; dashed: where the image ends and padding begins",
            13,
        )
    )
    return picture(800, 335, "Boxes on a level of the pyramid", parts)


if __name__ == "__main__":
    for draw in (overview, guidance, regions):
        Path(__file__).with_name(f"{draw.__name__}.svg").write_text(draw(), encoding="utf-8")
