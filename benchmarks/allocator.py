"""A training step on the processor with freed memory kept, against glibc's defaults (the baseline).

    python benchmarks/allocator.py [--rounds N] [--json]

Each round runs both variants in a process of its own, one after the other; the ratio is between the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

STEPS = 6
IMAGES, HEIGHT, WIDTH = 4, 256, 320


def measure(keep: bool) -> list[float]:
    """Seconds of single training steps of a stock RetinaNet R18, the first one (warm-up) left out."""
    import torch

    from cskd_train.engine.config import load_config
    from cskd_train.engine.memory import keep_freed_memory
    from cskd_train.mm.plain import build_without_pretrained

    if keep:
        keep_freed_memory()
    torch.manual_seed(0)
    detector = build_without_pretrained(load_config("configs/bccd/retinanet_r18_bccd.py").model).train()
    images = torch.randn(IMAGES, 3, HEIGHT, WIDTH)
    metas = [{"img_shape": (HEIGHT, WIDTH, 3), "pad_shape": (HEIGHT, WIDTH, 3), "scale_factor": 1.0}] * IMAGES
    boxes = [torch.tensor([[20.0, 20.0, 80.0, 90.0], [100.0, 50.0, 180.0, 160.0]])] * IMAGES
    labels = [torch.tensor([0, 1])] * IMAGES
    seconds = []
    for _ in range(STEPS + 1):
        begin = time.perf_counter()
        losses = detector(images, metas, gt_bboxes=boxes, gt_labels=labels)
        detector._parse_losses(losses)[0].backward()
        detector.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--variant", choices=("keep", "default"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments.variant == "keep")))
        return
    seconds: dict[str, list[float]] = {"default": [], "keep": []}
    for _ in range(arguments.rounds):
        for variant, measured in seconds.items():
            command = [sys.executable, __file__, "--variant", variant]
            measured += json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    medians = {f"{variant}_s": statistics.median(measured) for variant, measured in seconds.items()}
    result = {**medians, "speedup": medians["default_s"] / medians["keep_s"], "steps": STEPS * arguments.rounds}
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"glibc's defaults {result['default_s']:.3f} s, freed memory kept {result['keep_s']:.3f} s a step (medians)")
    print(f"speed-up {result['speedup']:.2f}")


if __name__ == "__main__":
    main()
