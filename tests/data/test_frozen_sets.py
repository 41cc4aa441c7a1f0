"""The sets that results are of are those that the manifests in docs/results/sets name."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from cskd_data.shapes import generate

MANIFESTS = Path(__file__).parents[2] / "docs" / "results" / "sets"


def manifest(name):
    lines = (MANIFESTS / f"{name}.sha256").read_text().splitlines()
    return {path: digest for digest, _, path in (line.partition("  ") for line in lines)}


def hashes(root):
    files = [path for folder in ("annotations", "images") for path in (root / folder).rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("shapes", {"images": 320, "val_images": 80, "seed": 0}),
        ("shapes_test", {"images": 1, "val_images": 160, "seed": 1}),
    ],
)
def test_drawn_sets_are_drawn_again(tmp_path, name, options):
    generate(tmp_path / name, size=(128, 128), **options)
    assert hashes(tmp_path / name) == manifest(name)


@pytest.mark.parametrize("name", ["bccd", "cards"])
def test_photographs_are_those_that_were_measured_on(name):
    root = os.environ.get(f"CSKD_{name.upper()}")
    if not root:
        pytest.skip(f"CSKD_{name.upper()} does not name a folder with the photographs")
    assert hashes(Path(root)) == manifest(name)
