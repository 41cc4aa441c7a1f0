"""How the cost of distillation grows with image size, boxes an image, and images a batch.

    python benchmarks/scale.py [--json FILE] [--family RetinaNet] [--rounds 3]

One factor at a time around 2 images of 320 x 416 with 8 boxes each. `distillation` is what the distilled step takes
beyond the plain step and the teacher's forward (medians, as benchmarks/step.py measures them): adapters, assistant and
losses. Nothing may grow faster than the pixels or the boxes: the last column divides by the factor that varies.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import machine
import stored
from step import RECIPES, Bench, Cost, measure

from cskd_train.engine.device import keep_freed_memory

SIZES = [(256, 256), (320, 416), (512, 512), (640, 640), (800, 800)]
BOXES = [1, 8, 50, 200]
IMAGES = [1, 2, 4]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=RECIPES, default="RetinaNet")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU [2]")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="one JSON line a row")
    options = parser.parse_args()
    stored.ready(options.json)
    origin = machine.origin()
    torch.set_num_threads(options.threads)
    if options.device == "cpu":
        keep_freed_memory()  # as `cskd-train run`
    settings = [("pixels", 2, size, 8) for size in SIZES]
    settings += [("boxes", 2, (320, 416), boxes) for boxes in BOXES]
    settings += [("images", images, (320, 416), 8) for images in IMAGES]
    print("varied   images     size  boxes   plain s  distillation s  per megapixel  per box")
    rows = []
    for varied, images, size, boxes in settings:
        bench = Bench(options.family, images, size, boxes, torch.device(options.device))
        cost = measure(bench, options.family, options.rounds)
        extra = cost.distilled_s - cost.plain_s - cost.teacher_s
        print(
            f"{varied:<8}{images:>7}{size[0]:>5}x{size[1]:<4}{boxes:>6}{cost.plain_s:>10.3f}{extra:>16.3f}"
            f"{extra / megapixels(cost):>15.3f}{extra / (images * boxes):>9.4f}",
            flush=True,
        )
        rows.append({"varied": varied, "distillation_s": extra, **asdict(cost), **origin})
        stored.write_lines(options.json, rows)


def megapixels(cost: Cost) -> float:
    return cost.images * cost.height * cost.width / 1e6


if __name__ == "__main__":
    main()
