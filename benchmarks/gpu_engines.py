"""TensorRT's engines of a student in every precision: how long each is built, how fast it runs, where its time goes.

    python benchmarks/gpu_engines.py --device cuda --json work_dirs/engines.jsonl

The student is a config with random weights: engines of random weights are as fast as others, and nothing is detected.
`--device cpu` times the ONNX files in ONNX Runtime instead, which shows that the chain works and no more. A row with
`not_run` says what is not installed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import deploy
import machine
import stored

from cskd_deploy.backends import backend_for
from cskd_deploy.backends.tensorrt.export import export_engine, require_tensorrt
from cskd_deploy.backends.tensorrt.settings import BuildSettings
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import BackendMissing
from cskd_deploy.exporter.onnx import EDGE, export
from cskd_deploy.lower.precision import precision_plan
from cskd_deploy.measure.bench import measure, random_images
from cskd_deploy.measure.layer_times import time_engine, time_layers

PRECISIONS = ("fp32", "fp16", "int8", "int8+fp16")
CALIBRATION_IMAGES = 8
ENQUEUED = 20  # inferences whose enqueueing is timed
SLOWEST = 3  # layers in a row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--config", type=Path, default=machine.ROOT / "configs/student/retinanet_r18_fpn_ms_1x_coco.py")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1344), metavar=("H", "W"))
    parser.add_argument("--duration", type=float, default=3.0, help="seconds a file [3]")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="one JSON line a file")
    options = parser.parse_args()
    stored.ready(options.json)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if options.device == "cuda":
                require_tensorrt()
            rows = list(run(options, Path(folder)))
        except BackendMissing as error:
            rows = [{"not_run": str(error)}]
    stored.write_lines(options.json, rows)
    print("\n".join(map(str, rows)))


def run(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each precision, all timed in turns."""
    size = tuple(options.size)
    pictures = folder / "pictures"
    pictures.mkdir()
    for place, image in enumerate(random_images(size, CALIBRATION_IMAGES, seed=1)):
        cv2.imwrite(str(pictures / f"{place}.png"), image)
    plain = folder / "student.onnx"
    export(deploy.with_random_weights(options.config, folder), plain, input_sizes=[size], form=EDGE)
    built = [make(precision, plain, pictures, options.device) for precision in PRECISIONS]
    with ExitStack() as stack:
        detectors = [Detector(stack.enter_context(backend_for(path, device=options.device))) for path, _ in built]
        times = measure(detectors, random_images(size), duration=options.duration)
        enqueued = [enqueue_ms(detector, size) for detector in detectors]
    for (path, seconds), detector, one, enqueue in zip(built, detectors, times, enqueued, strict=True):
        layers = (time_engine if options.device == "cuda" else time_layers)(path)
        agreement = detector.manifest.agreement
        yield {
            "precision": one.precision,
            "build_s": seconds,
            "megabytes": one.size_bytes / 1e6,
            "p50_ms": one.summary("inference")["p50"],
            "enqueue_ms": enqueue,
            "matched": "-" if agreement is None else agreement.matched,
            "slowest": "; ".join(
                f"{layer.operator or layer.name} {100 * layer.share:.0f} %" for layer in layers[:SLOWEST]
            ),
        }


def make(precision: str, plain: Path, pictures: Path, device: str) -> tuple[Path, float | str]:
    """The file of a precision, on a GPU the engine of it, and the seconds that this engine took."""
    plan = precision_plan(
        precision,
        "tensorrt" if precision == "int8" else None,
        None if precision == "fp32" else pictures,
        calibration_cache=plain.with_suffix(".json") if precision.startswith("int8") else None,
    )
    onnx = plain
    if not plan.is_plain:
        onnx = plain.with_suffix(plan.suffix)
        plan.convert(plain, onnx, print, print)
    if device == "cpu":
        return onnx, "-"
    images = sorted(pictures.iterdir())
    settings = BuildSettings(profiling_verbosity="detailed")
    result = export_engine(onnx, onnx.with_suffix(".engine"), settings, images=images)
    return result.path, result.seconds


def enqueue_ms(detector: Detector, size: tuple[int, int]) -> float | str:
    """The median time until an inference is on the stream."""
    prepared = detector.prepare(random_images(size, count=1)[0])
    seconds = []
    for _ in range(ENQUEUED):
        detector.infer(prepared)
        if detector.backend.enqueue_seconds is None:
            return "-"
        seconds.append(detector.backend.enqueue_seconds)
    return 1e3 * statistics.median(seconds)


if __name__ == "__main__":
    main()
