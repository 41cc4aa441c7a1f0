"""The sets that results are of are those that the manifests in docs/results/sets name."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cskd_data
from cskd_data.shapes import generate
from cskd_data.split import split

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "docs" / "results" / "sets"


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
        ("shapes_few", {"images": 60, "val_images": 80, "seed": 0}),
        ("shapes_unlabelled", {"images": 1000, "val_images": 1, "seed": 2}),
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


@pytest.mark.parametrize(("name", "part", "share"), [("cards_halves", "val", 0.5), ("cards_quarter", "train", 0.75)])
def test_photographs_are_cut_as_they_were(tmp_path, name, part, share):
    if not os.environ.get("CSKD_CARDS"):
        pytest.skip("CSKD_CARDS does not name a folder with the photographs")
    shutil.copytree(os.environ["CSKD_CARDS"], tmp_path / "cards")
    cut = split(cskd_data.read(tmp_path / "cards" / "annotations" / f"{part}.json"), share)
    for of_cut, dataset in cut.parts.items():
        dataset.to_coco(tmp_path / name / f"{part}_{of_cut}.json")
    if name == "cards_quarter":
        script = ROOT / "benchmarks" / "without_labels.py"
        subprocess.run([sys.executable, script, tmp_path / name / "train_val.json"], check=True)
    files = (tmp_path / name).iterdir()
    assert {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files} == manifest(name)
