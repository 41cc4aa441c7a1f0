"""What a large data set costs before the first step: the check of its images, the start of a run, and the start again.

    python benchmarks/data_check.py FOLDER [--images 20000] [--boxes 200000] [--rounds 3] [--json FILE]

FOLDER is outside the checkout. The set is generated there once: small JPEGs of noise, each its own, a COCO file of all
of them, one of some more images for validation, and the same a hundredth as large, which tells what a run costs
whatever its data. Each measurement is the command in a process of its own with an empty cache of checks, but for
`again`, which finds the check that `first` has remembered:

    check          cskd-train data check: every image is opened, its header read
    check, decoded cskd-train data check --decode
    run, first     cskd-train run --dry-run: reading, check, comparison of the splits, building, two steps
    run, again     the same, with the check of the images remembered
    run, a hundredth of the images

`seconds` is the median of the rounds; `peak_mb` (10^6 bytes) is the most memory that the process has had, without the
processes that load images. The files are in the system's cache of files after the first round.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import machine
import processes
import stored

from cskd_data.files import write_json

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "demo" / "retinanet_r18_shapes.py"
CLASSES = ("circle", "ring", "square", "triangle", "star", "cross")  # the config's
HEIGHT, WIDTH = 120, 160


@click.command(help=__doc__, context_settings={"show_default": True, "max_content_width": 120})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--images", type=click.IntRange(min=100), default=20_000)
@click.option("--boxes", type=click.IntRange(min=100), default=200_000)
@click.option("--rounds", type=click.IntRange(min=1), default=3)
@click.option("--json", "out", type=click.Path(path_type=Path), help="The result, as JSON.")
def main(folder: Path, images: int, boxes: int, rounds: int, out: Path | None) -> None:
    folder = folder.resolve()
    if folder.is_relative_to(ROOT):
        raise click.UsageError(f"{folder} lies in the checkout: give a folder outside of it")
    stored.ready(out)
    large, small = folder / f"{images}_{boxes}", folder / f"{images // 100}_{boxes // 100}"
    generate(large, images, boxes)
    generate(small, images // 100, boxes // 100)
    check = ["data", "check", str(large / "annotations" / "train.json"), "--images", str(large / "images")]
    rows: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        for name, arguments in (("check", check), ("check, decoded", [*check, "--decode"])):
            with tempfile.TemporaryDirectory() as cache:
                rows.setdefault(name, []).append(measured(arguments, cache))
        with tempfile.TemporaryDirectory() as cache:
            for name in ("run, first", "run, again"):
                rows.setdefault(name, []).append(measured(dry_run(large), cache))
            rows.setdefault("run, a hundredth", []).append(measured(dry_run(small), cache))
    click.echo(f"{'':<20}{'seconds':>9}{'least':>8}{'largest':>9}{'peak_mb':>9}")
    result: list[dict[str, Any]] = []
    for name, found in rows.items():
        seconds = [one["seconds"] for one in found]
        row = {"seconds": statistics.median(seconds), "least": min(seconds), "largest": max(seconds)}
        row["peak_mb"] = max(one["peak_mb"] for one in found)
        click.echo(f"{name:<20}{row['seconds']:>9.2f}{row['least']:>8.2f}{row['largest']:>9.2f}{row['peak_mb']:>9.0f}")
        result.append({"measured": name, **row})
    if out:
        about = {"command": shlex.join(["python", *sys.argv]), "cpus": os.cpu_count(), **machine.describe("cpu")}
        content = {"images": images, "boxes": boxes, "size": [HEIGHT, WIDTH], "rounds": rounds, **about, "rows": result}
        write_json(out, content)


def dry_run(root: Path) -> list[str]:
    options = ["--work-dir", str(root / "work"), "--device", "cpu", "--set", f"data_root={root}"]  # never made
    return ["run", str(CONFIG), "--dry-run", *options]


def measured(arguments: list[str], cache: str) -> dict[str, float]:
    """Seconds and peak memory of a `cskd-train` command.

    Raises:
        click.ClickException: it failed.
    """
    with tempfile.TemporaryFile() as output, processes.signals_raised():
        begin = time.perf_counter()
        child = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "cskd_train", *arguments],
            {**os.environ, "CSKD_CACHE": cache},
            file_actions=[(os.POSIX_SPAWN_DUP2, output.fileno(), stream) for stream in (1, 2)],
            setsid=True,
        )
        try:
            _, status, used = os.wait4(child, 0)
        except BaseException:
            processes.end(child)
            raise
        seconds = time.perf_counter() - begin
        if status:
            output.seek(0)
            said = output.read().decode(errors="replace")[-2000:]
            raise click.ClickException(f"cskd-train {shlex.join(arguments)} failed:\n{said}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": seconds, "peak_mb": used.ru_maxrss * unit / 1e6}


def generate(root: Path, images: int, boxes: int) -> None:
    """Write the set, unless it is there: `annotations/train.json` last."""
    if (root / "annotations" / "train.json").exists():
        return
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for split, count, wanted in (("val", max(images // 20, 2), max(boxes // 20, 2)), ("train", images, boxes)):
        entries = [
            {"id": number, "file_name": f"{split}_{number:06}.jpg", "width": WIDTH, "height": HEIGHT}
            for number in range(1, count + 1)
        ]
        for entry in entries:
            noise = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
            cv2.imwrite(str(root / "images" / str(entry["file_name"])), cv2.resize(noise, (WIDTH, HEIGHT)))
        corners = rng.integers(0, (WIDTH - 40, HEIGHT - 40), (wanted, 2)).tolist()
        sizes = rng.integers(8, 40, (wanted, 2)).tolist()
        annotations = [
            {
                "id": number + 1,
                "image_id": number % count + 1,
                "category_id": number % len(CLASSES) + 1,
                "bbox": [*corners[number], *sizes[number]],
                "area": sizes[number][0] * sizes[number][1],
                "iscrowd": 0,
            }
            for number in range(wanted)
        ]
        categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
        data = {"images": entries, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"{split}.json").write_text(json.dumps(data), encoding="utf-8")


if __name__ == "__main__":
    main()
