"""The commands that README, docs and `--help` show: found, taken apart, and what is said of those that are not run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("*.md")),
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts),
]
PROGRAMS = (
    "cskd-train", "cskd-deploy", "python", "cd", "pip", "make", "git", "torchrun", "srun", "docker", "trtexec",
    "tritonserver", "sha256sum", "."
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """One command as it stands on a page or in a help text."""

    where: str  # docs/x.md, or `cskd-train run --help`
    text: str  # on one line, without the comment behind it

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text.partition(" > ")[0])

    @property
    def output(self) -> str | None:
        """The file to which its standard output goes."""
        return self.text.partition(" > ")[2] or None

    @property
    def program(self) -> str:
        return self.text.split()[0]

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


def commands_of(text: str, where: str) -> Iterator[Command]:
    """The commands in the code blocks of a page, fenced or indented by four spaces, comments taken off."""
    fenced, joined = False, ""
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced, joined = not fenced, ""
            continue
        if not (fenced or line.startswith("    ")):
            joined = ""
            continue
        stripped = line.strip()
        if not joined and stripped.partition(" ")[0] not in PROGRAMS:
            continue
        joined = f"{joined} {stripped.removesuffix(chr(92)).strip()}".strip()
        if not stripped.endswith("\\"):
            for part in joined.split(" && "):
                found = " ".join(re.sub(r"\s#\s.*$", "", part).split())
                if found.partition(" ")[0] in PROGRAMS and re.match(r"\S+ [-\w./{$'*]", found):
                    yield Command(where, found)
            joined = ""


def of_pages() -> list[Command]:
    """Every command of every page, in order."""
    return [
        command
        for page in dict.fromkeys(PAGES)
        for command in commands_of(page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix())
        if "──" not in command.text
    ]


def of_help() -> list[Command]:
    """Every example of every `--help`."""
    found = []
    for name, group in groups().items():
        for path, command in leaves(group, (name,)):
            lines, joined = (command.help or "").splitlines(), ""
            examples = iter(
                lines[next((n for n, line in enumerate(lines) if line.strip() == "Examples:"), len(lines)) :]
            )
            for line in examples:
                joined = f"{joined} {line.strip().removesuffix(chr(92)).strip()}".strip()
                if line.rstrip().endswith("\\"):
                    continue
                if joined.startswith("cskd-"):
                    found.append(Command(f"{' '.join(path)} --help", " ".join(re.sub(r"\s#\s.*$", "", joined).split())))
                joined = ""
    return found


def groups() -> dict[str, click.Group]:
    """Both command lines by name."""
    from cskd_deploy.cli import cli as deploy
    from cskd_train.cli import cli as train

    return {"cskd-train": train, "cskd-deploy": deploy}


def leaves(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The commands of a group and the names that lead to each; groups too, for their own examples."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from leaves(below, (*path, name))


def fault(words: list[str]) -> str | None:
    """What click would say of the words of a command before it looks at any file; None where nothing."""
    command: click.Command = groups()[words[0]]
    context, rest = click.Context(command, info_name=words[0]), list(words[1:])
    try:
        while isinstance(command, click.Group):
            _, rest, _ = command.make_parser(context).parse_args(rest)
            if not rest:
                return None
            below = command.get_command(context, rest[0])
            if below is None:
                return f"no command {rest[0]!r}"
            command, context, rest = below, click.Context(below, info_name=rest[0], parent=context), rest[1:]
        values, more, _ = command.make_parser(context).parse_args(rest)
        if more:
            return f"unexpected arguments {more}"
        for parameter in command.params:
            value = values.get(parameter.name)
            if not isinstance(value, (str, tuple, list)) or isinstance(parameter.type, (click.Path, click.File)):
                continue
            parameter.type_cast_value(context, value)
    except click.ClickException as error:
        return error.format_message()
    return None
