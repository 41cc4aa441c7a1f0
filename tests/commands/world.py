"""A folder in which the commands of the pages can run: what they name, small."""

from __future__ import annotations

import contextlib
import glob
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from .pages import ROOT, Command

# What a page writes for the reader's own.
STANDS_FOR = {
    "CONFIG": "configs/demo/retinanet_r18_shapes.py",
    "CHECKPOINT": "work_dirs/student/best.pth",
    "FILE": "out.json",
    "DIR": "work_dirs/dir",
}
SHORT = {
    "cskd-train run": ("--epochs", "1"),
    "cskd-deploy bench": ("--duration", "0.2"),
    "cskd-train data shapes": ("--images", "16", "--val-images", "8"),
}
# Files that a command writes where its words name none.
UNNAMED = {"cskd-train data show": "contact_sheet.png", "cskd-train show": "detections.png"}


def call(words: list[str]) -> tuple[int, str, str]:
    """Run a command of either program in this process; gives its exit code, standard output and standard error."""
    from cskd_deploy.cli import main as deploy
    from cskd_train.cli import main as train

    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            {"cskd-train": train, "cskd-deploy": deploy}[words[0]](words[1:])
            code = 0
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    return code, out.getvalue(), error.getvalue()


def run(command: Command) -> tuple[int, list[str], str]:
    """Run a command in the present folder, in its shortest form; `$VARIABLES` and patterns as a shell reads them.

    Returns:
        Its exit code, the files it left that its words do not name, and the end of what it printed.
    """
    words = [STANDS_FOR.get(word, word) for word in command.words]
    words = [
        found for word in words for found in (sorted(glob.glob(word)) if "*" in word else [os.path.expandvars(word)])
    ]
    for name, more in SHORT.items():
        if " ".join(words).startswith(name) and more[0] not in words:
            words += more
    _make_room(words)
    before = files()
    code, out, error = call(words)
    if command.output:
        Path(command.output).write_text(out)
    stray = sorted(path for path in files() - before if not expected(path, [*words, command.output or ""]))
    return code, stray, f"{out[-2000:]}\n{error[-2000:]}"


def _make_room(words: list[str]) -> None:
    """Take away what a command makes anew, and would not write over."""
    made = words[3] if words[:3] == ["cskd-train", "data", "shapes"] else None
    if words[:2] == ["cskd-train", "run"] and "--resume" not in words and "--dry-run" not in words:
        made = words[words.index("--work-dir") + 1] if "--work-dir" in words else f"work_dirs/{Path(words[2]).stem}"
    if made:
        shutil.rmtree(made, ignore_errors=True)


def files() -> set[str]:
    """All files under the present folder."""
    return {os.path.join(folder, name).removeprefix("./") for folder, _, names in os.walk(".") for name in names}


