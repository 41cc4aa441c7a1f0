"""The table at the end of `make demo`: what was trained, what was exported, and how both compare.

python demo/summary.py TEACHER_DIR ALONE_DIR DISTILLED_DIR
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("teacher", "alone", "distilled"):
        parser.add_argument(name, type=Path, help="work dir")
    folders = parser.parse_args()
    runs = {name: read(folder / "result.json") for name, folder in vars(folders).items()}
    evaluation = read(folders.distilled / "eval.json")
    bench = read(folders.distilled / "bench.json")

    console = Console(highlight=False, width=100)
    table = Table(title="Detectors on the generated validation images", title_justify="left", box=None)
    for title, justify in (("", "left"), ("mAP", "right"), ("AP50", "right"), ("epochs", "right"), ("time", "right")):
        table.add_column(title, justify=justify)
    titles = {"teacher": "teacher, ResNet-50", "alone": "student alone, ResNet-18", "distilled": "student distilled"}
    for name, title in titles.items():
        run = runs[name]
        best = run["best"]
        table.add_row(
            title, f"{best['bbox_mAP']:.3f}", f"{best['bbox_mAP_50']:.3f}", str(run["epochs"]), minutes(run["seconds"])
        )
    table.add_row(
        "the exported file (ONNX)",
        f"{evaluation['metrics']['bbox_mAP']:.3f}",
        f"{evaluation['metrics']['bbox_mAP_50']:.3f}",
        "",
        "",
    )
    console.print(table)
    gain = 100 * (runs["distilled"]["best"]["bbox_mAP"] - runs["alone"]["best"]["bbox_mAP"])
    console.print(
        f"Distilling changed the student by {gain:+.1f} points of mAP: same recipe, same seed.\n"
        "One seed shows no spread.\n"
        f"Exporting lost {evaluation['drop_points']:.2f} points."
    )
    times = Table(title="Latency, one image at a time", title_justify="left", box=None)
    for title, justify in (
        ("", "left"),
        ("p50 ms", "right"),
        ("p90 ms", "right"),
        ("images/s", "right"),
        ("MB", "right"),
    ):
        times.add_column(title, justify=justify)
    for result in bench["results"]:
        total = result["milliseconds"]["total"]
        times.add_row(
            result["backend"],
            f"{total['p50']:.1f}",
            f"{total['p90']:.1f}",
            f"{result['images_per_second']:.1f}",
            f"{result['size_bytes'] / 1e6:.1f}",
        )
    console.print(times)
    console.print(
        f"on {bench['environment']['processor']}, {bench['environment']['threads']} threads\n\nWhat was made:"
    )
    for path in (
        *(folder / "best.pth" for folder in vars(folders).values()),
        folders.distilled / "student.onnx",
        folders.distilled / "eval.json",
        folders.distilled / "bench.json",
        folders.distilled / "detections.png",
    ):
        console.print(f"  {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
