"""What exporting gains on a processor: a student in PyTorch against its files, in turns, and the mAP of each.

    python benchmarks/deploy.py work_dirs/*_cards --ann data/cards/annotations/val.json --images data/cards/images \\
        --calibration-images data/cards/images --calibration-ann data/cards/annotations/train.json \\
        --proposals 100 --json docs/results/latency.jsonl --write docs/results/latency.md
    python benchmarks/deploy.py --json docs/results/latency.jsonl --write docs/results/latency.md

A student is a checkpoint, the folder of a run, or a folder of such folders. A config is given random weights: then
nothing is detected, and NMS has nothing to do. Each is exported to an FP32 file, and with --calibration-images to an
INT8 file (`cpu` preset); --proposals makes a pair of a two-stage student with fewer proposals too. All of a student's
files and its checkpoint in PyTorch are timed in one run on the same images, pre- and post-processing included. Ratios
are of medians of the inference: network, top-k, decoding and, of a two-stage student, its proposals.

    over PyTorch = PyTorch's / the file's        over FP32 = that of the FP32 file of the same graph / the INT8 file's
    overhead     = pre- and post-processing / the whole

Drop is in points of mAP against the checkpoint in PyTorch. With --write the table is put into a page, between its
marks; without students it is that of a former run (--json).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import machine
import numpy as np
import stored
import torch

from cskd_data import Dataset
from cskd_data.images import list_images, read_image
from cskd_deploy.accuracy.eval import load_dataset
from cskd_deploy.accuracy.eval import measure as measure_map
from cskd_deploy.backends import backend_for
from cskd_deploy.detect.detector import Detector
from cskd_deploy.exporter.mmdet_config import EXPORTABLE
from cskd_deploy.exporter.onnx import EDGE, export
from cskd_deploy.lower.conversion import CalibrationSettings, convert_to_int8
from cskd_deploy.measure import environment
from cskd_deploy.measure.bench import Latencies, measure, random_images
from cskd_train.files import checkpoints
from cskd_train.files.config import config_to_data, load_config
from cskd_train.mm.data_sources import classes_of
from cskd_train.mm.plain import build_without_pretrained

MOST_IMAGES = 32  # held decoded in memory
SEED = 0  # of random weights and images
BEGIN, END = "<!-- benchmarks/deploy.py: begin -->", "<!-- benchmarks/deploy.py: end -->"
FAMILIES = {kind.lower(): kind for kind in EXPORTABLE} | {"faster_rcnn": "Faster R-CNN"}  # as manifests call them
_SPEED = ("p50, ms", "p90, ms", "over PyTorch", "over FP32", "overhead")
COLUMNS = ("family", "file", "MB", *_SPEED, "detections", "mAP", "drop, points")
# INT8 over FP32: by the instructions that multiply bytes, else by those of AVX2 alone.
VNNI, GOAL_VNNI, GOAL = ("avx512_vnni", "avx_vnni"), 3.5, 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="*", type=Path, help="checkpoints, folders of runs, or configs")
    parser.add_argument("--images", type=Path, metavar="DIR", help="images to time with [seeded random images]")
    parser.add_argument("--ann", type=Path, metavar="FILE", help="COCO annotations of them: mAP too")
    parser.add_argument("--calibration-images", type=Path, metavar="DIR", help="an INT8 file too")
    parser.add_argument("--calibration-ann", type=Path, metavar="FILE", help="only images that this COCO file lists")
    parser.add_argument("--input-size", type=int, nargs=2, metavar=("H", "W"), help="[every size, as mmdet has it]")
    parser.add_argument("--proposals", type=int, action="append", default=[], metavar="N", help="may be given again")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--duration", type=float, default=15.0, help="seconds a file [15]")
    parser.add_argument("--iterations", type=int, default=30, help="images a file, at least [30]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="one JSON line a file; read without students")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table between the marks of a page")
    options = parser.parse_args()
    if options.ann is not None and options.images is None:
        parser.error("--ann needs --images")
    if not options.students and options.json is None:
        parser.error("give students, or --json with the lines of a former run")
    if not options.students and not options.json.exists():
        parser.error(f"--json {options.json}: no such file, and no students are given")
    if options.write is not None:
        with_table(options.write.read_text(encoding="utf-8"), "")  # it has the marks
    students = [path for given in options.students for path in checkpoints_of(given)]
    stored.ready(options.write, options.json if students else None)
    rows = run(students, options) if students else [json.loads(line) for line in options.json.read_text().splitlines()]
    if options.write is not None:
        page = with_table(options.write.read_text(encoding="utf-8"), section(rows, options.json))
        stored.write_text(options.write, page)


def run(students: Sequence[Path], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of all students, printed and written as they come."""
    cv2.setNumThreads(options.threads)
    print("\n".join(head()))
    rows: list[dict[str, Any]] = []
    for student in students:
        with tempfile.TemporaryDirectory() as folder:
            found = compare(student, Path(folder), options)
        rows += found
        stored.write_lines(options.json, rows)
        print("\n".join(map(line_of, found)), flush=True)
    return rows


