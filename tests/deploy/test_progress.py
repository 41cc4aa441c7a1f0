"""Progress: a bar where a person looks, plain lines where none does, and nothing of it in the output."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cskd_deploy import progress as module
from cskd_deploy.progress import Progress

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")


def on_a_terminal(*arguments, **env):
    """Exit code, stdout (a pipe) and stderr (a terminal) of a Python process."""
    here, there = pty.openpty()
    settings = {**os.environ, "TERM": "xterm", **env}
    command = [sys.executable, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=there, env=settings)
    os.close(there)
    shown = b""
    while True:
        try:
            block = os.read(here, 4096)
        except OSError:  # the other end is closed
            break
        if not block:
            break
        shown += block
    os.close(here)
    out, _ = process.communicate(timeout=60)
    return process.returncode, out.decode(), shown.decode()


WORK = """
import sys
from cskd_deploy import progress
progress.SECONDS_BETWEEN_DRAWINGS = 0
with progress.Progress("eval", "images") as count:
    for done in range(1, 7):
        count(done, 6)
        print("result", done)
        if done == 4:
            print("a warning", file=sys.stderr)
            {stop}
"""


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end_and_the_output_is_untouched():
    code, out, shown = on_a_terminal("-c", WORK.format(stop="pass"))
    assert (code, out) == (0, "".join(f"result {done}\n" for done in range(1, 7)))
    assert "eval" in shown
    assert "━" in shown
    assert "4/6" in shown
    assert "a warning\r\n" in shown
    assert shown.count(HIDE) == shown.count(SHOW) == 1
    assert shown.endswith("\x1b[2K")  # the bar's line is cleared


def test_work_that_fails_gives_the_terminal_its_cursor_back_before_the_error():
    code, _, shown = on_a_terminal("-c", WORK.format(stop="raise ValueError('broken')"))
    assert code == 1
    assert shown.index(HIDE) < shown.index(SHOW) < shown.index("broken")


def test_a_terminal_that_cannot_clear_a_line_gets_plain_lines():
    code, _, shown = on_a_terminal("-c", WORK.format(stop="pass"), TERM="dumb")
    assert code == 0
    assert "\x1b" not in shown
    assert "eval 6/6 images, " in shown


def test_a_log_gets_lines_and_no_bar_even_where_colours_are_forced(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    clock = iter([0.0, 2.0, 6.0, 8.0, 12.0, 13.0, 14.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    with Progress("eval", "images") as count:
        for done in (1, 2, 3, 4, 5, 5):
            count(done, 5)
    assert capsys.readouterr().err == (
        "eval 2/5 images, 0.3/s, 9 s left\neval 4/5 images, 0.3/s, 3 s left\neval 5/5 images, 0.4/s, 13.0 s\n"
    )


def test_a_command_whose_output_is_a_pipe_writes_what_it_writes_without_a_terminal(model_file, shapes_root, tmp_path):
    arguments = ("-m", "cskd_deploy", "infer", model_file, shapes_root / "images", "--score-thr", 0.5)
    code, out, shown = on_a_terminal(*arguments, "--json", tmp_path / "found.json")
    plain = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert (code, plain.returncode) == (0, 0)
    assert out == plain.stdout
    assert len(out.splitlines()) == len(json.loads((tmp_path / "found.json").read_text())["images"])
    assert shown.count(HIDE) == shown.count(SHOW)
