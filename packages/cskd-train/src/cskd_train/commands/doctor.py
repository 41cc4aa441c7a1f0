"""`cskd-train doctor`: versions, operators, devices, and the fix for everything wrong."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table

from cskd_train.environment import Environment, inspect

BACKEND_MISSING = 3


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Say what is installed, what serves, and what is wrong with its fix.

    Exit code 0 when training can run, 3 when something that it needs is missing.

    \b
    Examples:
      cskd-train doctor
      cskd-train doctor --json
    """
    environment = inspect()
    if as_json:
        click.echo(json.dumps(environment.to_dict(), indent=2))
    else:
        _print(environment)
    context.exit(0 if environment.can_train else BACKEND_MISSING)


def _print(environment: Environment) -> None:
    console = Console(markup=False, highlight=False)
    versions = {"python": environment.python, **environment.packages}
    console.print(_table("package", "version", {name: found or "-" for name, found in versions.items()}))
    if environment.operators:
        console.print(_table("mmcv operator", "served by", environment.operators))
        if "missing" in environment.operators.values():
            console.print("(a missing operator matters only to a model that uses it)")
    for device in environment.devices:
        console.print(f"device  {device}")
    for fault in environment.faults:
        console.print(f"\n{'error' if fault.blocks_training else 'warning'}: {fault.problem}", soft_wrap=True)
        console.print(f"  fix: {fault.fix}", soft_wrap=True)
    console.print("\nTraining can run." if environment.can_train else "\nTraining cannot run: mend the errors above.")


def _table(left: str, right: str, rows: dict[str, str]) -> Table:
    table = Table(left, right, box=None, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table
