"""`data shapes`: the same parameters give the same set, whole or not at all, and nothing else is touched."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import cskd_data
from cskd_data.shapes import files as shape_files
from cskd_data.shapes import generate
from cskd_data.shapes.scene import CLASSES, MIN_VISIBLE, SCALES, draw_scene

FEW = ("--images", 3, "--val-images", 2, "--size", 48, 64)


def digests(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files(root)}


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_the_command_writes_a_set_that_passes_the_check(tmp_path, command_line):
    code, out, _ = command_line("data", "shapes", tmp_path / "set", *FEW, "--json")
    made = json.loads(out)
    assert code == 0
    assert made["created"] is True
    assert made["images"] == {"train": 3, "val": 2}
    assert made["classes"] == list(CLASSES)
    for split in ("train", "val"):
        file = tmp_path / "set" / "annotations" / f"{split}.json"
        dataset = cskd_data.read(file, tmp_path / "set" / "images")
        report = dataset.check(decode=True)
        assert report.errors == ()
        assert not [warning for warning in report.warnings if not warning.startswith("no box of class")]
        assert dataset.classes == CLASSES
        assert report.boxes == made["boxes"][split]
    image = cv2.imread(str(tmp_path / "set" / "images" / "val_00001.jpg"))
    assert image.shape == (48, 64, 3)


def test_the_same_parameters_give_the_same_bytes_and_another_seed_gives_others(tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("other", 2)):
        generate(tmp_path / name, images=3, val_images=2, size=(64, 64), seed=seed)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    other = digests(tmp_path / "other")
    assert [name for name, digest in digests(tmp_path / "one").items() if other[name] == digest] == []


def test_an_image_depends_on_the_seed_and_its_place_only(tmp_path):
    generate(tmp_path / "small", images=2, val_images=1, size=(64, 64))
    generate(tmp_path / "large", images=4, val_images=3, size=(64, 64))
    small, large = digests(tmp_path / "small"), digests(tmp_path / "large")
    images = [name for name in small if name.endswith(".jpg")]
    assert len(images) == 3
    assert [small[name] for name in images] == [large[name] for name in images]


def test_a_complete_set_is_left_as_it_is(tmp_path, command_line, monkeypatch):
    command_line("data", "shapes", tmp_path / "set", *FEW)
    before = {path: path.stat().st_mtime_ns for path in files(tmp_path / "set")}
    monkeypatch.setattr(shape_files, "draw_scene", None)
    code, out, _ = command_line("data", "shapes", tmp_path / "set", *FEW)
    assert code == 0
    assert "is complete already, nothing was generated" in out
    assert {path: path.stat().st_mtime_ns for path in files(tmp_path / "set")} == before


def test_a_folder_that_holds_something_else_is_refused_and_kept(tmp_path, command_line):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    code, _, err = command_line("data", "shapes", tmp_path / "mine", *FEW)
    assert code == 2
    assert "is not a generated set (it has no shapes.json): nothing was changed" in err
    assert files(tmp_path) == [tmp_path / "mine" / "thesis.txt"]


def test_a_set_of_other_parameters_is_refused_and_kept(tmp_path, command_line):
    command_line("data", "shapes", tmp_path / "set", *FEW)
    before = digests(tmp_path)
    code, _, err = command_line("data", "shapes", tmp_path / "set", *FEW, "--seed", 5)
    assert code == 2
    assert "holds a set of other parameters (seed 0 there, 5 asked for): nothing was changed" in err
    assert digests(tmp_path) == before


def test_a_set_with_a_missing_image_is_not_taken_for_complete(tmp_path, command_line):
    command_line("data", "shapes", tmp_path / "set", *FEW)
    (tmp_path / "set" / "images" / "train_00002.jpg").unlink()
    code, _, err = command_line("data", "shapes", tmp_path / "set", *FEW)
    assert code == 2
    assert "1 files missing (images/train_00002.jpg" in err


def test_an_interrupted_generation_leaves_nothing_behind(tmp_path, monkeypatch):
    calls = []

    def fail_at_the_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw_scene(*arguments)

    monkeypatch.setattr(shape_files, "draw_scene", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "set", images=3, val_images=2, size=(64, 64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--images", 0), "give at least one of each"),
        (("--size", 20, 200), "the shorter side must be 32 or more"),
        (("--seed", -1), "seed -1 is negative"),
    ],
)
def test_parameters_without_sense_are_refused(tmp_path, command_line, options, said):
    code, _, err = command_line("data", "shapes", tmp_path / "set", *options)
    assert code == 2
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path, command_line):
    (tmp_path / "file").write_text("")
    code, _, err = command_line("data", "shapes", tmp_path / "file" / "set", *FEW)
    assert code == 2
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_every_class_and_scale_occurs_and_boxes_are_tight_within_the_image():
    rng = np.random.default_rng(0)
    figures = [figure for _ in range(60) for figure in draw_scene(rng, 96, 128).figures]
    assert {figure.name for figure in figures} == set(CLASSES)
    assert {figure.scale for figure in figures} == set(SCALES)
    for figure in figures:
        x, y, width, height = figure.bbox
        assert min(x, y) >= 0
        assert (x + width <= 128, y + height <= 96) == (True, True)
        longest_side = 1.25 * SCALES[figure.scale][1] * 96 + 2  # stretch, and the pixels at both ends
        assert max(width, height) <= longest_side


def test_a_figure_that_is_mostly_covered_is_not_annotated(monkeypatch):
    monkeypatch.setattr("cskd_data.shapes.scene._FREE_PLACE_SHARE", 1.0)
    monkeypatch.setattr("cskd_data.shapes.scene._FIGURES", (8, 8))
    monkeypatch.setattr("cskd_data.shapes.scene._EMPTY_SHARE", 0.0)

    def annotated(least_visible: float) -> int:
        monkeypatch.setattr("cskd_data.shapes.scene.MIN_VISIBLE", least_visible)
        return sum(len(draw_scene(np.random.default_rng(seed), 64, 64).figures) for seed in range(20))

    assert annotated(0.0) == 8 * 20
    assert annotated(MIN_VISIBLE) < 8 * 20
    assert annotated(0.8) < annotated(MIN_VISIBLE)
