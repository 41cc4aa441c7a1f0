"""Docstrings and help texts are written for a terminal: examples become code, signs of markup are escaped."""

from __future__ import annotations

import inspect
from typing import Any

import click
from sphinx.application import Sphinx


def _description(app: Sphinx, ctx: click.Context, lines: list[str]) -> None:
    """The help of a command; a block that click is to leave as it is (after a line with a backspace) is code."""
    paragraphs = inspect.cleandoc(ctx.command.help or "").split("\n\n")
    written: list[str] = []
    for paragraph in paragraphs:
        first, *rest = paragraph.splitlines()
        if first != "\b":
            written += [line.replace("\\", "\\\\").replace("*", "\\*").replace("`", "\\`") for line in [first, *rest]]
        elif rest[0] == "Examples:":
            written += [".. code-block:: text", "", *(f"   {line.strip()}" for line in rest[1:])]
        else:
            written += [f"| {line}" for line in rest]
        written.append("")
    lines[:] = written


def _options(app: Sphinx, ctx: click.Context, lines: list[str]) -> None:
    lines[:] = [line.replace("*", "\\*") if line.startswith("   ") and "``" not in line else line for line in lines]


def _docstring(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """An example without prompts is code all the same."""
    for index, line in enumerate(lines):
        if line.strip() == "Example:" and not lines[index + 1].lstrip().startswith(">>>"):
            indent = line[: len(line) - len(line.lstrip())] + "    "
            end = next((n for n in range(index + 1, len(lines)) if lines[n] and not lines[n].startswith(indent)), None)
            code = [f"    {one}" if one else "" for one in lines[index + 1 : end]]
            lines[index + 1 : end] = [f"{indent}.. code-block:: python", "", *code, ""]
            return


def _name(group: click.Group) -> None:
    """Give each command the name that its group has for it: sphinx-click prints the name of the command itself."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        command.name = name
        if isinstance(command, click.Group):
            _name(command)


def setup(app: Sphinx) -> dict[str, bool]:
    """Docstrings are seen before napoleon reads them."""
    from cskd_deploy.cli import cli as deploy
    from cskd_train.cli import cli as train

    _name(deploy)
    _name(train)
    app.connect("autodoc-process-docstring", _docstring, priority=400)
    app.connect("sphinx-click-process-description", _description)
    app.connect("sphinx-click-process-options", _options)
    return {"parallel_read_safe": True}
