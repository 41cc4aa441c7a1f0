"""`cskd-train test`: COCO metrics of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("test")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--config", help="Config to evaluate by.  [default: the one stored in the checkpoint]")
@click.option("--split", type=click.Choice(["val", "test"]), default="val", show_default=True, help="Key of `data`.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--gpus", type=click.IntRange(min=1), metavar="N", help="Detect in N processes, each on a GPU.")
@click.option("--skip-broken", is_flag=True, help="Go on without images that cannot be used; they are counted.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the detections here, as COCO results (JSON).")
@click.option("--errors", is_flag=True, help="Also say what each kind of error costs, as TIDE defines them.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Change a setting of the config; repeatable."
)
@click.pass_obj
def command(
    arguments: list[str],
    checkpoint: Path,
    config: str | None,
    split: str,
    device: str,
    gpus: int | None,
    skip_broken: bool,
    out: Path | None,
    errors: bool,
    as_json: bool,
    assignments: tuple[str, ...],
) -> None:
    """COCO mAP of CHECKPOINT, by pycocotools, and the AP of each class.

    The config stored in the checkpoint says which data; with --config a plain mmdet checkpoint serves too.

    \b
    Examples:
      cskd-train test work_dirs/retinanet_r18_shapes/best.pth --errors
      cskd-train test work_dirs/retinanet_r18_bccd/best.pth --split test --set data_root=data/bccd
      cskd-train test retinanet.pth --config mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --out detections.json
    """
    from rich.console import Console

    from cskd_train.engine.device import device_name
    from cskd_train.engine.distributed import is_launched, joined
    from cskd_train.engine.evaluate import evaluate_checkpoint
    from cskd_train.engine.launch import check_processes, end_with_launcher, launch
    from cskd_train.engine.progress import evaluation_progress
    from cskd_train.engine.signals import stop_on_signals
    from cskd_train.files.checkpoints import load_checkpoint
    from cskd_train.files.overrides import parse_overrides

    if gpus:
        check_processes(gpus, device)
    loaded = load_checkpoint(checkpoint, require_config=config is None)
    if gpus and not is_launched():
        with stop_on_signals():
            launch(gpus, arguments, lambda: "run the command again")
        return
    if is_launched():
        end_with_launcher()
    with joined(device) as world:
        console = Console(stderr=True, quiet=not world.is_main)
        with evaluation_progress(console) as progress:
            result = evaluate_checkpoint(
                loaded,
                ({"data.skip_broken": True} if skip_broken else {}) | parse_overrides(assignments),
                split,
                config=config,
                device=world.device,
                progress=progress,
                warn=lambda line: console.print(f"warning: {line}", markup=False, highlight=False, soft_wrap=True),
                out=out,
                world=world,
                errors=errors,
            )
    if not world.is_main:
        return
    if as_json:
        source = {"checkpoint": str(checkpoint), "sha256": loaded.sha256, "device": device_name(world.device)}
        click.echo(json.dumps({**source, "processes": world.size, **result.to_dict()}, indent=2))
        return
    where = device_name(world.device) + (f" x {world.size}" if world.size > 1 else "")
    click.echo(f"{checkpoint} on {split}: {result.images} images, {result.detections} detections, on {where}")
    if result.metrics:
        click.echo(f"{result}\n\nAP of each class\n{result.per_class_table()}")
        if result.errors is not None:
            click.echo(
                "\nWhat each kind of error costs, in points of AP50: what curing it alone would add (TIDE)\n"
                f"{result.errors}"
            )
    else:
        click.echo("no mAP: there are no annotations")
    if result.coverage:
        click.echo(result.coverage)
    click.echo(f"{result.seconds:.1f} s")
    if out is not None:
        click.echo(f"  {out}")
