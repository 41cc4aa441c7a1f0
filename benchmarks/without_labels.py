"""The images of a COCO file without its labels, for `cskd-train pseudo-label`: FILE_unlabelled.json beside it.

python benchmarks/without_labels.py data/cards_quarter/train_val.json
"""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command(help=__doc__)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(file: Path) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    images = {key: content[key] for key in ("info", "images") if key in content}
    file.with_name(f"{file.stem}_unlabelled.json").write_text(json.dumps(images) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
