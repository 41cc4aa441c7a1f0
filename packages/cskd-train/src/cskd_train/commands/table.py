"""`cskd-train table`: the published figures, and what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import click

RESULTS = Path("docs/results")
WORK_DIRS = Path("work_dirs")


@click.command("table")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    multiple=True,
    help=f"Folder of recorded measurements (JSON); repeatable.  [default: {RESULTS}]",
)
@click.option(
    "--work-dirs",
    type=click.Path(path_type=Path),
    multiple=True,
    help=f"Folder of work dirs, or one work dir; repeatable.  [default: {WORK_DIRS}]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print Markdown tables.")
def command(results: tuple[Path, ...], work_dirs: tuple[Path, ...], as_json: bool, as_markdown: bool) -> None:
    """The published rows with the gain like for like, and every measurement that is found here.

    Published figures are the authors', on COCO. Measured ones come from the files under docs/results and from finished
    runs: a distilled run beside the student trained alone by the same recipe, and its teacher. Each names its data set,
    seeds and spread.

    \b
    Examples:
      cskd-train table
      cskd-train table --work-dirs work_dirs --json
      cskd-train table --results docs/results --markdown
    """
    from rich.console import Console

    from cskd_train.tables.recorded import find_recorded
    from cskd_train.tables.report import Found, TableReport
    from cskd_train.tables.work_dirs import find_in_work_dirs

    if as_json and as_markdown:
        raise click.UsageError("--json and --markdown exclude each other: give one of them")
    for option, folders in (("--results", results), ("--work-dirs", work_dirs)):
        _check(option, folders)
    results, work_dirs = results or (RESULTS,), work_dirs or (WORK_DIRS,)
    warnings: list[str] = []
    recorded = [measurement for folder in results for measurement in find_recorded(folder, warnings.append)]
    report = TableReport(
        recorded=Found("recorded", [str(folder) for folder in results], recorded),
        work_dirs=Found(
            "work dirs", [str(folder) for folder in work_dirs], find_in_work_dirs(work_dirs, warnings.append)
        ),
        warnings=warnings,
    )
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    elif as_markdown:
        click.echo(report.markdown())
    else:
        report.print(Console(markup=False, highlight=False))


def _check(option: str, folders: tuple[Path, ...]) -> None:
    from cskd_train.errors import TrainError

    for folder in folders:
        if not folder.is_dir():
            raise TrainError(f"{option} {folder}: no such folder (looked in {Path.cwd()})")
