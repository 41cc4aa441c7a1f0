"""docs/troubleshooting.md quotes messages that the code has."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"```text\n(.+)\n```", PAGE)


@cache
def templates() -> tuple[str, ...]:
    """Every text in the packages' sources, with a tab in the place of what an f-string fills in."""
    found = []
    for file in sorted(REPOSITORY.glob("packages/*/src/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (one.value if isinstance(one, ast.Constant) else "\t" for one in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def is_said(message: str) -> bool:
    """Whether one text has all fixed parts of the message in their order, with something to fill in between them."""
    parts = [part.strip(" ") for part in message.split("…")]
    pattern = re.compile(r".*\t.*".join(map(re.escape, parts)), re.DOTALL)
    return any(all(part in one for part in parts) and pattern.search(one) for one in templates())


def test_there_are_thirty_at_least():
    assert len(QUOTED) >= 30
    assert len(set(QUOTED)) == len(QUOTED)


@pytest.mark.parametrize("message", QUOTED)
def test_the_code_says_it(message):
    words = [word for part in message.split("…") for word in re.findall(r"[a-zA-Z]{2,}", part)]
    assert len(words) >= 3
    assert is_said(message)


def test_what_the_code_does_not_say_is_found():
    assert not is_said("work dir … already holds … run (…). Go on with --resumption")
