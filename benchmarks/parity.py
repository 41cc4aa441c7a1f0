"""Exported files against mmdet's `simple_test`: mAP, and detections as sets.

    python benchmarks/parity.py CHECKPOINT... --ann FILE --images FOLDER [--limit N] [--forms NAME...] [--json FILE]

Each checkpoint is exported in every form. A detection is matched when mmdet has one of the same class with boxes that
overlap by 99 % and scores within 0.001, one to one. Only detections above the config's score threshold exist on either
side. The default takes every image as mmdet lays it out. `fixed` has the size of the test scale, the way round it is
written, `pair` that size and the other way round, `square` holds both without shrinking either, and `padded` is 64
pixels higher and wider than `square`: what padding costs by itself. Files whose name has `batch` are run with several
images at a time, those that are padded to one size: as many as the graph is fixed to, the last batch filled up, or
three of a graph that takes any number.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np
import stored

from cskd_data import Dataset, evaluate
from cskd_data.images import read_image
from cskd_deploy.accuracy.agreement import Boxes, match
from cskd_deploy.accuracy.eval import in_coco_form, load_dataset
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.detect.detector import Detector
from cskd_deploy.detect.postprocess import Detections
from cskd_deploy.exporter.onnx import export
from cskd_deploy.exporter.student import Student, load_student
from cskd_deploy.measure.environment import versions
from cskd_deploy.model.manifest import GraphForm

ROW = ("student", "form")  # what tells a row from the others of a machine
PADDING = 64
OF_ANY = 3  # images at a time of a graph that takes any number
FORMS = {
    "default": GraphForm("uint8"),
    "float": GraphForm("float"),
    "nms graph": GraphForm("uint8", nms="graph"),
    "fixed": GraphForm("uint8"),
    "pair": GraphForm("uint8"),
    "square": GraphForm("uint8"),
    "padded": GraphForm("uint8"),
    "batch any": GraphForm("uint8", batch=None),
    "batch any, nms graph": GraphForm("uint8", nms="graph", batch=None),
    "batch 4": GraphForm("uint8", batch=4),
    "batch 4, float, square, nms graph": GraphForm("float", nms="graph", batch=4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--ann", required=True, type=Path)
    parser.add_argument("--images", required=True, type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), metavar="NAME")
    parser.add_argument(
        "--json", type=Path, help="rows are added to those in the file, in place of those of this machine"
    )
    options = parser.parse_args()
    stored.ready(options.json)
    known, rows = stored.rows_of(options.json), []
    origin = {**machine.origin(), "versions": versions(("torch", "mmdet", "onnxruntime", "onnx", "onnxslim"))}
    for checkpoint in options.checkpoints:
        student = load_student(checkpoint)
        dataset, _ = load_dataset(options.ann, options.images, student.classes, options.limit)
        rows += compare(student, dataset, options.forms)
        stored.write_rows(options.json, stored.with_rows(known, [{**row, **origin} for row in rows], ROW))
    print("| student | file | mAP | drop, points | detections | matched | scores within | pixels within |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['student']} | {row['form']} | {row['mAP']:.4f} | {row['drop_points']:+.4f} "
            f"| {row['detections']} | {100 * row['share_matched']:.3f} % | {row['largest_score_difference']:.1e} | "
            f"{row['largest_corner_difference']:.1e} |"
        )


def compare(student: Student, dataset: Dataset, forms: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each of some forms of a student."""
    expected = {entry["id"]: simple_test(student, dataset.path(entry)) for entry in dataset.images}
    reference = mean_average_precision(expected, dataset)
    height, width = student.manifest().preprocessing.input_size
    side = max(height, width)
    sizes = {
        "fixed": [(height, width)],
        "pair": list(dict.fromkeys([(height, width), (width, height)])),
        "square": [(side, side)],
        "padded": [(side + PADDING, side + PADDING)],
        "batch 4, float, square, nms graph": [(side, side)],
    }
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in forms:
            form = FORMS[name]
            target = Path(temporary) / "student.onnx"
            path = export(student.path, target, input_sizes=sizes.get(name, ()), form=form).path
            with OnnxRuntimeBackend(path) as backend:
                detector = Detector(backend)
                batch = OF_ANY if form.batch is None else form.batch
                found = detect(detector, dataset, batch)
            agreements = [match(triple(expected[image]), triple(found[image])) for image in expected]
            detections = sum(max(one.reference, one.other) for one in agreements)
            value = mean_average_precision(found, dataset)
            rows.append(
                {
                    "student": student.path.parent.name,
                    "form": name,
                    "batch": batch,
                    "images": len(dataset.images),
                    "mAP": value,
                    "reference_mAP": reference,
                    "drop_points": 100 * (reference - value),
                    "detections": detections,
                    "share_matched": sum(one.matched for one in agreements) / max(detections, 1),
                    "largest_score_difference": max(one.largest_score_difference for one in agreements),
                    "largest_corner_difference": max(one.largest_corner_difference for one in agreements),
                }
            )
            print(rows[-1], flush=True)
    return rows


def detect(detector: Detector, dataset: Dataset, batch: int) -> dict[int, Detections]:
    """The detections of each image, by its id."""

    def size(entry: dict[str, Any]) -> tuple[int, int]:
        return entry["height"], entry["width"]

    found = {}
    images = sorted(dataset.images, key=lambda entry: detector.canvas(size(entry)))
    for entries in detector.batches(images, size, batch):
        several = detector.detect_batch([read_image(dataset.path(entry)) for entry in entries])
        found.update({entry["id"]: one for entry, one in zip(entries, several, strict=True)})
    return found


def simple_test(student: Student, path: Path) -> Detections:
    """mmdet's own test pipeline and `simple_test` on an image file."""
    import torch
    from mmdet.datasets.pipelines import Compose

    pipeline = Compose(student.config["data"]["test"]["pipeline"])
    batch = pipeline({"img_prefix": None, "img_info": {"filename": str(path)}})
    with torch.no_grad():
        per_class = student.model.simple_test(batch["img"][0][None], [batch["img_metas"][0].data], rescale=True)[0]
    rows = np.concatenate(per_class)
    labels = np.concatenate([np.full(len(found), label) for label, found in enumerate(per_class)])
    return Detections(rows[:, :4], rows[:, 4], labels)


def mean_average_precision(found: dict[int, Detections], dataset: Dataset) -> float:
    keys = tuple(dataset.category_keys.values())
    rows = [row for image, one in found.items() for row in in_coco_form(one, dataset.image_keys[image], keys)]
    return evaluate(dataset, rows).mean_average_precision


def triple(found: Detections) -> Boxes:
    return found.boxes, found.scores, found.labels


if __name__ == "__main__":
    main()
