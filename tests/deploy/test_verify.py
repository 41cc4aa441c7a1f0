"""The check that every file passes: all candidates are mmdet's, but for ties at the cut of a level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cskd_deploy.errors import CheckFailed
from cskd_deploy.exporter import verify
from cskd_deploy.exporter.onnx import export
from cskd_deploy.exporter.verify import TIE
from cskd_deploy.model.manifest import GraphForm
from cskd_train.files.config import config_from_data
from cskd_train.mm.detector import build_student

from .students import GRAPHS, student_config, write_checkpoint

CLASSES = ("ring", "star")


def candidates(scores: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes that do not overlap, one a score."""
    left = 20 * np.arange(len(scores), dtype=np.float32)
    boxes = np.stack([left, left, left + 10, left + 12], axis=1)
    return boxes, np.array(scores, dtype=np.float32), np.zeros(len(scores), dtype=np.int64)


def cut(boxes: tuple[np.ndarray, np.ndarray, np.ndarray], places: list[int]) -> tuple[np.ndarray, ...]:
    return tuple(values[places] for values in boxes)


def test_ties_are_the_candidates_near_the_last_score_of_their_level():
    scores = np.array([[0.9, 0.5 + 0.9 * TIE, 0.5, 0.4, 0.2 + 2 * TIE, 0.2]], dtype=np.float64)
    assert verify._ties(scores, [(3, 0.5), (3, 0.2)]).tolist() == [False, True, True, False, False, True]
    # mmdet has left one of score 0 out: no level is known, the highest cut serves all.
    assert verify._ties(scores[:, :5], [(3, 0.5), (3, 0.2)]).tolist() == [False, True, True, True, True]


def test_a_tie_needs_no_partner_and_all_others_do():
    everything = candidates([0.9, 0.8, 0.5, 0.5])
    ties = np.array([False, False, True])
    found = verify._matched(cut(everything, [0, 1, 2]), cut(everything, [0, 1, 3]), ties, ties)
    assert (found.candidates, found.matched, found.ties) == (3, 2, 1)
    assert "2 of 3 candidates equal but 1 ties" in str(found)
    none = np.zeros(3, dtype=bool)
    for first, second in ((ties, none), (none, ties), (none, none)):
        with pytest.raises(CheckFailed, match=r"2 of 3 candidates agree, and of the others 1 are no ties"):
            verify._matched(cut(everything, [0, 1, 2]), cut(everything, [0, 1, 3]), first, second)


@pytest.mark.parametrize("family", GRAPHS)
def test_a_student_as_it_is_before_training_is_exported(family, tmp_path):
    """Thousands of its scores lie within a millionth of another."""
    checkpoint = write_checkpoint(tmp_path / "student.pth", CLASSES, student_config(CLASSES, (160, 96), family))
    stored = torch.load(checkpoint, weights_only=True)
    torch.manual_seed(2)
    model = build_student(config_from_data(stored["meta"]["config"]))
    model.init_weights()
    torch.save({**stored, "state_dict": model.state_dict()}, checkpoint)
    found = export(checkpoint, tmp_path / "student.onnx", form=GraphForm("uint8", nms="graph", batch=None)).verification
    assert found.matched + found.ties >= found.candidates > 100


def with_equal_scores(folder: Path) -> Path:
    """A RetinaNet whose class logits are all the same."""
    checkpoint = write_checkpoint(folder / "student.pth", CLASSES, student_config(CLASSES, (160, 96)))
    stored = torch.load(checkpoint, weights_only=True)
    stored["state_dict"]["bbox_head.retina_cls.weight"].zero_()
    stored["state_dict"]["bbox_head.retina_cls.bias"].fill_(0.5)
    torch.save(stored, checkpoint)
    return checkpoint


def test_where_all_scores_are_equal_any_choice_is_right(tmp_path):
    found = export(with_equal_scores(tmp_path), tmp_path / "student.onnx").verification
    assert found.candidates > found.matched
    assert found.matched + found.ties >= found.candidates


@pytest.mark.parametrize("part", ["rpn_head.rpn_reg", "roi_head.bbox_head.fc_reg", "roi_head.bbox_head.fc_cls"])
def test_a_wrong_part_of_a_two_stage_file_is_seen(part, tmp_path, monkeypatch):
    checkpoint = write_checkpoint(tmp_path / "student.pth", CLASSES, student_config(CLASSES, (160, 96), "FasterRCNN"))
    real = verify.verify

    def of_another(model, manifest, path, device):
        with torch.no_grad():
            model.get_submodule(part).bias[:1] += 0.5  # the same for all classes would change no score
        return real(model, manifest, path, device)

    monkeypatch.setattr("cskd_deploy.exporter.onnx.verify", of_another)
    message = "of the proposals agree" if part.startswith("rpn") else "are no ties"
    with pytest.raises(CheckFailed, match=message):
        export(checkpoint, tmp_path / "student.onnx")
    assert not (tmp_path / "student.onnx").exists()