def expected(path: str, words: list[str]) -> bool:
    """Whether a command may leave this file: in its work dir, where its words say, or beside a file that they name."""
    if words[:2] == ["cskd-train", "run"] and "--work-dir" not in words:
        return path.startswith(f"work_dirs/{Path(words[2]).stem}/")
    unnamed = {name for command, name in UNNAMED.items() if " ".join(words).startswith(command)}
    if path in unnamed:
        return True
    named = [value for word in words[2:] for value in (word, word.partition("=")[2]) if re.match(r"[\w./-]+$", value)]
    return any(
        path == name or path.startswith((f"{name.rstrip('/')}/", Path(name).with_suffix("").as_posix()))
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


def build(folder: Path) -> None:
    """Data sets of every form, configs, a trained teacher and student of one epoch, and the student's files."""
    folder.mkdir(exist_ok=True)
    for name in ("configs", "benchmarks", "packages", "docs"):
        (folder / name).symlink_to(ROOT / name)
    with inside(folder):
        _data()
        _configs()
        # The teacher has to be right at least once, for a threshold of its pseudo-labels.
        for name, checkpoint, epochs in (
            ("retinanet_r50_shapes", "teacher", 60),
            ("retinanet_r18_shapes", "student", 1),
        ):
            config = f"configs/demo/{name}.py"
            _done(["cskd-train", "run", config, "--epochs", str(epochs), "--work-dir", f"work_dirs/{checkpoint}"])
            shutil.copytree(f"work_dirs/{checkpoint}", f"work_dirs/{name}")
        _done(
            ["cskd-train", "run", "configs/bccd/retinanet_r18_bccd.py", "--epochs", "1", "--set", "data_root=data/bccd"]
        )
        shutil.copy("work_dirs/teacher/best.pth", "teacher.pth")
        shutil.copytree("work_dirs/student", "work_dirs/cskd_gfl_r50_distill_r18_shapes")
        data = ["--calibration-images", "data/shapes/images", "--calibration-ann", "data/shapes/annotations/train.json"]
        for words in (
            ["export", "--checkpoint", "work_dirs/student/best.pth", "--output", "student.onnx"],
            ["export", "--onnx", "student.onnx", "--precision", "int8", *data, "--output", "student_int8.onnx"],
        ):
            _done(["cskd-deploy", *words])
        shutil.copy("student.onnx", "faster.onnx")
        _done(["cskd-train", "test", "work_dirs/student/best.pth", "--out", "detections.json"])


def _done(words: list[str]) -> None:
    code, out, error = call(words)
    assert code == 0, f"{words}\n{out}\n{error}"


def _data() -> None:
    _done(
        ["cskd-train", "data", "shapes", "data/shapes", "--size", "128", "128", "--images", "16", "--val-images", "8"]
    )
    train, val = (json.loads(Path(f"data/shapes/annotations/{split}.json").read_text()) for split in ("train", "val"))

    def copy(root: str, classes: list[str] | None = None, **splits: dict) -> None:
        """A COCO tree of these splits; classes are the first ones under other names."""
        (Path(root) / "annotations").mkdir(parents=True)
        shutil.copytree("data/shapes/images", Path(root) / "images")
        for split, content in splits.items():
            content = json.loads(json.dumps(content))
            if classes:
                count = len(classes)
                content["categories"] = [{"id": n, "name": name} for n, name in enumerate(classes, start=1)]
                for one in content["annotations"]:
                    one["category_id"] = (one["category_id"] - 1) % count + 1
            (Path(root) / "annotations" / f"{split}.json").write_text(json.dumps(content))

    cards = ["nine", "ten", "jack", "queen", "king", "ace"]
    copy("data/bccd", ["RBC", "WBC", "Platelets"], train=train, val=val, test=val)
    copy("data/cards", cards, train=train, val=val)
    copy("data/mine", train=train)
    Path("data/mine/annotations.json").write_text(json.dumps(train))
    shutil.copytree("data/shapes/images", "photographs")
    shutil.copytree("data/shapes/images", "photos")
    _done(
        [
            "cskd-train",
            "data",
            "shapes",
            "more",
            "--size",
            "128",
            "128",
            "--images",
            "8",
            "--val-images",
            "1",
            "--seed",
            "5",
        ]
    )
    shutil.move("more/images", "more_photographs")
    shutil.rmtree("more")
    shutil.copytree("data/shapes/images", "images")
    shutil.copytree("data/shapes/annotations", "annotations")
    for name in ("cells.json", "val.json", "train.json"):
        shutil.copy(
            "data/bccd/annotations/train.json" if name == "cells.json" else "data/shapes/annotations/val.json", name
        )
    Path("images.json").write_text(json.dumps({"images": val["images"]}))
    _voc("BCCD", json.loads(Path("data/bccd/annotations/train.json").read_text()))
    _voc("VOCdevkit/VOC2007", train)
    for root in ("aquarium", "my_yolo_set"):
        _yolo(root, train=train, valid=val)


def _voc(root: str, content: dict) -> None:
    """A Pascal VOC folder, all of it in the split `trainval`."""
    for name in ("Annotations", "ImageSets/Main"):
        (Path(root) / name).mkdir(parents=True)
    shutil.copytree("data/shapes/images", Path(root) / "JPEGImages")
    names = {one["id"]: one["name"] for one in content["categories"]}
    for image in content["images"]:
        size = f"<width>{image['width']}</width><height>{image['height']}</height><depth>3</depth>"
        text = f"<annotation><filename>{image['file_name']}</filename><size>{size}</size>"
        for one in content["annotations"]:
            if one["image_id"] == image["id"]:
                x, y, w, h = map(round, one["bbox"])
                corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
                name = names[one["category_id"]]
                text += f"<object><name>{name}</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>"
        (Path(root) / "Annotations" / image["file_name"]).with_suffix(".xml").write_text(f"{text}</annotation>")
    listed = "".join(f"{Path(image['file_name']).stem}\n" for image in content["images"])
    (Path(root) / "ImageSets" / "Main" / "trainval.txt").write_text(listed)


def _yolo(root: str, **splits: dict) -> None:
    """A YOLO folder with a data.yaml."""
    for split, content in splits.items():
        for name in ("images", "labels"):
            (Path(root) / split / name).mkdir(parents=True)
        for image in content["images"]:
            shutil.copy(f"data/shapes/images/{image['file_name']}", Path(root) / split / "images")
            rows = [
                f"{one['category_id'] - 1} {(x + w / 2) / image['width']} {(y + h / 2) / image['height']} "
                f"{w / image['width']} {h / image['height']}"
                for one in content["annotations"]
                if one["image_id"] == image["id"]
                for x, y, w, h in [one["bbox"]]
            ]
            (Path(root) / split / "labels" / image["file_name"]).with_suffix(".txt").write_text("\n".join(rows))
    names = [one["name"] for one in next(iter(splits.values()))["categories"]]
    listed = "".join(f"{'val' if split == 'valid' else split}: {split}/images\n" for split in splits)
    (Path(root) / "data.yaml").write_text(f"{listed}names: {names}\n")


def _configs() -> None:
    Path("mine.py").write_text('_base_ = ["configs/demo/retinanet_r18_shapes.py"]\n')
    Path("teacher.py").write_text('_base_ = ["configs/demo/retinanet_r50_shapes.py"]\n')
    Path("distilled.py").write_text(
        '_base_ = ["configs/demo/cskd_retina_r50_distill_r18_shapes.py"]\n'
        'distill = dict(teacher=dict(checkpoint="work_dirs/teacher/best.pth"))\n'
    )
