"""What exporting gains on a processor: PyTorch eager of a student against its ONNX files, in turns.

    python benchmarks/deploy.py STUDENT... [--calibration-images DIR] [--images DIR] [--threads 2] [--json FILE]

A student is a checkpoint, or a config, which is given random weights: then nothing is detected, and NMS has nothing to
do. Each is exported to an FP32 file, and with --calibration-images to an INT8 file (`cpu` preset). All are timed
in one run on the same images at the same input size, pre- and post-processing included. Ratios are of medians:

    inference = PyTorch's network, top-k and decoding / the graph's      total = the same of the whole
    overhead  = pre- and post-processing / the whole, of the file

The goals on two cores: total at least 1.4 for FP32 and 3.5 for INT8, overhead at most 0.10.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import torch

from cskd_data.images import list_images, read_image
from cskd_deploy.backends import backend_for
from cskd_deploy.detect.detector import Detector
from cskd_deploy.exporter.onnx import export
from cskd_deploy.lower.conversion import CalibrationSettings, convert_to_int8
from cskd_deploy.measure import environment
from cskd_deploy.measure.bench import measure, random_images
from cskd_deploy.measure.report import BenchReport
from cskd_train.files import checkpoints
from cskd_train.files.config import config_to_data, load_config
from cskd_train.mm.data_sources import classes_of
from cskd_train.mm.plain import build_without_pretrained

MOST_IMAGES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", type=Path, help="checkpoints or configs")
    parser.add_argument("--calibration-images", type=Path, metavar="DIR", help="time an INT8 file too")
    parser.add_argument("--images", type=Path, metavar="DIR", help="images to time with [seeded random images]")
    parser.add_argument("--input-size", type=int, nargs=2, metavar=("H", "W"), help="[the test pipeline's]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--duration", type=float, default=15.0, help="seconds a file [15]")
    parser.add_argument("--iterations", type=int, default=30, help="images a file, at least [30]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="one JSON line a file")
    options = parser.parse_args()
    cv2.setNumThreads(options.threads)
    print("| family | file | p50, ms | PyTorch p50, ms | inference | total | overhead |")
    print("|---|---|---|---|---|---|---|")
    lines = []
    for student in options.students:
        with tempfile.TemporaryDirectory() as folder:
            for row in compare(student, Path(folder), options):
                print(
                    f"| {row['family']} | {row['precision']} | {row['p50_ms']:.1f} "
                    f"| {row['pytorch_p50_ms']:.1f} | {row['inference']:.2f} | {row['total']:.2f} "
                    f"| {row['overhead']:.3f} |",
                    flush=True,
                )
                lines.append(json.dumps(row) + "\n")
    if options.json:
        options.json.write_text("".join(lines))


def compare(student: Path, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each file of a student."""
    checkpoint = with_random_weights(student, folder) if student.suffix == ".py" else student
    size = None if options.input_size is None else tuple(options.input_size)
    files = [export(checkpoint, folder / "fp32.onnx", input_sizes=() if size is None else [size]).path]
    if options.calibration_images is not None:
        calibration = CalibrationSettings(options.calibration_images)
        files.append(folder / "int8.onnx")
        convert_to_int8(files[0], files[1], "cpu", calibration, (), lambda line: None)
    with ExitStack() as stack:
        runtime = {"threads": options.threads, "device": "cpu"}
        detectors = [Detector(stack.enter_context(backend_for(file, **runtime))) for file in files]
        manifest = detectors[0].manifest
        size = manifest.preprocessing.input_size
        reference = backend_for(checkpoint, **runtime, like=manifest)
        detectors.append(Detector(stack.enter_context(reference)))
        images = random_images(size)
        if options.images is not None:
            images = [read_image(path) for path in list_images(options.images)[:MOST_IMAGES]]
        found = measure(detectors, images, duration=options.duration, iterations=options.iterations)
    report = BenchReport(found, environment.describe(options.threads), "", size, ())
    rows = []
    for one in found[:-1]:
        row = {"family": manifest.family, "student": str(student), "input_size": list(size)}
        row |= {"precision": one.precision, "p50_ms": one.summary("total")["p50"]}
        row |= {"pytorch_p50_ms": found[-1].summary("total")["p50"], **(report.speedup(one) or {})}
        rows.append({**row, "overhead": one.overhead, "images": one.count, "environment": dict(report.environment)})
    return rows


def with_random_weights(config: Path, folder: Path) -> Path:
    """A checkpoint of a config's detector as it is before training."""
    torch.manual_seed(0)
    cfg = load_config(config)
    detector = build_without_pretrained(cfg.model)
    detector.init_weights()  # type: ignore[operator]
    meta = {"format": checkpoints.FORMAT, "version": checkpoints.FORMAT_VERSION, "config": config_to_data(cfg)}
    meta |= {"CLASSES": list(classes_of({"type": "CocoDataset"})), "seed": 0, "versions": {}, "distilled": False}
    meta |= {"epoch": 0, "iter": 0, "metrics": {}}
    checkpoints.save(folder / "random.pth", {"state_dict": detector.state_dict(), "meta": meta})
    return folder / "random.pth"


if __name__ == "__main__":
    main()
