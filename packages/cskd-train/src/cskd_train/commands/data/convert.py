"""`cskd-train data convert`: Pascal VOC, YOLO or COCO to COCO files in normal form."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cskd_data.dataset import Dataset, Note
from cskd_data.errors import DataError
from cskd_data.files import check_writable
from cskd_data.formats import format_of, read_filled, splits_of, whole_of
from cskd_data.names import counted
from cskd_train.commands.data.common import (
    A_PATH,
    as_json_option,
    config_lines,
    images_option,
    overwrite_option,
    progress,
    read,
    refuse_existing,
    show,
)


@dataclass(frozen=True)
class Conversion:
    """The files that were written, each with the data set in it, and what was left out."""

    written: dict[str, Dataset]
    notes: tuple[Note, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "files": [
                {
                    "ann_file": path,
                    "image_root": str(dataset.image_root),
                    "images": len(dataset.images),
                    "boxes_per_class": dataset.boxes_per_class,
                    "warnings": [str(note) for note in dataset.notes],
                }
                for path, dataset in self.written.items()
            ],
            "warnings": [str(note) for note in self.notes],
        }

    def __str__(self) -> str:
        lines = [f"warning: {note}" for note in self.notes]
        for path, dataset in self.written.items():
            boxes = ", ".join(f"{count} {name}" for name, count in dataset.boxes_per_class.items())
            total = counted(len(dataset.annotations), "box")
            lines.append(f"{path}: {counted(len(dataset.images), 'image')}, {total} ({boxes})")
            lines += [f"  warning: {note}" for note in dataset.notes]
            name = shlex.quote(path)
            lines.append(f"  check it: cskd-train data check {name}")
            if len(self.written) == 1:
                lines.append(f"  look at it: cskd-train data show {name}")
                lines.append(f"  cut it: cskd-train data split {name} --val 0.2")
        lines += config_lines({Path(path).stem: (Path(path), dataset) for path, dataset in self.written.items()})
        return "\n".join(lines)


@click.command("convert")
@click.argument("src", type=A_PATH)
@click.argument("out", type=A_PATH)
@images_option
@click.option("--split", help="Only this split: train, val or test, or a list of VOC's ImageSets/Main.")
@click.option("--classes", help="Class names, comma-separated, in the order of their ids. [default: all]")
@click.option(
    "--zero-based/--one-based",
    default=None,
    help="VOC's coordinates count from zero (width = xmax - xmin) or one. [default: zero if one of them is below 1]",
)
@overwrite_option
@as_json_option
def command(
    src: Path,
    out: Path,
    images: Path | None,
    split: str | None,
    classes: str | None,
    zero_based: bool | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Convert the Pascal VOC, YOLO or COCO data set SRC, a folder or file, to COCO.

    OUT is a file (NAME.json) for everything or one --split, or a folder for one file a split. Images stay where they
    are. Ids, sizes, areas and names are in normal form; what cannot be meant is refused, what is odd is a warning.

    VOC counts pixels from one and boxes include their last pixel: x = xmin - 1, width = xmax - xmin + 1. Objects marked
    difficult get iscrowd 1, so they are neither learnt nor counted. from-voc and from-yolo are the same command.

    \b
    Examples:
      cskd-train data convert my_yolo_set/data.yaml data/mine
      cskd-train data convert VOCdevkit/VOC2007 data/voc/train.json --split trainval
      cskd-train data convert BCCD data/cells.json --classes RBC,WBC,Platelets --zero-based
    """
    src, split = whole_of(src, split)
    kind = format_of(src)
    if kind != "voc" and zero_based is not None:
        known = {"coco": "COCO", "yolo": "YOLO"}
        raise DataError(f"--zero-based is not for {known[kind]} data sets, and {src} is one")
    settings: dict[str, Any] = {"zero_based": zero_based} if kind == "voc" else {}
    chosen = [split] if split is not None else [None]
    if out.suffix.lower() != ".json" and split is None:
        chosen = [*splits_of(src, images)] or [None]
    stem = src.stem if src.is_file() and kind == "coco" else "all"
    names = {one or stem: one for one in chosen}
    targets = {name: out if out.suffix.lower() == ".json" else out / f"{name}.json" for name in names}
    refuse_existing([*targets.values()], overwrite)
    check_writable(next(iter(targets.values())))

    def read_one(name: str) -> Dataset:
        with progress(f"reading {names[name] or src}") as advance:
            given = {} if kind == "coco" else {**settings, "progress": advance}
            return read(src, images, classes, split=names[name], **given)

    parts, notes = read_filled(names, read_one)
    written = {str(targets[name]): dataset for name, dataset in parts.items()}
    for path, dataset in written.items():
        dataset.to_coco(Path(path))
    show(Conversion(written, tuple(notes)), as_json)
