"""Write the files of this folder again with the code of version 0.1.0: `python make.py CHECKOUTS OUT` (README.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

LAST = "ae36b36"
# Commits, and the files that their code writes: name, family and the options of `export`.
FILES: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "2ecd37c": {"schema_1_retinanet": ("RetinaNet", ())},
    "77a3735": {"schema_2_fcos": ("FCOS", ()), "schema_2_faster_rcnn": ("FasterRCNN", ())},
    LAST: {
        "retinanet": ("RetinaNet", ()),
        "retinanet_float": ("RetinaNet", ("--input", "float")),
        "retinanet_dynamic": ("RetinaNet", ("--dynamic",)),
        "gfl_dynamic_nms": ("GFL", ("--dynamic", "--nms", "graph")),
        "fcos_nms": ("FCOS", ("--nms", "graph")),
        "retinanet_fp16": ("RetinaNet", ("--precision", "fp16")),
        "retinanet_int8_cpu": ("RetinaNet", ("--precision", "int8", "--target", "cpu")),
        "retinanet_int8_tensorrt": ("RetinaNet", ("--precision", "int8", "--target", "tensorrt")),
    },
}
CLASSES = ("circle", "square", "triangle")
SIZES = {"lying": (72, 96), "upright": (110, 60)}  # (height, width)
PACKAGES = ("cskd-core", "cskd-data", "cskd-train", "cskd-deploy")
TIME = (2026, 11, 25, 0, 0, 0)  # of the files in the archive: the same files give the same bytes
STUDENT = Path(__file__).with_name("student.py")
DEPLOY = "import sys; from cskd_deploy.cli import main; main(sys.argv[1:])"
DETECT = """
import json, sys
from pathlib import Path
import cv2
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.detector import Detector
detections = {}
with OnnxRuntimeBackend(Path(sys.argv[1]), threads=1) as backend:
    for path in sys.argv[2:]:
        one = Detector(backend).detect(cv2.imread(path))
        rows = zip(one.labels.tolist(), one.scores.tolist(), one.boxes.tolist())
        detections[Path(path).name] = [[a, round(score, 6), *(round(x, 4) for x in box)] for a, score, box in rows]
print(json.dumps(detections))
"""
ENGINE = """
import sys
from pathlib import Path
sys.path.insert(0, ".")
from cskd_deploy import cli, tensorrt_export
from tests.deploy.engines import ORIN, write_graph
tensorrt_export.find_driver = lambda: ORIN
graph, engine = sys.argv[1:]
cli.main(["export", "--onnx", str(write_graph(Path(graph))), "--format", "trt", "--output", engine])
"""
DOUBLE = """
import sys
sys.path.insert(0, ".")
from tests.deploy.tensorrt_double import make_tensorrt
sys.modules[__name__] = make_tensorrt()
"""


def main(checkouts: Path, out: Path) -> None:
    pictures = [write_picture(out / "images" / f"{name}.png", size) for name, size in SIZES.items()]
    expected: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for commit, files in FILES.items():
            for name, (family, options) in files.items():
                checkpoint, file = folder / f"{family}.pth", folder / f"{name}.onnx"
                run(checkouts / commit, STUDENT, checkpoint, family, *CLASSES)
                calibration = ("--calibration-images", out / "images") if "int8" in options else ()
                arguments = ("export", "--checkpoint", checkpoint, "--output", file, *options, *calibration)
                run(checkouts / commit, "-c", DEPLOY, *arguments)
                detections = json.loads(run(checkouts / commit, "-c", DETECT, file, *pictures))
                expected[file.name] = {"commit": commit, "detections": detections}
        annotations = out / "annotations.json"
        annotations.write_text(json.dumps(annotate(expected)) + "\n")
        for name, entry in expected.items():
            arguments = ("eval", folder / name, "--ann", annotations, "--images", out / "images", "--json")
            evaluated = json.loads(run(checkouts / entry["commit"], "-c", DEPLOY, *arguments))
            entry["bbox_mAP"] = round(evaluated["metrics"]["bbox_mAP"], 6)
        (folder / "modules").mkdir()
        (folder / "modules" / "tensorrt.py").write_text(DOUBLE)
        run(checkouts / LAST, "-c", ENGINE, folder / "tiny.onnx", out / "tiny.engine", path=folder / "modules")
        archive(out / "models.zip", [folder / name for name in expected])
    (out / "expected.json").write_text(json.dumps(expected).replace('"detections"', '\n"detections"') + "\n")


def run(checkout: Path, *arguments: object, path: Path | None = None) -> str:
    """What Python prints with the code of a checkout; modules of the folder `path` are there too."""
    sources = [checkout / "packages" / name / "src" for name in PACKAGES] + [path or checkout]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sources)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def write_picture(path: Path, size: tuple[int, int]) -> Path:
    """A picture of ramps and discs in few colours, which PNG keeps small and every OpenCV reads alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    picture = np.stack([rows * 2, columns * 2, 255 - rows - columns], axis=2).clip(0, 255).astype(np.uint8) // 16 * 16
    for number, colour in enumerate(((255, 0, 0), (0, 255, 255), (40, 40, 40))):
        centre = (width * (number + 1) // 4, height * (3 - number) // 4)
        cv2.circle(picture, centre, 9 + 3 * number, colour, -1)
    cv2.imwrite(str(path), picture)
    return path


def annotate(expected: dict[str, Any]) -> dict[str, Any]:
    """A COCO file of every fourth detection of every file, moved a little: each file's mAP is above 0 and below 1."""
    images = [
        {"id": number, "file_name": f"{name}.png", "height": size[0], "width": size[1]}
        for number, (name, size) in enumerate(SIZES.items(), 1)
    ]
    annotations: list[dict[str, Any]] = []
    for entry in expected.values():
        for image in images:
            for label, _, x1, y1, x2, y2 in entry["detections"][image["file_name"]][::4]:
                left, top, right, bottom = round(x1), round(y1), round(x2) - 1, round(y2)
                if min(right - left, bottom - top) > 3:
                    box = [left, top, right - left, bottom - top]
                    one = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": label + 1, "bbox": box}
                    annotations.append({**one, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def archive(path: Path, files: list[Path]) -> None:
    with zipfile.ZipFile(path, "w") as target:
        for file in files:
            entry = zipfile.ZipInfo(file.name, TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(entry, file.read_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
