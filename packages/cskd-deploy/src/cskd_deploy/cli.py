"""The `cskd-deploy` command: a list of names, each imported when it is asked for."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from cskd_data.errors import CskdError

COMMANDS = {
    "export": "Turn a student's checkpoint into one verified file.",
    "search": "Find the layers that INT8 should leave in float.",
    "bench": "Latency of exported models, beside PyTorch.",
    "eval": "COCO mAP of an exported model, beside its checkpoint.",
    "report": "Every form of a student that this machine can make: size, mAP, speed, in one table.",
    "compare": "Where two models, or a model and its checkpoint, differ: by image and by layer.",
    "infer": "Detections of an exported model on images: drawn, or as JSON.",
    "triton": "A model repository of Triton Inference Server for an exported model.",
    "inspect": "What an exported model is and expects.",
    "doctor": "Say what is installed, what is missing, and the fix.",
}


class LazyGroup(click.Group):
    """A click group whose commands are imported on use: only the command that needs a runtime misses it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"cskd_deploy.commands.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="cskd-deploy")
def cli(debug: bool) -> None:
    """Take a trained student to the edge: export it, measure its speed, and the mAP of the very file that ships.

    \b
    Exit codes: 0 done, 1 a check failed, 2 bad usage or input, 3 a backend is missing.

    \b
    Examples:
      cskd-deploy export --checkpoint work_dirs/student/best.pth --output student.onnx
      cskd-deploy bench student.onnx --reference work_dirs/student/best.pth
      cskd-deploy eval student.onnx --ann data/shapes/annotations/val.json --images data/shapes/images
    """


def main(args: list[str] | None = None) -> Any:
    """Run the command line; a mendable error becomes one message and its exit code."""
    arguments = sys.argv[1:] if args is None else args
    debug = "--debug" in arguments
    try:
        cli.main(args=arguments, prog_name="cskd-deploy", standalone_mode=True)
    except (CskdError, OSError) as error:
        if debug:
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    main()