def checkpoints_of(given: Path) -> list[Path]:
    """The students of an argument: itself, the best of a run, or the best of each run of a folder.

    Raises:
        SystemExit: there is none.
    """
    if not given.is_dir():
        return [given]
    found = [given / "best.pth"] if (given / "best.pth").exists() else sorted(given.glob("*/best.pth"))
    if not found:
        raise SystemExit(f"{given} holds no best.pth, nor does a folder in it")
    return found


def compare(student: Path, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for PyTorch and for each file of a student."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    checkpoint = with_random_weights(student, folder) if student.suffix == ".py" else student
    files = [file for count in (None, *options.proposals) for file in export_files(checkpoint, folder, count, options)]
    with ExitStack() as stack:
        runtime = {"threads": options.threads, "device": "cpu"}
        detectors = [Detector(stack.enter_context(backend_for(file, **runtime))) for file in files]
        manifest = detectors[0].manifest
        reference = backend_for(checkpoint, **runtime, like=manifest)
        detectors = [Detector(stack.enter_context(reference)), *detectors]
        dataset = None
        if options.ann is not None:
            dataset, _ = load_dataset(options.ann, options.images, manifest.classes)
        times = measure(
            detectors,
            pictures(options, dataset, manifest.preprocessing.input_size),
            duration=options.duration,
            iterations=options.iterations,
        )
        maps = [None if dataset is None else mean_average_precision(detector, dataset) for detector in detectors]
    facts = {
        "student": student.parent.name if student.suffix != ".py" else student.stem,
        "random_weights": student.suffix == ".py",
        "checkpoint_sha256": manifest.sha256,
        "scale": list(manifest.preprocessing.scale),
        "input_size": None if manifest.graph.dynamic else list(manifest.preprocessing.input_size),
        "images": str(options.images and options.images.name),
        "images_scored": None if dataset is None else len(dataset.images),
        "seed": SEED,
        "load_before": load,
        "commit": machine.commit(machine.ROOT),
        "instructions": machine.processor()["instructions"],
        "environment": environment.describe(options.threads),
    }
    return [{**row, **facts} for row in rows_of(detectors, times, maps)]


def export_files(checkpoint: Path, folder: Path, proposals: int | None, options: argparse.Namespace) -> Iterator[Path]:
    """The FP32 file and the INT8 file of a student, of a one-stage one only with its own number of proposals (None)."""
    if proposals is not None and backend_family(folder) != "faster_rcnn":
        return
    name = "" if proposals is None else f".{proposals}"
    sizes = [] if options.input_size is None else [tuple(options.input_size)]
    plain = folder / f"student{name}.onnx"
    export(checkpoint, plain, input_sizes=sizes, form=replace(EDGE, proposals=proposals))
    yield plain
    if options.calibration_images is not None:
        calibration = CalibrationSettings(options.calibration_images, options.calibration_ann)
        lowered = folder / f"student{name}.int8.onnx"
        convert_to_int8(plain, lowered, "cpu", calibration, (), lambda line: None, lambda line: None)
        yield lowered


def backend_family(folder: Path) -> str:
    """The family of the student whose file is in `folder` already."""
    with backend_for(folder / "student.onnx", device="cpu") as backend:
        return backend.manifest.family


def pictures(options: argparse.Namespace, dataset: Dataset | None, size: tuple[int, int]) -> list[np.ndarray]:
    """The images to time with: those of the data set, of the folder, or random ones."""
    if options.images is None:
        return random_images(size, seed=SEED)
    if dataset is None:
        return [read_image(path) for path in list_images(options.images)[:MOST_IMAGES]]
    return [read_image(dataset.path(entry)) for entry in dataset.images[:MOST_IMAGES]]


def mean_average_precision(detector: Detector, dataset: Dataset) -> float:
    return measure_map(detector, dataset, lambda done, total: None).mean_average_precision


def rows_of(
    detectors: Sequence[Detector], times: Sequence[Latencies], maps: Sequence[float | None]
) -> list[dict[str, Any]]:
    """What was measured of PyTorch, which comes first, and of each file after the FP32 file of its graph."""
    rows = []
    plain = times[0]
    for detector, one, score in zip(detectors, times, maps, strict=True):
        if one.precision == "fp32":
            plain = one
        medians, inference = one.summary("total"), one.summary("inference")["p50"]
        rows.append(
            {
                "family": detector.manifest.family,
                "backend": one.backend,
                "precision": one.precision,
                "proposals": detector.manifest.graph.proposals,
                "size_bytes": one.size_bytes,
                "p50_ms": medians["p50"],
                "p90_ms": medians["p90"],
                "inference_p50_ms": inference,
                "over_pytorch": times[0].summary("inference")["p50"] / inference,
                "over_fp32": None if one is plain else plain.summary("inference")["p50"] / inference,
                "overhead": one.overhead,
                "images_timed": one.count,
                "detections_an_image": one.detections / one.count,
                "mAP": score,
                "drop_points": None if score is None or maps[0] is None else 100 * (maps[0] - score),
            }
        )
    return rows


def section(rows: Sequence[dict[str, Any]], lines_file: Path | None = None) -> str:
    """The table of a run, what it was taken on, its goal, and the name of the file of its lines beside the page."""
    first = rows[0]
    facts, instructions = first["environment"], first["instructions"]
    vnni = any(name in instructions for name in VNNI)
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    wide, high = first["scale"]
    size = f"test scale {wide} x {high}, each image as mmdet lays it out"
    if first["input_size"] is not None:
        size = "input {} x {} (height x width)".format(*first["input_size"])
    images = "random images" if first["images"] == "None" else f"images of `{first['images']}`"
    scored = f", mAP on {first['images_scored']} images" if first["images_scored"] else ""
    loads = [row["load_before"] for row in rows if row["load_before"] is not None]
    busy = f", load of the machine before it {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    best = {FAMILIES[row["family"]]: row["over_fp32"] for row in rows if row["over_fp32"] is not None}
    goal = GOAL_VNNI if vnni else GOAL
    reached = "; ".join(f"{name} {ratio:.2f}" for name, ratio in best.items())
    lines = [
        f"{facts['processor']} ({', '.join(instructions) or 'instructions not known'}), {facts['threads']} threads; "
        f"{size}, {images}{scored}; {versions}; commit {first['commit']}{busy}.",
        "",
        *head(),
        *map(line_of, rows),
    ]
    if best:
        lines += [
            "",
            f"The goal for INT8 over FP32 of the same graph is {goal} here; last file of each: {reached}.",
        ]
    if lines_file is not None:
        lines += ["", f"All figures: [{lines_file.name}]({lines_file.name})."]
    return "\n".join(lines)


def head() -> list[str]:
    """The table's first two lines."""
    return [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]


def line_of(row: dict[str, Any]) -> str:
    """The table's line of a row."""
    file = "PyTorch" if row["backend"] == "pytorch" else row["precision"].upper().replace("-CPU", ", `cpu`")
    if row["proposals"] is not None:
        file += f", {row['proposals']} proposals"
    cells = [
        FAMILIES[row["family"]],
        file,
        f"{row['size_bytes'] / 1e6:.1f}",
        f"{row['p50_ms']:.1f}",
        f"{row['p90_ms']:.1f}",
        f"{row['over_pytorch']:.2f}",
        "" if row["over_fp32"] is None else f"{row['over_fp32']:.2f}",
        f"{row['overhead']:.3f}",
        f"{row['detections_an_image']:.1f}",
        "" if row["mAP"] is None else f"{100 * row['mAP']:.2f}",
        "" if row["drop_points"] is None else f"{row['drop_points']:+.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def with_table(page: str, text: str) -> str:
    """A page with `text` between its marks.

    Raises:
        SystemExit: it has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"the page of --write has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def with_random_weights(config: Path, folder: Path) -> Path:
    """A checkpoint of a config's detector as it is before training."""
    torch.manual_seed(SEED)
    cfg = load_config(config)
    detector = build_without_pretrained(cfg.model)
    detector.init_weights()  # type: ignore[operator]
    meta = {"format": checkpoints.FORMAT, "version": checkpoints.FORMAT_VERSION, "config": config_to_data(cfg)}
    meta |= {"CLASSES": list(classes_of(cfg.data.test)), "seed": SEED, "versions": {}, "distilled": False}
    meta |= {"epoch": 0, "iter": 0, "metrics": {}}
    checkpoints.save(folder / "random.pth", {"state_dict": detector.state_dict(), "meta": meta})
    return folder / "random.pth"


if __name__ == "__main__":
    main()
