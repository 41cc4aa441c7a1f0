"""Images a second of `cskd-train run`, data loading included, and what it waits and needs.

    python benchmarks/run.py [--device cuda] [--amp bf16] [--workers 4] [--json FILE]

For each family one distilled epoch on generated shapes, under a teacher of random weights, in a process of its own. The
first steps, in which memory is taken, kernels are chosen and workers start, do not count. `waiting` is the share of the
time that the training process waited for data; `peak_mb` (10^6 bytes) is torch's count on a GPU, and elsewhere the most
memory that the process has had.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent))
import processes
import stored

WARM_UP = 5  # steps; fewer where an epoch has fewer than twice as many


@click.command(help=__doc__, context_settings={"show_default": True, "max_content_width": 120})
@click.option("--families", default="RetinaNet,FasterRCNN", help="Separated by commas.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu")
@click.option("--amp", type=click.Choice(["bf16", "fp16"]), help="As of `cskd-train run`.")
@click.option("--images", type=int, default=160, help="Of the epoch.")
@click.option("--size", type=int, nargs=2, default=(128, 128), metavar="H W")
@click.option("--batch-size", type=int, default=4)
@click.option("--workers", type=int, default=1)
@click.option("--width", type=float, default=1.0, help="Channels over those of the demo's recipe.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="One JSON line a family.")
@click.option("--train", hidden=True, help="The process of its own: a config and a work dir.", nargs=2)
def main(
    families: str, device: str, amp: str | None, out: Path | None, train: tuple[str, str] | None, **recipe: Any
) -> None:
    options = ["--device", device, *(["--amp", amp] if amp else [])]
    if train:
        train_here(*train, options)
        return
    stored.ready(out)
    rows = []
    for family in families.split(","):
        with tempfile.TemporaryDirectory() as folder:
            row = {"family": family, **measure(Path(folder), family, options, recipe), "amp": amp, **recipe}
        click.echo(
            f"{family:<11}{row['images_per_second']:8.1f} images/s, {row['waiting']:.1%} of the time waiting for data, "
            f"{row['peak_mb']:.0f} MB at the peak"
        )
        rows.append(row)
        stored.write_lines(out, rows)


def measure(folder: Path, family: str, options: list[str], recipe: dict[str, Any]) -> dict[str, Any]:
    """Train in a process of its own, and read what it left."""
    from shapes_recipe import write_recipe

    config = write_recipe(folder, family, **recipe)
    command = [sys.executable, __file__, "--train", str(config), str(folder / "work"), *options]
    done = processes.run(command)
    if done.returncode:
        raise click.ClickException(f"cskd-train run failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    speed = of_log(folder / "work" / "log.jsonl", recipe["batch_size"])
    result = json.loads((folder / "work" / "result.json").read_text(encoding="utf-8"))
    return {**speed, **json.loads(done.stdout.splitlines()[-1]), "device": result["device"]}


def of_log(log: Path, batch_size: int) -> dict[str, float]:
    """Images a second and the share of waiting, of the steps that are logged one by one, without the warm-up."""
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [record for record in records if record["mode"] == "train"]
    counted = steps[min(WARM_UP, len(steps) // 2) :]
    seconds = sum(record["time"] for record in counted)
    waited = sum(record["data_time"] for record in counted)
    return {
        "images_per_second": batch_size * len(counted) / seconds,
        "waiting": waited / seconds,
        "steps": len(counted),
    }


def train_here(config: str, work_dir: str, options: list[str]) -> None:
    """The command itself, and as the last line of the output what it needed."""
    from cskd_train.cli import main as cskd_train

    try:
        cskd_train(["run", config, "--work-dir", work_dir, *options])
    except SystemExit as stopped:
        if stopped.code:
            raise
    import torch

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if "cuda" in options:
        peak = torch.cuda.max_memory_allocated()
    click.echo(json.dumps({"peak_mb": peak / 1e6}))


if __name__ == "__main__":
    main()
