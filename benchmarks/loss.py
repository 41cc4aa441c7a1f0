"""The core loss alone, against its equations as they read and against what the memory allows.

    python benchmarks/loss.py [--size 320 416] [--images 2] [--device cuda] [--json FILE]

Forward and backward of the cosine-guided loss (docs/algorithm.md 1.1) over one pyramid of five levels, in turns:

    equations   plain autograd, with the guidance as a (B, C, P) tensor: the baseline
    cskd_core   `cosine_guided_losses`
    compiled    the same through `torch.compile`, where --compile asks for it (needs a compiler)

`bytes/s` counts what nobody can avoid: two reads of both features forward, one read of each and one write backward.
`of copy` holds it against a copy on the same device, read and write counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cskd_core.similarity import Variant, cosine_guided_losses
from cskd_train.engine.device import keep_freed_memory

sys.path.insert(0, str(Path(__file__).parent))
import machine
import stored
from timing import timed

STRIDES = (8, 16, 32, 64, 128)
PASSES = 7  # over a feature map, forward and backward
COPIED_BYTES = 256 << 20
Loss = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2, help="images a batch [2]")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 416), metavar=("H", "W"), help="[320 416]")
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU [2]")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="one JSON line a way of computing")
    options = parser.parse_args()
    stored.ready(options.json)
    origin = machine.origin()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    if device.type == "cpu":
        keep_freed_memory()  # as `cskd-train run`
    shapes = [(options.images, options.channels, *(-(-side // stride) for side in options.size)) for stride in STRIDES]
    students = [torch.randn(shape, device=device).requires_grad_() for shape in shapes]
    teachers = [torch.randn(shape, device=device) for shape in shapes]
    ways: dict[str, Loss] = {"equations": equations, "cskd_core": ours}
    if options.compile:
        ways["compiled"] = torch.compile(ours)
    pool = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(pool)
    times: dict[str, list[float]] = {name: [] for name in ("copy", *ways)}
    for _ in range(options.rounds + 3):
        times["copy"].append(timed(lambda: target.copy_(pool), device))
        for name, loss in ways.items():
            times[name].append(timed(lambda loss=loss: step(loss, students, teachers), device))  # type: ignore[misc]
    medians = {name: statistics.median(values[3:]) for name, values in times.items()}
    copied = 2 * COPIED_BYTES / medians["copy"]
    moved = PASSES * sum(student.numel() * student.element_size() for student in students)
    print(f"copy {copied / 1e9:.1f} GB/s\nway               ms  times as fast   GB/s  of copy")
    rows = []
    for name in ways:
        row = {
            "way": name,
            "seconds": medians[name],
            "speedup": medians["equations"] / medians[name],
            "bytes_per_s": moved / medians[name],
            "of_copy": moved / medians[name] / copied,
            "images": options.images,
            "size": list(options.size),
            "channels": options.channels,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {options.threads} threads",
            **origin,
        }
        print(
            f"{name:<12}{1e3 * row['seconds']:>8.2f}{row['speedup']:>15.2f}{row['bytes_per_s'] / 1e9:>7.1f}"
            f"{row['of_copy']:>9.2f}"
        )
        rows.append(row)
    stored.write_lines(options.json, rows)


def step(loss: Loss, students: list[Tensor], teachers: list[Tensor]) -> None:
    for student in students:
        student.grad = None
    values = [loss(student, teacher) for student, teacher in zip(students, teachers, strict=True)]
    torch.stack(values).sum().backward()


def ours(student: Tensor, teacher: Tensor) -> Tensor:
    return cosine_guided_losses(student, teacher, [Variant((1.0, 0.5))])[0]


def equations(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = student.flatten(2), teacher.flatten(2)
    u, v = 1 - F.cosine_similarity(s, t, dim=2), 1 - F.cosine_similarity(s, t, dim=1)
    guidance = (u.unsqueeze(2) * v.unsqueeze(1)).abs()
    return (guidance * (s - t).square()).mean() + 0.5 * (u.mean() + v.mean())


if __name__ == "__main__":
    main()
