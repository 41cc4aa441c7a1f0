"""The commands that the pages and `--help` show are commands, and each is run or says why it is not."""

from __future__ import annotations

import re

import pytest

from . import shell
from .not_run import NOT_RUN, reason
from .pages import ROOT, Command, commands_of, fault, of_help, of_pages

PAGES, HELP = of_pages(), of_help()
OWN = [command for command in [*PAGES, *HELP] if command.program in ("cskd-train", "cskd-deploy")]


def test_comments_continuations_and_blocks_are_read():
    page = """Text.

    cskd-train run a.py \\
        --gpus 2   # two
    prose

```sh
make demo && make test
```
    x = 1
"""
    found = [command.text for command in commands_of(page, "page")]
    assert found == ["cskd-train run a.py --gpus 2", "make demo", "make test"]
    assert Command("page", "cskd-deploy eval a --json > b.json").output == "b.json"


def test_there_are_commands_on_the_pages_and_in_every_help():
    assert len([command for command in PAGES if command.where == "README.md"]) > 10
    assert len({command.where for command in HELP}) > 15


@pytest.mark.parametrize("command", dict.fromkeys(OWN), ids=str)
def test_its_options_and_their_values_are_known(command):
    assert fault(command.words) is None


@pytest.mark.parametrize(
    "words", ["cskd-train run a.py --gpu 2", "cskd-train runn a.py", "cskd-deploy bench a --batch x"]
)
def test_a_command_that_click_would_refuse_is_found(words):
    assert fault(words.split())


@pytest.mark.parametrize("command", [one for one in PAGES if one.text.startswith("python benchmarks/")], ids=str)
def test_the_options_of_a_benchmark_are_its_own(command):
    script = (ROOT / command.words[1]).read_text(encoding="utf-8")
    assert not [word for word in command.words if word.startswith("--") and f'"{word}' not in script]


@pytest.mark.parametrize("command", [one for one in OWN if " configs/" in one.text], ids=str)
def test_the_configs_that_it_names_are_there(command):
    assert all((ROOT / word).is_file() for word in command.words if re.match(r"configs/\S+\.py$", word))


def test_every_reason_not_to_run_a_command_is_of_one_and_the_test_that_it_names_is_there():
    for pattern, why in NOT_RUN.items():
        assert any(re.search(pattern, str(command)) for command in [*PAGES, *HELP]), f"no command is {pattern!r}"
        for path in re.findall(r"tests/\S+\.py", why):
            assert (ROOT / path).is_file(), f"{pattern}: {path}"


@pytest.mark.parametrize(
    ("text", "short"),
    [
        (
            "cskd-train run CONFIG --epochs 9",
            f"cskd-train run {shell.STANDS_FOR['CONFIG']} --epochs 2",
        ),
        ("cskd-train run mine.py --gpus 2", "cskd-train run mine.py --gpus 2 --epochs 1 --device cpu"),
        ("cskd-deploy bench a.onnx --duration 15", "cskd-deploy bench a.onnx --duration 0.2"),
        ("cskd-deploy bench a.onnx --mlperf", "cskd-deploy bench a.onnx --mlperf"),
        ("cskd-deploy infer a.onnx *.txt $NAME/x", "cskd-deploy infer a.onnx 1.txt 2.txt there/x"),
        ("python benchmarks/step.py runs/{a,b}_cards/best.pth", "python benchmarks/step.py runs/a_cards/best.pth"),
        ("cskd-deploy inspect \"{'a':(1,2),'b':3}\"", "cskd-deploy inspect {'a':(1,2),'b':3}"),
    ],
)
def test_what_takes_long_is_cut_short_and_what_a_shell_reads_is_read(text, short, tmp_path, monkeypatch):
    monkeypatch.setenv("NAME", "there")
    monkeypatch.chdir(tmp_path)
    for name in ("2.txt", "1.txt"):
        (tmp_path / name).touch()
    assert shell.short_form(Command("page", text)) == short.split()


def test_what_is_no_command_of_this_project_has_a_reason():
    others = [command for command in PAGES if command.program not in shell.PROGRAMS]
    assert not [str(command) for command in others if reason(command) is None]


def test_a_reason_is_found_by_page_and_text():
    assert reason(Command("README.md", "make demo")) is not None
    assert reason(Command("README.md", "cskd-deploy inspect student.onnx")) is None
