"""What a teacher's forward takes with its BatchNorms, and with them folded as the distiller has it.

    python benchmarks/folding.py [--families RetinaNet FCOS ...] [--rounds 7] [--device cuda] [--threads 2]

The recipe's teacher with random weights, one batch of random images, both forms in turns in one process: medians over
the rounds, in seconds, and the median of the rounds' ratios with the least and the largest. Below 1 folding is faster.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch

from cskd_core.plan import DistillPlan
from cskd_core.teacher import FrozenTeacher
from cskd_train import mm  # noqa: F401  (before any mmcv import)
from cskd_train.engine.device import keep_freed_memory
from cskd_train.files.config import load_config
from cskd_train.mm.families import family_of
from cskd_train.mm.folding import folded
from cskd_train.mm.plain import build_without_pretrained

sys.path.insert(0, str(Path(__file__).parent))
from step import NARROW, RECIPES, ROOT, teacher_config
from timing import timed
from width import scaled


def teachers(family: str, width: float) -> list[FrozenTeacher]:
    """As the checkpoint has it, and folded."""
    torch.manual_seed(0)
    plan = DistillPlan.parse(load_config(ROOT / "configs" / "cskd" / f"{RECIPES[family]}.py").distill)
    detector = build_without_pretrained(scaled(load_config(teacher_config(plan)).model, width))
    lighter = folded(detector, family_of(detector))
    return [FrozenTeacher(one, family_of(one)) for one in (detector, lighter)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--images", type=int, default=2, help="images a batch [2]")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 416), metavar=("H", "W"), help="[320 416]")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU [2]")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--narrow", action="store_true", help="an eighth of the channels, to try the benchmark itself")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if device.type == "cpu":
        keep_freed_memory()  # as `cskd-train run`
    images = torch.randn(options.images, 3, *options.size, device=device)
    print(f"{'family':<12}{'norms, s':>10}{'folded, s':>11}{'ratio':>8}{'least':>8}{'largest':>9}")
    for family in options.families:
        both = teachers(family, NARROW if options.narrow else 1)
        for teacher in both:
            teacher.detector.to(device)
        rounds = [
            [timed(lambda teacher=teacher: teacher.observe(images), device) for teacher in both]
            for _ in range(options.rounds + 1)
        ][1:]
        plain, lighter = (statistics.median(times) for times in zip(*rounds, strict=True))
        ratios = sorted(after / before for before, after in rounds)
        print(
            f"{family:<12}{plain:>10.3f}{lighter:>11.3f}{statistics.median(ratios):>8.3f}{ratios[0]:>8.3f}"
            f"{ratios[-1]:>9.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
