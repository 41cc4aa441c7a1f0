"""What the pages name is there: tests, commands with their options, the names of log entries, the pictures' numbers."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path

import click
import pytest

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = sorted(
    [*DOCS.glob("*.md"), *DOCS.glob("results/**/*.md"), REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
)


@cache
def functions(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_test_that_reliability_names_exists():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (DOCS / "reliability.md").read_text())
    assert len(named) > 30
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (REPOSITORY / "tests" / file).is_file() or test not in functions(REPOSITORY / "tests" / file)
    ]
    assert missing == []


@pytest.mark.parametrize("package", ["cskd_core", "cskd_data", "cskd_train", "cskd_deploy"])
def test_every_public_name_is_in_the_api_page(package):
    named = re.findall(rf"^\.\. auto\w+:: {package}\.(\w+)$", (DOCS / "api.md").read_text(), flags=re.MULTILINE)
    public = set(importlib.import_module(package).__all__)
    assert public == set(named)


def commands(page: Path) -> list[str]:
    """Lines of code on a page that call cskd-train or cskd-deploy; a line that ends in a backslash goes on."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    found = re.findall(r"^(?: {4,}|)((?:cskd-train|cskd-deploy) [a-z].*)$", text, flags=re.MULTILINE)
    return [re.split(r"\s{2,}#|\s#\s", line)[0] for line in found]


def resolved(words: list[str]) -> click.Command:
    """The command that the words call, and the words that are left for it."""
    from cskd_deploy.cli import cli as deploy
    from cskd_train.cli import cli as train

    command: click.Command = {"cskd-train": train, "cskd-deploy": deploy}[words.pop(0)]
    while isinstance(command, click.Group):
        inner = command.get_command(click.Context(command), words[0])
        assert inner is not None, f"no command {words[0]!r}"
        command = inner
        words.pop(0)
    return command


CALLS = [(page.relative_to(REPOSITORY).as_posix(), line) for page in PAGES for line in commands(page)]


def faults_of(line: str) -> list[str]:
    words = shlex.split(line)
    command = resolved(words)
    known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help", "-h"}
    options = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
    return [option for option in options if option not in known]


def test_every_command_on_every_page_exists_with_its_options():
    assert len(CALLS) > 80
    assert len({page for page, _ in CALLS}) > 12
    assert [(page, line, faults) for page, line in CALLS if (faults := faults_of(line))] == []


def test_an_option_that_is_not_there_is_found():
    assert faults_of("cskd-deploy export --checkpoint best.pth --precison int8") == ["--precison"]
    with pytest.raises(AssertionError, match="no command 'exprot'"):
        faults_of("cskd-deploy exprot best.pth")


def test_the_names_of_log_entries_are_those_that_golden_values_are_compared_by():
    source = (REPOSITORY / "tests" / "golden" / "check.py").read_text()
    compared = set(re.findall(r'"(loss_\w+)": "(\w+)"', source))
    rows = re.findall(r"^\| (`loss_.+) \| (`loss_.+) \|$", (DOCS / "migrating.md").read_text(), flags=re.MULTILINE)
    found = set()
    for row in rows:
        published, own = (re.findall(r"`(\w+)`", cell) for cell in row)
        found |= {(old, new.removeprefix("loss_")) for old, new in zip(published, own * len(published), strict=False)}
    assert found == compared


@pytest.mark.parametrize("name", ["overview", "guidance", "regions"])
def test_a_picture_is_what_its_script_draws(name):
    spec = importlib.util.spec_from_file_location("draw", DOCS / "images" / "draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    assert getattr(draw, name)() == (DOCS / "images" / f"{name}.svg").read_text()
