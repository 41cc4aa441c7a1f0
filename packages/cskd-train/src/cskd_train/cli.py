"""The `cskd-train` command: a list of names, each imported when it is asked for."""

from __future__ import annotations

import codecs
import importlib
import io
import os
import sys
import time
import traceback
from typing import Any, NoReturn

import click

from cskd_train.errors import REFUSALS

COMMANDS = {
    "new": "Write a project for a data set of your own.",
    "distill": "Go a project's whole way: teacher, student, file, table.",
    "run": "Train a detector, alone or distilled from a teacher.",
    "test": "COCO mAP of a checkpoint.",
    "pseudo-label": "Label pictures with what a teacher finds on them.",
    "report": "Write one HTML file on a run, or on several.",
    "card": "Write a model card beside a student's weights.",
    "table": "Published figures, and what was measured.",
    "show": "Draw what several detectors find, side by side.",
    "data": "Check, convert, split, clean, show and generate data sets.",
    "doctor": "Say what is installed, what serves, and what is wrong.",
}


class LazyGroup(click.Group):
    """A click group whose commands are imported on use, so that `--help` needs neither torch nor mmdet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"cskd_train.commands.{cmd_name.replace('-', '_')}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="cskd-train")
def cli(debug: bool) -> None:
    """Train small detectors under large frozen teachers.

    \b
    Examples:
      cskd-train data shapes data/shapes
      cskd-train run configs/demo/retinanet_r18_shapes.py --work-dir work_dirs/student
      cskd-train test work_dirs/student/best.pth
    """


def main(args: list[str] | None = None) -> Any:
    """Run the command line; an error that a user can put right becomes one message and its exit code."""
    arguments = sys.argv[1:] if args is None else args
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal cannot print is printed with escapes
            encoding = codecs.lookup(stream.encoding).name
            # In place of ASCII click writes UTF-8, but with question marks for names that are no text.
            stream.reconfigure(encoding="utf-8" if encoding == "ascii" else encoding, errors="backslashreplace")
    try:
        cli.main(args=arguments, prog_name="cskd-train", standalone_mode=True, obj=arguments)
    except (*REFUSALS, OSError) as error:
        if "--debug" in arguments:
            raise
        exit_code = getattr(error, "exit_code", 2)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            _worker_failed(error, exit_code)
        else:
            click.echo(f"error: {error}", err=True)
        _end(exit_code)
    except Exception:
        if not _joined():
            raise
        traceback.print_exc()
        _end(1)


def _joined() -> bool:
    """Whether this process has joined others, and has not left them in good order."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_initialized()


def _end(exit_code: int) -> NoReturn:
    """Exit; one of several processes at once: the interpreter's own end aborts where another's connection closes."""
    if _joined():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)


def _worker_failed(error: Exception, exit_code: int) -> None:
    """One of several processes failed: what launched them prints, or else the main process, or the one concerned."""
    from cskd_train.engine.distributed import ConnectionLost, SharedError, is_launched
    from cskd_train.engine.launch import report_failure

    report_failure(error, exit_code)
    rank = os.environ.get("RANK", "0")
    if not is_launched() and (rank == "0" or not isinstance(error, SharedError)):
        click.echo(f"error: {f'process {rank}: ' if rank != '0' else ''}{error}", err=True)
    if isinstance(error, ConnectionLost):
        time.sleep(5)  # the launcher ends this process when it sees the one that failed, which is to be the first


if __name__ == "__main__":
    main()
