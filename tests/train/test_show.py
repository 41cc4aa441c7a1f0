"""`cskd-train show` draws what the detectors find."""

from __future__ import annotations

import copy

import cv2
import pytest
import torch

import cskd_train
from cskd_data.evaluate import load_detections
from cskd_train.report import side_by_side


def test_the_picture_has_a_column_a_detector_and_one_for_the_truth(command_line, trained, tmp_path):
    best = trained / "best.pth"
    narrow, wide = tmp_path / "narrow.png", tmp_path / "wide.png"
    code, out, error = command_line("show", best, "--out", narrow, "--images", 2)
    assert code == 0, error
    assert out.strip() == str(narrow)
    assert command_line("show", best, best, best, "--out", wide, "--images", 2)[0] == 0
    one, three = cv2.imread(str(narrow)), cv2.imread(str(wide))
    assert three.shape[1] / one.shape[1] == pytest.approx(4 / 2, rel=0.1)


def test_detections_above_the_score_are_drawn(command_line, trained, tmp_path):
    best = trained / "best.pth"
    pictures = []
    for score in ("0.0", "1.0"):
        file = tmp_path / f"{score}.png"
        assert command_line("show", best, "--out", file, "--images", 1, "--score", score)[0] == 0
        pictures.append(cv2.imread(str(file)))
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any()


def test_titles_must_fit_the_checkpoints(command_line, trained, tmp_path):
    code, _, error = command_line(
        "show", trained / "best.pth", "--title", "a", "--title", "b", "--out", tmp_path / "x.png"
    )
    assert code == 2
    assert "2 titles for 1 checkpoints" in error
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("places", [(0, 1), (1, 0)])
def test_every_detector_sees_the_images_as_its_own_config_brings_them_in(
    places, trained, upright_root, tmp_path, monkeypatch
):
    """Two of the same weights, one of which takes smaller images with another normalisation."""
    contents = torch.load(trained / "best.pth", weights_only=True)
    config = contents["meta"]["config"] = copy.deepcopy(contents["meta"]["config"])
    test = config["data"]["val"]["pipeline"][1]
    test["img_scale"] = (96, 96)
    test["transforms"][1] |= {"mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "to_rgb": False}
    torch.save(contents, tmp_path / "other.pth")
    best = [(trained / "best.pth", tmp_path / "other.pth")[place] for place in places]
    drawn = []
    monkeypatch.setattr(side_by_side, "_draw", lambda _, columns, __: drawn.extend(columns))
    root = {"data_root": str(upright_root)}
    side_by_side.draw_side_by_side(best, tmp_path / "x.png", images=6, score_threshold=0.0, overrides=root)
    boxes = []
    for place, file in enumerate(best):
        out = tmp_path / f"{place}.json"
        cskd_train.evaluate(file, device="cpu", settings=root, out=out)
        boxes.append([(tuple(one["bbox"]), one["score"]) for one in load_detections(out)])
    assert [[(one.box, one.score) for row in rows for one in row] for _, rows in drawn[1:]] == boxes
    assert boxes[0] != boxes[1]


def test_changes_to_the_first_config_reach_the_first_detector(trained, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(side_by_side, "_draw", lambda _, columns, __: drawn.append(columns[1:]))
    for scale in ((128, 128), (96, 96)):
        changed = {"data.val.pipeline.1.img_scale": scale}
        best = [trained / "best.pth"] * 2
        side_by_side.draw_side_by_side(best, tmp_path / "x.png", score_threshold=0.0, overrides=changed)
    assert drawn[0][1] == drawn[1][1] == drawn[0][0] != drawn[1][0]
