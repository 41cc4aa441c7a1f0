"""Runs a command of a page in the present folder, in its shortest form: few epochs, short measurements."""

from __future__ import annotations

import contextlib
import glob
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from .pages import Command

PROGRAMS = ("cskd-train", "cskd-deploy", "python", "cd")

# What a page writes for the reader's own.
STANDS_FOR = {
    "CONFIG": "configs/demo/retinanet_r18_shapes.py",
    "CHECKPOINT": "work_dirs/student/best.pth",
    "FILE": "out.json",
    "DIR": "work_dirs/dir",
}
# Options that a command is given where it has no such option.
ADDED = {
    "cskd-train run": ("--epochs", "1"),
    "cskd-train new": ("--width", "0.5"),  # that of a machine without a GPU, which needs no network
    "cskd-train data shapes": ("--images", "16", "--val-images", "8"),
    "cskd-deploy bench": ("--duration", "0.2"),
    "cskd-deploy report": ("--duration", "0.2"),
    "python benchmarks/deploy.py": ("--duration", "0.2", "--iterations", "2"),
    "python benchmarks/parity.py": ("--forms", "default", "--limit", "2"),
    "python benchmarks/gain.py": ("--dry-run",),
}
SHORTER = {"--epochs": "2", "--duration": "0.2"}
MLPERF = {"MLPERF_SECONDS": 0.2, "MLPERF_QUERIES": 4, "MLPERF_SAMPLES": 4}
# Files that a command writes where its words name none.
UNNAMED = {
    "cskd-train data show": r"contact_sheet\.png",
    "cskd-train show": r"detections\.png",
    "python benchmarks/deploy.py": r"docs/results/.*",
    "python benchmarks/gain_table.py": r"docs/results/gain_\w+\.svg",
}


def call(words: list[str]) -> tuple[int, str, str]:
    """Run a command, one of this project's programs in this process; gives its code, its output and its errors."""
    from cskd_deploy.cli import main as deploy
    from cskd_deploy.measure import run_length
    from cskd_train.cli import main as train

    if words[0] == "python":
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr
    out, error = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        mock.patch.multiple(run_length, **MLPERF),
    ):
        try:
            {"cskd-train": train, "cskd-deploy": deploy}[words[0]](words[1:])
            code = 0
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    return code, out.getvalue(), error.getvalue()


def run(command: Command) -> tuple[int, list[str], str]:
    """Run a command in the present folder.

    Returns:
        Its exit code, the files it left that its words do not name, and the end of what it printed.
    """
    words = short_form(command)
    if words[0] == "cd":
        os.chdir(words[1])
        return 0, [], ""
    _make_room(words)
    before = files()
    code, out, error = call(words)
    if command.output:
        Path(command.output).write_text(out)
    stray = sorted(path for path in files() - before if not expected(path, [*words, command.output or ""]))
    return code, stray, f"{out[-2000:]}\n{error[-2000:]}"


def short_form(command: Command) -> list[str]:
    """The words of a command as a shell gives them, of a list in braces the first one; what takes long is cut short."""
    words = [re.sub(r"\{([\w./-]*),[\w.,/-]*\}", r"\1", STANDS_FOR.get(word, word)) for word in command.words]
    words = [
        found for word in words for found in (sorted(glob.glob(word)) if "*" in word else [os.path.expandvars(word)])
    ]
    for place, word in enumerate(words[:-1]):
        words[place + 1] = SHORTER.get(word, words[place + 1])
    for name, more in ADDED.items():
        if " ".join(words).startswith(name) and more[0] not in words and "--mlperf" not in words:
            words += more
    if "--gpus" in words and "--device" not in words:
        words += ["--device", "cpu"]
    return words


def _make_room(words: list[str]) -> None:
    """Take away what a command makes anew, and would not write over; let a project have one epoch."""
    made = words[3] if words[:3] == ["cskd-train", "data", "shapes"] else None
    if words[:2] == ["cskd-train", "run"] and "--resume" not in words:
        made = words[words.index("--work-dir") + 1] if "--work-dir" in words else f"work_dirs/{Path(words[2]).stem}"
    if words[:2] == ["cskd-train", "distill"]:
        made = f"{words[2]}/work_dirs"
        for name in ("teacher", "student"):
            with Path(words[2], f"{name}.py").open("a") as config:
                config.write('\nrunner = dict(type="EpochBasedRunner", max_epochs=1)\n')
    if made:
        shutil.rmtree(made, ignore_errors=True)


def files() -> set[str]:
    """All files under the present folder."""
    return {os.path.join(folder, name).removeprefix("./") for folder, _, names in os.walk(".") for name in names}


def expected(path: str, words: list[str]) -> bool:
    """Whether a command may leave this file: in its work dir, where its words say, or beside a file that they name."""
    if words[:2] == ["cskd-train", "run"] and "--work-dir" not in words:
        return path.startswith(f"work_dirs/{Path(words[2]).stem}/")
    if any(re.fullmatch(pattern, path) for name, pattern in UNNAMED.items() if " ".join(words).startswith(name)):
        return True
    named = [value for word in words[2:] for value in (word, word.partition("=")[2]) if re.match(r"[\w./-]+$", value)]
    return any(
        path == name or name == "." or path.startswith((f"{name.rstrip('/')}/", Path(name).with_suffix("").as_posix()))
        for name in named
    )


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """In another folder for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
