"""`cskd-deploy eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from cskd_deploy.accuracy.eval import EvaluationResult
from cskd_deploy.accuracy.evaluate import evaluate_detections, evaluate_model, is_former
from cskd_deploy.backends import NAMES
from cskd_deploy.commands.options import runtime_options
from cskd_deploy.errors import CheckFailed, DeployError
from cskd_deploy.progress import Progress

MAX_DROP = 0.2


@click.command()
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option(
    "--predictions",
    type=click.Path(path_type=Path),
    help="In place of a model: its detections, a JSON file in COCO's results format. Needs no runtime.",
)
@click.option(
    "--ann",
    required=True,
    type=click.Path(path_type=Path),
    help="COCO file, or the folder of another format or of one split.",
)
@click.option("--images", type=click.Path(path_type=Path), help="Folder of its images.  [default: beside the file]")
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="What to hold the model against, evaluated on the same images: another exported file, or a checkpoint, which "
    "cskd-train evaluates (needs torch and mmdet). Or the JSON of an `eval --json` of it, which is used as it is.",
)
@click.option(
    "--max-drop",
    type=float,
    help=f"Points of mAP that the model may lie below the reference; further is exit code 1.  [default: {MAX_DROP}]",
)
@click.option("--skip-broken", is_flag=True, help="Go on without images that cannot be used; they are counted.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N images of the file.")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images at a time, of those that are padded to one size. [default: as many as the graph is fixed to, else 1]",
)
@click.option("--backend", type=click.Choice(NAMES), help="[default: the one for the file's name]")
@runtime_options
@click.option(
    "--detections",
    "out",
    type=click.Path(path_type=Path),
    help="Write the detections in COCO's results format.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    model: Path | None,
    predictions: Path | None,
    ann: Path,
    images: Path | None,
    reference: Path | None,
    max_drop: float | None,
    skip_broken: bool,
    limit: int | None,
    batch: int | None,
    backend: str | None,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """COCO mAP of an exported model, by the COCO protocol.

    The file's own metadata says how images are prepared and which class is which; classes are matched with the
    annotations by name. With --reference another exported file is evaluated in the same way, or a checkpoint by
    cskd-train with mmdet's own pipeline, and the drop is checked. Images without annotations are only detected on. A
    checkpoint runs on the model's device.

    \b
    Examples:
      cskd-deploy eval student.onnx --ann data/shapes/annotations/val.json --images data/shapes/images \\
          --reference work_dirs/student/best.pth --max-drop 0.2
      cskd-deploy eval student_int8.onnx --ann data/shapes/annotations/val.json --images data/shapes/images \\
          --reference student.onnx --max-drop 0.5 --detections detections.json
      cskd-deploy eval student.onnx --ann aquarium/valid --json > student.json
      cskd-deploy eval student.engine --ann aquarium/valid --reference student.json
      cskd-deploy eval --predictions detections.json --ann data/shapes/annotations/val.json
    """
    if (model is None) == (predictions is None):
        raise DeployError("give a model, or --predictions with a file of detections: one of the two")
    if max_drop is not None and reference is None:
        raise DeployError("--max-drop is measured against a reference: give --reference with it")
    if predictions is not None:
        if out is not None or limit is not None or batch is not None:
            raise DeployError("--predictions are scored as they are: leave --detections, --limit and --batch out")
        _refuse_idle_options(reference, list(options))
        result = evaluate_detections(
            predictions, ann, images, reference, skip_broken=skip_broken, warn=_warn, progress=Progress, **options
        )
    else:
        assert model is not None
        result = evaluate_model(
            model,
            ann,
            images,
            reference,
            backend=backend,
            limit=limit,
            batch=batch,
            skip_broken=skip_broken,
            output=out,
            warn=_warn,
            progress=Progress,
            **options,
        )
    allowed = MAX_DROP if max_drop is None else max_drop
    if as_json:
        click.echo(json.dumps({**result.to_dict(), "max_drop": allowed}, indent=2))
    else:
        _print(result, ann, out)
    if result.drop is not None and not result.drop <= allowed:
        raise CheckFailed(f"mAP drops by {result.drop:.2f} points, more than the {allowed:g} allowed (--max-drop)")


def _refuse_idle_options(reference: Path | None, names: list[str]) -> None:
    """Of detections nothing is run but their reference, in the backend of its name.

    Args:
        names: of the options that say how a model is run.

    Raises:
        DeployError: one was given that nothing is run with.
    """
    context = click.get_current_context()
    idle = ["backend"] if reference is not None and not is_former(reference) else ["backend", *names]
    options = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    given = [options[name] for name in idle if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        raise DeployError(f"{', '.join(given)}: --predictions are scored, nothing is run with that: leave it out")


def _warn(line: str) -> None:
    click.echo(f"warning: {line}", err=True)


def _print(result: EvaluationResult, ann: Path, out: Path | None) -> None:
    metrics = result.metrics
    click.echo(f"{result.model} {f'({result.device}) ' if result.device else ''}on {ann}, points")
    click.echo(str(result))
    scored = f", scored by {metrics.protocol}" if metrics.protocol else ""
    click.echo(f"{metrics.images} images, {metrics.detections} detections, {metrics.seconds:.1f} s{scored}")
    if metrics.coverage:
        click.echo(metrics.coverage)
    if out is not None:
        click.echo(f"detections: {out}")
    for note in result.notes:
        click.echo(f"note: {note}")
    if result.drop is not None:
        click.echo(f"drop: {result.drop:+.2f} points of mAP against {result.reference}")
