"""`cskd-train show`: draw what several detectors find, side by side."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("show")
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default="detections.png", show_default=True)
@click.option("--title", "titles", multiple=True, help="Of a column, in the order of the checkpoints; repeatable.")
@click.option("--images", type=click.IntRange(min=1), default=3, show_default=True, help="Evenly spaced in the split.")
@click.option("--split", type=click.Choice(["val", "test"]), default="val", show_default=True)
@click.option("--score", type=click.FloatRange(0, 1), default=0.4, show_default=True, help="Draw nothing below.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Change a setting of the first config.")
def command(
    checkpoints: tuple[Path, ...],
    out: Path,
    titles: tuple[str, ...],
    images: int,
    split: str,
    score: float,
    assignments: tuple[str, ...],
) -> None:
    """Draw the detections of each CHECKPOINT beside the ground truth, into one PNG.

    \b
    Example:
      cskd-train show work_dirs/retinanet_r50_shapes/best.pth work_dirs/retinanet_r18_shapes/best.pth
    """
    from cskd_train.files.overrides import parse_overrides
    from cskd_train.report.side_by_side import draw_side_by_side

    draw_side_by_side(
        checkpoints,
        out,
        titles=titles,
        images=images,
        split=split,
        score_threshold=score,
        overrides=parse_overrides(assignments),
    )
    click.echo(str(out))
