"""What the size of the graph's input costs: mAP, and time on pictures of both orientations.

    python benchmarks/geometry.py CHECKPOINT... --ann FILE --images FOLDER --calibration-images FOLDER [--json FILE]

Each checkpoint is exported as it is by default (every image as mmdet lays it out), at the fixed size of its test scale,
the way round that is written, and as a pair of orientations; each in FP32 and in INT8 for processors. The drop is
against mmdet's own evaluation of the checkpoint, in points of mAP. Times are medians of whole detections in
milliseconds, the files in turns: on pictures that the fixed size holds as mmdet lays them out (so all files compute on
the same canvas), and on the same pictures turned by a quarter.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import machine
import numpy as np
import stored

from cskd_data.files import write_json
from cskd_data.images import read_image
from cskd_deploy.accuracy.eval import differently_padded, load_dataset, measure
from cskd_deploy.backends import backend_for
from cskd_deploy.detect.detector import Detector
from cskd_deploy.exporter.onnx import export
from cskd_deploy.exporter.student import StudentEvaluation, load_student
from cskd_deploy.lower.conversion import CalibrationSettings, convert_to_int8
from cskd_deploy.measure import bench

MOST_PICTURES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--ann", required=True, type=Path)
    parser.add_argument("--images", required=True, type=Path)
    parser.add_argument("--calibration-images", required=True, type=Path)
    parser.add_argument("--calibration-ann", type=Path)
    parser.add_argument("--duration", type=float, default=5.0, help="seconds a file and orientation")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    stored.ready(options.json)
    about, rows = machine.describe("cpu"), []
    for checkpoint in options.checkpoints:
        rows += compare(checkpoint, options)
        if options.json:
            write_json(options.json, {"machine": about, "rows": rows})
    print("| student | file | precision | mAP | drop | padded otherwise | as laid out, ms | turned, ms |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['student']} | {row['form']} | {row['precision']} | {row['mAP']:.2f} | {row['drop']:+.3f} "
            f"| {row['padded_otherwise']} of {row['images']} | {row['p50_ms']:.1f} | {row['turned_p50_ms']:.1f} |"
        )


def compare(checkpoint: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each form and precision of a student."""
    student = load_student(checkpoint)
    dataset, _ = load_dataset(options.ann, options.images, student.classes)
    quiet = lambda *_: None  # noqa: E731
    reference = StudentEvaluation(student, dataset).run(quiet, options.threads).mean_average_precision
    height, width = student.manifest().preprocessing.input_size
    forms = {"default": [], "fixed": [(height, width)], "pair": [(height, width), (width, height)]}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        files = {}
        for form, sizes in forms.items():
            plain = export(checkpoint, Path(name) / f"{form}.onnx", input_sizes=sizes).path
            calibration = CalibrationSettings(options.calibration_images, options.calibration_ann)
            convert_to_int8(plain, Path(name) / f"{form}.int8.onnx", "cpu", calibration, (), quiet, quiet)
            files |= {(form, "fp32"): plain, (form, "int8-cpu"): Path(name) / f"{form}.int8.onnx"}
        detectors = {
            key: Detector(stack.enter_context(backend_for(path, threads=options.threads)))
            for key, path in files.items()
        }
        pictures = [read_image(dataset.path(entry)) for entry in dataset.images[:MOST_PICTURES]]
        lying = [one if (one.shape[1] > one.shape[0]) == (width > height) else np.rot90(one).copy() for one in pictures]
        turned = [cv2.rotate(one, cv2.ROTATE_90_CLOCKWISE) for one in lying]
        times = [
            bench.measure(list(detectors.values()), images, duration=options.duration) for images in (lying, turned)
        ]
        for (key, detector), first, second in zip(detectors.items(), *times, strict=True):
            value = measure(detector, dataset, quiet).mean_average_precision
            rows.append(
                {
                    "student": checkpoint.parent.name,
                    "form": key[0],
                    "precision": key[1],
                    "mAP": 100 * value,
                    "drop": 100 * (reference - value),
                    "images": len(dataset.images),
                    "padded_otherwise": differently_padded(dataset, detector),
                    "p50_ms": first.summary("total")["p50"],
                    "turned_p50_ms": second.summary("total")["p50"],
                    "size_bytes": detector.backend.size_bytes,
                }
            )
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
