"""What tests of reports and model cards share: runs that belong together, and a page taken apart."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"br", "hr", "img", "meta"}


def make_runs(root: Path, trained: Path, tiny_config: Path, shapes_root: Path) -> Path:
    """The work dir of a distilled run in `root`, beside those of its teacher and of the student alone.

    These two are copies of one run.
    """
    from rich.console import Console

    from cskd_train.engine.run import RunOptions, run

    for name in ("teacher", "alone"):
        shutil.copytree(trained, root / name)
    config = root / "distilled.conf.py"
    config.write_text(
        f"_base_ = [{str(tiny_config)!r}]\n"
        f"distill = dict(teacher=dict(checkpoint={str(root / 'teacher' / 'best.pth')!r}), tower=None, prediction=None, "
        "assistant=None)\n"
    )
    options = RunOptions(
        config=str(config), work_dir=root / "distilled", overrides={"data_root": str(shapes_root)}, seed=0
    )
    run(options, Console(stderr=True, quiet=True))
    return root / "distilled"


def a_run(folder: Path, config: dict[str, Any], log: list[dict[str, Any]]) -> Path:
    """A work dir of a run under way, without any checkpoint."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in log))
    return folder


class Page(HTMLParser):
    """The elements of a page that tests look at. Every element that is opened has to be closed, in order.

    Attributes:
        tables: heading of the section -> its tables, each a list of rows of text, the titles first.
        text: heading of the section -> all text in it.
        elements: (name, attributes) of every element.
        figures: what the page holds as JSON.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[list[str]]]] = {}
        self.text: dict[str, str] = {}
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.figures: dict[str, Any] = {}
        self._open: list[str] = []
        self._section = ""
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "h2":
            self._section = ""
        if tag == "table":
            self.tables.setdefault(self._section, []).append([])
        if tag == "tr":
            self.tables[self._section][-1].append([])
        if tag in ("td", "th"):
            self.tables[self._section][-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            self.figures = json.loads(data)
        elif inside == "h2":
            self._section += data
        elif {"td", "th"} & {*self._open}:
            self.tables[self._section][-1][-1][-1] += data
        if inside not in ("script", "style"):
            self.text[self._section] = self.text.get(self._section, "") + data

    def table(self, section: str, place: int = 0) -> dict[str, dict[str, str]]:
        """A table by its first column, then by its titles."""
        titles, *rows = self.tables[section][place]
        return {row[0]: dict(zip(titles[1:], row[1:], strict=True)) for row in rows}
