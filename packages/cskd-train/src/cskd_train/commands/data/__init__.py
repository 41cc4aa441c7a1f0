"""`cskd-train data`: a list of names, each imported when it is asked for."""

from __future__ import annotations

import importlib

import click

COMMANDS = {
    "check": "Check data sets and their images, as every run does before it begins.",
    "convert": "Convert Pascal VOC, YOLO or COCO to COCO files in normal form.",
    "split": "Cut a data set into training, validation and test images.",
    "clean": "Write a data set without the images that cannot be used.",
    "show": "Draw a contact sheet: images with boxes and class names.",
    "shapes": "Generate a detection set of figures over clutter.",
}
_ALIASES = ("from-voc", "from-yolo")


class _DataGroup(click.Group):
    """Commands of one file each."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS and cmd_name not in _ALIASES:
            return None
        name = "convert" if cmd_name in _ALIASES else cmd_name
        return importlib.import_module(f"cskd_train.commands.data.{name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group("data", cls=_DataGroup)
def command() -> None:
    """Check, convert, split, clean, show and generate data sets.

    A data set is a COCO file, a folder of COCO, Pascal VOC or YOLO, or a data.yaml; one split of it is a file of COCO,
    a list in VOC's ImageSets/Main, or the folder of YOLO that holds it. Exit code 0: done; 2: it cannot be used, or the
    usage is wrong, and the message says why.

    \b
    Examples:
      cskd-train data shapes data/shapes
      cskd-train data check data/shapes/annotations/train.json data/shapes/annotations/val.json
      cskd-train data convert my_yolo_set/data.yaml data/mine
      cskd-train data show data/shapes/annotations/val.json sheet.png
    """
