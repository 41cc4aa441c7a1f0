"""The README of a project: its commands, and what was chosen."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from cskd_train.project.choices import Choice


def readme(
    name: str, chosen: Sequence[Choice], warnings: Sequence[str], test: str, images: str, unlabeled: str | None = None
) -> str:
    """The text.

    Args:
        test: the split that the file is evaluated on.
        images: the folder of its images.
        unlabeled: where pictures without labels are, seen from the project's folder.
    """
    rows, role = [], ""
    for one in chosen:
        within = one.name.startswith(" ")
        role = role if within else one.name
        rows.append(f"| {f'{role}: {one.name.strip()}' if within else role} | {one.value} | {one.why} |")
    labelling = ""
    if unlabeled is not None:
        words = ["cskd-train", "pseudo-label", "work_dirs/teacher/best.pth", unlabeled, "data/unlabeled.json"]
        labelling = f"\n    {shlex.join(words)}  # what it finds on pictures without labels"
    said = "".join(f"\n- {warning}" for warning in warnings)
    return f"""# {name}

In this folder:

    cskd-train data show data/train.json sheet.png    # are the boxes where they should be?
    cskd-train distill .                              # the whole way; --budget 2h takes epochs that fit

`distill` does this, one after the other, and prints a table; stopped at any point, it goes on when called again:

    cskd-train run teacher.py          # 1. the teacher{labelling}
    cskd-train run student.py          # 2. the student alone, to compare with
    cskd-train run distilled.py        # 3. the student under the teacher
    cskd-train test work_dirs/distilled/best.pth --split test

    # 4. the file that ships, how fast it is, and how good
    cskd-deploy export --checkpoint work_dirs/distilled/best.pth --format onnx --output student.onnx
    cskd-deploy bench student.onnx --reference work_dirs/distilled/best.pth
    cskd-deploy eval student.onnx --ann data/{test}.json --images {shlex.quote(images)} \\
        --reference work_dirs/distilled/best.pth --max-drop 0.2

    cskd-train report .                # 5. report.html: curves, errors by kind, detections

`--dry-run` shows what a run will be, `--resume` goes on with one that was stopped, `--epochs N` makes it longer.
Images stay where they are: `data/*.json` say where, seen from here. `classes`, `image_scale`, the batch and
mixed precision (`amp`) stand in `dataset.py`, once for all.

## What was chosen

| | | why |
|---|---|---|
{chr(10).join(rows)}
{f"{chr(10)}Warnings:{chr(10)}{said}{chr(10)}" if said else ""}"""
