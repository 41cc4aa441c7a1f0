"""A folder in which the commands of the pages can run: what they name, small."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import cv2

from .pages import ROOT
from .shell import call, inside


def build(folder: Path) -> None:
    """Data sets of every form, configs, a trained teacher and student of one epoch, and the student's files."""
    folder.mkdir(exist_ok=True)
    for name in ("configs", "benchmarks", "packages"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs" / "results", folder / "docs" / "results")
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
        for name in ("retinanet", "gfl", "faster_rcnn"):
            config = f"configs/cards/{name}_r18_cards.py"
            _done(["cskd-train", "run", config, "--epochs", "1", "--work-dir", f"work_dirs/{name}_cards"])
        shutil.copytree("work_dirs/retinanet_cards", "work_dirs/retinanet_r18_cards")
        shutil.copy("work_dirs/teacher/best.pth", "teacher.pth")
        shutil.copy("work_dirs/student/best.pth", "best.pth")
        shutil.copytree("work_dirs/student", "work_dirs/cskd_gfl_r50_distill_r18_shapes")
        data = ["--calibration-images", "data/shapes/images", "--calibration-ann", "data/shapes/annotations/train.json"]
        for words in (
            ["export", "--checkpoint", "work_dirs/student/best.pth", "--output", "student.onnx"],
            ["export", "--checkpoint", "best.pth", "--batch", "any", "--output", "any.onnx"],
            ["export", "--onnx", "student.onnx", "--precision", "int8", *data, "--output", "student_int8.onnx"],
        ):
            _done(["cskd-deploy", *words])
        shutil.copy("student.onnx", "faster.onnx")
        _done(["cskd-train", "test", "work_dirs/student/best.pth", "--out", "detections.json"])


def fresh(built: Path, folder: Path) -> None:
    """A copy of what was built; checkpoints and images, which nothing writes into, are links."""
    keep = (".pth", ".jpg")
    link = lambda of, to: (os.link if of.endswith(keep) else shutil.copy2)(of, to)  # noqa: E731
    shutil.copytree(built, folder, symlinks=True, copy_function=link)


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
    film = cv2.VideoWriter("traffic.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 10, (128, 128))
    for image in val["images"]:
        film.write(cv2.imread(f"data/shapes/images/{image['file_name']}"))
    film.release()
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
        _yolo(root, train=train, valid=val, test=val)


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
    # What one epoch makes of the teacher has to be right somewhere too.
    Path("teacher.py").write_text('_base_ = ["configs/demo/retinanet_r50_shapes.py"]\nload_from = "teacher.pth"\n')
    Path("distilled.py").write_text(
        '_base_ = ["configs/demo/cskd_retina_r50_distill_r18_shapes.py"]\n'
        'distill = dict(teacher=dict(checkpoint="work_dirs/teacher/best.pth"))\n'
        'data = dict(unlabeled=dict(ann_file="../unlabeled.json", share=0.5, weight=0.5))\n'
    )
