"""`cskd-train show` draws what the detectors find."""

from __future__ import annotations

import cv2
import pytest


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
