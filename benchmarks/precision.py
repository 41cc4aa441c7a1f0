"""What lower precision costs: mAP of a student's FP32, FP16 and INT8 files, and how far the files agree.

    python benchmarks/precision.py --checkpoint FILE... --ann FILE --images DIR --calibration-ann FILE
        [--calibration-images DIR] [--json FILE]

Each checkpoint is exported to FP32, FP16 and INT8 for processors and for TensorRT, and every file is evaluated in ONNX
Runtime on the processor. Nothing is left in float by name. The goal: within 0.1 points of FP32 for FP16, 0.5 for INT8.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import machine
import stored

from cskd_deploy.accuracy.eval import load_dataset, measure
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.detect.detector import Detector
from cskd_deploy.exporter.onnx import export
from cskd_deploy.lower.conversion import CalibrationSettings, PrecisionResult
from cskd_deploy.lower.precision import PrecisionPlan
from cskd_deploy.measure.environment import describe, usable_cores

ROW = ("student", "precision")  # what tells a row from the others of a machine
GOALS = {"fp16": 0.1, "int8-cpu": 0.5, "int8-tensorrt": 0.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", nargs="+", type=Path, required=True, metavar="FILE")
    parser.add_argument("--ann", required=True, type=Path, metavar="FILE", help="to evaluate on")
    parser.add_argument("--images", required=True, type=Path, metavar="DIR")
    parser.add_argument("--calibration-ann", required=True, type=Path, metavar="FILE", help="of the training images")
    parser.add_argument("--calibration-images", type=Path, metavar="DIR", help="[that of --images]")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="rows are added to those in the file, in place of those of this machine",
    )
    options = parser.parse_args()
    stored.ready(options.json)
    known = stored.rows_of(options.json)
    origin = {**machine.origin(), "environment": describe(usable_cores())}
    calibration = CalibrationSettings(options.calibration_images or options.images, options.calibration_ann)
    print("| student | precision | images | FP32 | lower | drop | within | least correlation | matched | MB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for checkpoint in options.checkpoint:
        rows = compare(checkpoint, options.ann, options.images, calibration)
        known = stored.with_rows(known, [{**row, **origin} for row in rows], ROW)
        stored.write_rows(options.json, known, indent=1)
        for row in rows:
            within = "yes" if row["drop_points"] <= GOALS[row["precision"]] else "no"
            print(
                f"| {row['student']} | {row['precision']} | {row['images']} | {row['mAP_fp32']:.2f} | {row['mAP']:.2f} "
                f"| {row['drop_points']:+.2f} | {within} | {row['least_correlation']:.5f} "
                f"| {100 * row['matched']:.1f} % | {row['size_bytes'] / 1e6:.1f} |",
                flush=True,
            )


def compare(checkpoint: Path, ann: Path, images: Path, calibration: CalibrationSettings) -> list[dict[str, Any]]:
    """One row for each lower precision of a student."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        plain = export(checkpoint, Path(name) / "fp32.onnx").path
        reference, count = points(plain, ann, images)
        for precision in GOALS:
            result = lowered(plain, Path(name) / f"{precision}.onnx", precision, calibration)
            value, _ = points(result.path, ann, images)
            levels = [one for levels in result.agreement.correlation.values() for one in levels if one is not None]
            rows.append(
                {
                    "student": checkpoint.parent.name,
                    "family": result.manifest.family,
                    "precision": precision,
                    "images": count,
                    "mAP_fp32": reference,
                    "mAP": value,
                    "drop_points": reference - value,
                    "size_bytes": result.size_bytes,
                    "fp32_size_bytes": result.source_bytes,
                    "calibration_images": result.calibration_images,
                    "least_correlation": min(levels),
                    "correlation": result.agreement.correlation,
                    "matched": result.agreement.matched,
                    "compared_detections": result.agreement.detections,
                    "overlap": result.agreement.overlap,
                }
            )
    return rows


def lowered(source: Path, output: Path, precision: str, calibration: CalibrationSettings) -> PrecisionResult:
    """The file in another precision, as the manifest calls it."""
    name, _, target = precision.partition("-")
    plan = PrecisionPlan(name, target, calibration=calibration)
    return plan.convert(source, output, progress=lambda line: None, warn=print)


def points(model: Path, ann: Path, images: Path) -> tuple[float, int]:
    """Points of mAP of a file, and images."""
    with OnnxRuntimeBackend(model) as backend:
        dataset, _ = load_dataset(ann, images, backend.manifest.classes)
        found = measure(Detector(backend), dataset, lambda done, total: None)
    return 100 * found.mean_average_precision, len(dataset.images)


if __name__ == "__main__":
    main()
